# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run: what may be there, who writes to it, and what is removed with --overwrite."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

from fastfer._files import remove_temporaries
from fastfer.train import report, state
from fastfer.train.config import CONFIG_FILE, InputError
from fastfer.train.placement import is_main_process

try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder go unnoticed
    fcntl = None  # type: ignore[assignment]

BEST_FILE = "best.safetensors"
LOCK_FILE = ".lock"
_FILES = (CONFIG_FILE, BEST_FILE, report.METRICS_FILE, report.REPORT_FILE, report.CONFUSION_FILE)
_RESULTS = (BEST_FILE, report.METRICS_FILE, report.REPORT_FILE)


def check_folder(out: Path, resume: bool, overwrite: bool) -> Path | None:
    """The saved state to continue from, or None to begin. ValueError where ``out`` cannot be used as asked."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"out: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"out: no permission to write to {existing}")
    saved = state.find(out)
    begun = [name for name in _FILES if (out / name).exists()]
    if resume and not saved and not begun:
        raise ValueError(f"resume: {out} holds no run")
    results = [name for name in _RESULTS if name in begun]
    if resume and not saved and results:
        left = f"; a new run in another folder can begin with its weights: --from {out / BEST_FILE}"
        raise ValueError(
            f"resume: {out} holds {', '.join(results)} and no {state.FOLDER}/ to continue from"
            f"{left if BEST_FILE in results else ', nor weights; --overwrite begins anew'}"
        )
    if (saved or begun) and not resume and not overwrite:
        raise ValueError(f"out: {out} holds a run already: continue it with --resume or discard it with --overwrite")
    return saved if resume else None


def remove_run(out: Path) -> None:
    """Delete the files of a run; others stay."""
    for name in _FILES:
        (out / name).unlink(missing_ok=True)
    state.remove(out)


@contextmanager
def claimed(out: Path, doing: str, files: tuple[str, ...] = _FILES) -> Iterator[None]:
    """`FolderLock` of a folder of runs, made where it is not there. InputError where another process has it.

    Of several processes of one training the first alone holds it. A folder that nothing was written to is not left.
    """
    made = [path for path in (out, *out.absolute().parents) if not path.exists()]
    try:
        with ExitStack() as stack:
            if is_main_process():
                out.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(FolderLock(out, doing, files))
                except ValueError as error:
                    raise InputError(str(error)) from error
            yield
    finally:
        with suppress(OSError):  # the first that is not empty
            for path in made:
                path.rmdir()


class FolderLock:
    """One run at a time in ``out``: a context manager. ValueError where another process holds the folder.

    The lock is the kernel's, on the open file ``.lock``: it ends with the process, however that ends. Whoever gets it
    clears what a killed run has left half written of ``files``. ``doing`` is what the holder does, in the error.
    """

    def __init__(self, out: Path, doing: str = "training", files: tuple[str, ...] = _FILES) -> None:
        self._path, self._doing, self._files = out / LOCK_FILE, doing, files
        self._handle: int | None = None

    def __enter__(self) -> FolderLock:
        while self._handle is None:
            handle = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
            try:
                self._take(handle)
            except BaseException:
                os.close(handle)
                raise
            if self._is_current(handle):
                self._handle = handle
            else:  # the run before removed the file between our opening and our locking of it
                os.close(handle)
        os.truncate(self._handle, 0)
        holder = f"process {os.getpid()} on {socket.gethostname()} is {self._doing}"
        os.pwrite(self._handle, holder.encode(), 0)
        remove_temporaries(self._path.parent, self._files)
        state.remove_unfinished(self._path.parent)
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._handle is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def _take(self, handle: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace") or f"another process is {self._doing}"
            raise ValueError(f"out: {holder} in {self._path.parent}") from None

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path, follow_symlinks=False), os.fstat(handle))
        except FileNotFoundError:
            return False
