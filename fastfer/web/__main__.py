# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.web``."""

from __future__ import annotations

import sys

from fastfer.web.cli import main

if __name__ == "__main__":
    sys.exit(main())
