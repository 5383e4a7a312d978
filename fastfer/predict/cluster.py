# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.predict --ray``: parts of the inputs over the machines of a Ray cluster.

Ray Data hands parts to workers as they get free, and again where a machine is lost. A worker keeps its engine from part
to part and reads a few pictures ahead; what moves between machines are names and counts, so nothing piles up. Inputs
and results lie in a file system that all machines share.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from fastfer._messages import printable
from fastfer.predict import parts
from fastfer.predict.parts import Part
from fastfer.predict.recognizer import Recognizer

_BLOCKS = 10_000
"""Tasks at most: a part each, or several where there are more, as Ray plans all tasks ahead."""

_ATTEMPTS = 3


def run(
    todo: Sequence[Part], recognizer: Recognizer, out: Path, *, address: str | None, step: Callable[[], None]
) -> None:
    """Do the parts; ``step`` is called after each. ``address`` is that of a cluster; None looks for one, or starts it.

    Raises ImportError naming the extra, ConnectionError without the cluster, OSError where results cannot be written.
    """
    ray = _ray()
    if not ray.is_initialized():
        _start(ray, address)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    known = pickle.dumps(recognizer)
    items = ray.data.from_items(
        [{"part": pickle.dumps(part)} for part in todo], override_num_blocks=min(len(todo), _BLOCKS)
    )
    task = partial(work, recognizer=known, out=str(out.resolve()))
    finished = items.map_batches(task, batch_size=1, batch_format="numpy", num_cpus=recognizer.engine.threads)
    try:
        for _ in finished.iter_rows():
            step()
    except ray.exceptions.RayError as error:
        raise OSError(f"--ray: {printable(_last_line(error))}") from error
    lost = [part for part in todo if not parts.done(part.file(out))]
    if lost:
        raise OSError(f"--out: {len(lost)} parts are not in {out}: expected a folder that all machines of Ray share")


def _start(ray: Any, address: str | None) -> None:
    """Connect to the cluster, or start one here: on a busy machine that takes minutes, and more than one attempt.

    Ray gives its own parts 30 s to start, and ends them. Lost workers are replaced as often as it takes by default.
    """
    os.environ.setdefault("RAY_agent_register_timeout_ms", "600000")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for left in reversed(range(_ATTEMPTS)):
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
            return
        except ConnectionError:
            raise  # there is no such cluster
        except Exception as error:  # Ray raises Exception itself for what did not start in time
            ray.shutdown()
            if not left:
                raise OSError(f"--ray: no cluster started: {printable(_last_line(error))}") from error


def work(batch: dict[str, Any], recognizer: bytes, out: str) -> dict[str, Any]:
    """In a worker: the parts of a batch, each to its file; what another worker has done meanwhile is left."""
    known = _kept(recognizer)
    numbers = []
    for content in batch["part"]:
        part: Part = pickle.loads(content)
        path = part.file(Path(out))
        if not parts.done(path):
            parts.write(path, parts.results(part, known), known.classes)
        numbers.append(part.number)
    return {"part": numbers}


@lru_cache(maxsize=1)
def _kept(recognizer: bytes) -> Recognizer:
    """The recognizer of this worker, made once."""
    found: Recognizer = pickle.loads(recognizer)
    return found


def _last_line(error: BaseException) -> str:
    """What was raised in a worker, without its traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"--ray needs Ray: pip install 'fastfer[ray]' ({error})") from error
    return ray
