# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels: tensors are allocated here, their addresses go to the extension."""
