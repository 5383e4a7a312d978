# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.predict``."""

import sys

from fastfer.predict.cli import main

if __name__ == "__main__":
    sys.exit(main())
