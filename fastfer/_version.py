# SPDX-License-Identifier: Apache-2.0
"""The version: pyproject.toml reads it from here, so a source tree that was never installed knows it, too."""

__version__ = "0.2.0"
