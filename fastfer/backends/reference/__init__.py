# SPDX-License-Identifier: Apache-2.0
"""Every op in plain torch: the oracle of the tests, the documentation of the formulas, and the last resort.

The functions take float32 and float64; activations in 16 bits reach them as float32 copies, and their results are
rounded (`fastfer._library`).
"""

half_storage = True
