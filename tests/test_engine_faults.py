# SPDX-License-Identifier: Apache-2.0
"""Networks that once gave wrong numbers or crashed, and files that ask for more than they should."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_bytes import ISAS, Network, pack, ranges_of, run
from engine_networks import binary, conv, global_pool, line_pool, se, window_pool

from fastfer import _C

CRASHES = sorted((Path(__file__).resolve().parents[2] / "shared" / "cases" / "ffe").glob("*.ffe"))


def images(net: Network, batch: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).standard_normal((batch, *net.shapes[0])).astype(np.float32)


def errors(net: Network, outputs: list[int], dtype: str = "float32", isa: str = "auto") -> list[float]:
    """The largest error of each output over its largest value, on one thread and on two."""
    x = images(net, 2)
    file = net.file(outputs, ranges=ranges_of(net.file(outputs), x, net.shapes))
    want = net.expected(x, outputs)
    worst = [0.0] * len(outputs)
    for threads in (1, 2):
        got = run(_C.EnginePlan(file, dtype=dtype, isa=isa, threads=threads, image_threads=threads), x)
        for i, (g, w) in enumerate(zip(got, want, strict=True)):
            assert np.isfinite(g).all()
            worst[i] = max(worst[i], float(np.abs(g - w).max() / np.abs(w).max()))
    return worst


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("second", ["mean", "maximum", "rows", "gate"])
def test_maxima_of_columns_beside_another_pooling(isa: str, second: str) -> None:
    """Both pool the output of one convolution; the second took the first one's place."""
    net = Network(3, 20, 22)
    wide = conv(net, 0, 24, (3, 3), pad=(1, 1, 1, 1), code=1)
    outputs = [line_pool(net, wide, 1, 1)]
    if second == "gate":
        outputs.append(se(net, wide, 6, 1, 6))
    else:
        outputs.append(line_pool(net, wide, 0, 0) if second == "rows" else global_pool(net, wide, second == "maximum"))
    assert max(errors(net, outputs, isa=isa)) < 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("code", [5, 6])
@pytest.mark.parametrize("size", [40, 112])
def test_silu_and_sigmoid_between_convolutions_of_a_strip(dtype: str, code: int, size: int, isa: str) -> None:
    """Registers cannot do these two, and a strip of low precision has no other place: such are not run as strips."""
    net = Network(3, size, size)
    stem = conv(net, 0, 32, (3, 3), pad=(1, 1, 1, 1), code=5)
    deep = conv(net, conv(net, stem, 160, (1, 1), code=5), 160, (3, 3), pad=(1, 1, 1, 1), depthwise=True, code=code)
    out = conv(net, conv(net, deep, 24, (1, 1)), 8, (1, 1))
    assert max(errors(net, [out], dtype, isa)) < (0.03 if dtype == "bfloat16" else 0.12)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["max", "mean", "gate"])
def test_low_precision_maps_added_by_a_pooling_or_a_gate(dtype: str, kind: str, isa: str) -> None:
    """The map that is added is of the plan's type; pooling and gates add float32."""
    net = Network(3, 24, 26)
    stem = conv(net, 0, 24, (3, 3), pad=(1, 1, 1, 1), code=1)
    other = conv(net, stem, 24, (1, 1), code=1)
    if kind == "gate":
        made = se(net, stem, 6, 1, 6)
    else:
        made = window_pool(net, stem, kind == "mean", (3, 3), (1, 1), (1, 1, 1, 1))
    out = conv(net, binary(net, made, other, False, 0), 8, (1, 1))
    assert max(errors(net, [out], dtype, isa)) < (0.03 if dtype == "bfloat16" else 0.12)


@pytest.mark.skipif(not CRASHES, reason="needs the files beside the checkout")
@pytest.mark.parametrize("file", CRASHES, ids=lambda path: path.stem)
def test_damaged_files_run_or_are_refused(file: Path) -> None:
    data = file.read_bytes()
    for dtype in ("float32", "bfloat16", "int8"):
        try:
            plan = _C.EnginePlan(data, dtype=dtype)
        except ValueError:
            continue
        run(plan, np.full((1, *plan.input), 0.5, np.float32))


def chain(nodes: int, shape: tuple[int, int, int], outputs: int, weights: bool) -> bytes:
    """Convolutions, or activations, one after another; all convolutions have the same weights in the file."""
    channels = shape[0]
    words = [struct.pack(f"<4I{outputs}I", nodes + 1, nodes, 0, outputs, *range(nodes + 1 - outputs, nodes + 1))]
    words += [struct.pack("<3I", *shape)] * (nodes + 1)
    for i in range(nodes):
        if weights:
            attrs = (1, 1, 1, 1, 0, 0, 0, 0, 1, 1)
            words.append(struct.pack("<6I10i4Q", 1, 1, 10, 2, i + 1, i, *attrs, 0, channels * channels, 0, channels))
        else:
            words.append(struct.pack("<6Ii", 7, 1, 1, 0, i + 1, i, 1))
    return pack(b"".join(words), np.zeros(channels * channels, np.float32).tobytes())


@pytest.mark.parametrize(
    ("nodes", "shape", "outputs", "weights", "message"),
    [
        (6, (16, 2048, 4096), 6, False, "values: expected at most 1073741824 bytes at a time"),
        (12000, (256, 1, 1), 1, True, "weights: expected at most"),
    ],
)
def test_budgets(nodes: int, shape: tuple[int, int, int], outputs: int, weights: bool, message: str) -> None:
    """A small file cannot ask for gigabytes."""
    with pytest.raises(ValueError, match=message):
        _C.EnginePlan(chain(nodes, shape, outputs, weights))


def test_the_time_of_a_layout_grows_with_the_number_of_buffers() -> None:
    """60,000 nodes, 2.3 MB: took minutes as each buffer was compared with all others."""
    file = chain(60000, (16, 1, 1), 1, False)
    start = time.process_time()
    plan = _C.EnginePlan(file)
    assert time.process_time() - start < 10
    assert plan.arena_bytes < 1 << 20
    (got,) = run(plan, np.full((1, 16, 1, 1), 0.5, np.float32))
    assert (got == 0.5).all()
