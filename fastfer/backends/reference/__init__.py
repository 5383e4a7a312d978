# SPDX-License-Identifier: Apache-2.0
"""Every op in plain torch: the oracle of the tests, the documentation of the formulas, and the last resort."""
