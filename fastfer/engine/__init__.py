# SPDX-License-Identifier: Apache-2.0
"""The inference engine: a trained network becomes one native call."""
