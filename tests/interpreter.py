# SPDX-License-Identifier: Apache-2.0
"""Code in a fresh interpreter, for what is decided at import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fastfer import backend


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` with this package on the path and no FASTFER_ variable but those given."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FASTFER_")}
    path = os.pathsep.join([str(Path(backend.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**inherited, "PYTHONPATH": path, **environment},
    )
