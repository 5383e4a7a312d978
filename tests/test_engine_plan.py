# SPDX-License-Identifier: Apache-2.0
"""The engine's executor: every operation on every instruction set against float64, batches, threads, callers, forks."""

from __future__ import annotations

import os
import re
import signal
import struct
import threading
import time
from typing import Any

import numpy as np
import pytest
from engine_bytes import ISAS, Network, ranges_of, run, seal, values_of
from engine_networks import affine, case, cases, cbam, conv, csa, global_pool

from fastfer import _C

CASES = {name: (shape, build) for name, shape, build in cases()}


def images(net: Network, batch: int, seed: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((batch, *net.shapes[0])).astype(np.float32)


def assert_close(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], what: str = "", bound: float = 3e-6) -> None:
    assert got.shape == want.shape
    worst = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
    assert worst < bound, f"{what}: {worst:.1e} of the largest value"


def plan_of(net: Network, **options: Any) -> Any:
    return _C.EnginePlan(net.file(), **options)


@pytest.mark.parametrize("name", CASES)
def test_operation(name: str) -> None:
    shape, build = CASES[name]
    net = case(shape, build)
    file, x = net.file(), images(net, 5)
    (want,) = net.expected(x, [-1])
    for isa in ISAS:
        first = None
        for threads in (1, 2, 3):
            plan = _C.EnginePlan(file, threads=threads, isa=isa, image_threads=threads, strict=True)
            for batch in (1, 2, 5):
                (got,) = run(plan, x[:batch])
                assert_close(got, want[:batch], f"{isa}, {threads} threads, batch {batch}")
                first = got if first is None else first
                assert np.array_equal(got[0], first[0]), f"{isa}: {threads} threads give other bits than one"


def network() -> Network:
    """A few of everything: stem, Winograd, strips, gates, pools; two outputs."""
    net = Network(3, 40, 44, seed=5)
    stem = conv(net, 0, 24, (3, 3), (2, 2), (1, 1, 1, 1), code=1)
    wide = conv(net, stem, 32, (3, 3), pad=(1, 1, 1, 1), code=1)
    gated = cbam(net, wide, 4, 7)
    down = csa(net, conv(net, gated, 48, (1, 1)), 3, True)
    vector = global_pool(net, down, 0)
    conv(net, vector, 7, (1, 1))
    return net


OUTPUTS = (4, 7)


@pytest.fixture(scope="module")
def whole() -> tuple[Network, bytes, np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    net = network()
    x = images(net, 6)
    return net, net.file(OUTPUTS), x, net.expected(x, OUTPUTS)


def check(plan: Any, x: np.ndarray[Any, Any], want: list[np.ndarray[Any, Any]]) -> None:
    for got, expected in zip(run(plan, x), want, strict=True):
        assert_close(got, expected, bound=2e-5)


@pytest.mark.parametrize(
    ("name", "channels", "window", "pad"),
    [("winograd", 32, (3, 3), (1, 1, 1, 1)), ("strassen", 256, (1, 1), (0, 0, 0, 0))],
)
def test_fewer_products_are_not_for_strict_plans(
    name: str, channels: int, window: tuple[int, int], pad: tuple[int, int, int, int]
) -> None:
    net = Network(32, 30, 14)
    conv(net, 0, channels, (1, 1))
    conv(net, 1, channels, window, pad=pad, code=3)
    x = images(net, 2)
    (want,) = net.expected(x, [-1])
    for isa in ISAS:
        for strict, bound in ((False, 2e-5), (True, 2e-6)):
            plan = plan_of(net, isa=isa, threads=2, image_threads=2, strict=strict)
            names = [row[0] for row in plan.profile(x.ctypes.data, "float32", 1)]
            assert (name in names) != strict
            assert_close(run(plan, x)[0], want, isa, bound)


LOW = [name for name in CASES if name.startswith(("conv", "depthwise", "inverted", "separable", "sum", "planes"))]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", LOW)
def test_low_precision(name: str, isa: str) -> None:
    """Between two convolutions more, so that values in the middle are low; bounds as those of the number formats."""
    shape, build = CASES[name]
    net = case(shape, build)
    out = net.shapes[-1][0]
    conv(net, len(net.shapes) - 1, out, (1, 1), code=1)
    conv(net, len(net.shapes) - 1, out, (1, 1))
    x = images(net, 3)
    (want,) = net.expected(x, [-1])
    file = net.file(ranges=ranges_of(net.file(), x, net.shapes))
    for dtype, bound in (("bfloat16", 0.03), ("int8", 0.12)):
        for threads in (1, 3):
            plan = _C.EnginePlan(file, dtype=dtype, isa=isa, threads=threads, image_threads=threads)
            (got,) = run(plan, x)
            assert_close(got, want, dtype, bound)
            (alone,) = run(plan, x[1:2])
            assert np.array_equal(alone[0], got[1])


def test_values(whole: Any) -> None:
    net, file, x, _ = whole
    wanted = net.expected(x, range(len(net.shapes)))
    for got, want in zip(values_of(file, x, net.shapes), wanted, strict=True):
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    with pytest.raises(ValueError, match="values: expected a plan whose steps are apart"):
        _C.EnginePlan(file).values(x.ctypes.data, "float32", [])
    with pytest.raises(ValueError, match=f"values: to: expected {len(net.shapes)} places, got 0"):
        _C.EnginePlan(file, apart=True).values(x.ctypes.data, "float32", [])


def test_bad_ranges(whole: Any) -> None:
    net, file, _, _ = whole
    good = [(0.0, 1.0)] * len(net.shapes)
    for ranges, message in [
        (good[1:], f"ranges: expected {len(good)}, one for each value, got {len(good) - 1}"),
        ([(1.0, 0.0), *good[1:]], "range of value 0: expected finite numbers"),
        ([(0.0, float("inf")), *good[1:]], "range of value 0: expected finite numbers"),
        ([(float("nan"), 1.0), *good[1:]], "range of value 0: expected finite numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            _C.EnginePlan(net.file(OUTPUTS, ranges=ranges))
    with pytest.raises(ValueError, match="int8 needs the ranges of the values"):
        _C.EnginePlan(file, dtype="int8")


def test_bytes_are_normalised_while_they_are_read(whole: Any) -> None:
    net, file, _, _ = whole
    x = np.random.default_rng(1).integers(0, 256, (3, *net.shapes[0]), np.uint8)
    scale, shift = np.array([0.02, 0.01, 0.03], np.float32), np.array([-1.5, 0.5, -2], np.float32)
    want = net.expected(x * scale[:, None, None] + shift[:, None, None], OUTPUTS)
    for isa in ISAS:
        plan = _C.EnginePlan(file, isa=isa, scale=scale.tolist(), shift=shift.tolist())
        check(plan, x, want)
        check(_C.EnginePlan(file, isa=isa), x, net.expected(x, OUTPUTS))


@pytest.mark.parametrize("padded", [False, True])
def test_affine_first(padded: bool) -> None:
    """An affine map on the image costs no step, and padding after it is zero."""
    net = Network(3, 12, 13)
    scaled = affine(net, 0, 0)
    pad = (1, 1, 1, 1) if padded else (0, 0, 0, 0)
    conv(net, scaled, 8, (3, 3), (2, 2), pad, code=1)
    x = np.random.default_rng(1).integers(0, 256, (2, *net.shapes[0]), np.uint8)
    plan = plan_of(net, scale=[0.5, 0.25, 2], shift=[1, 2, 3])
    assert [row[0] for row in plan.profile(x.ctypes.data, "uint8", 1)] == ["stem", "output"]
    check(plan, x.astype(np.float32), net.expected(x, [-1]))
    factors, shifts = np.array([0.5, 0.25, 2])[:, None, None], np.array([1, 2, 3])[:, None, None]
    check(plan, x, net.expected(x * factors + shifts, [-1]))


def test_several_callers(whole: Any) -> None:
    """Each call has memory of its own; who finds the pool taken runs alone."""
    _, file, x, want = whole
    plan = _C.EnginePlan(file, threads=3, image_threads=3)
    errors: list[BaseException] = []

    def call(i: int) -> None:
        try:
            for _ in range(20):
                batch = 1 + i % 5
                check(plan, x[:batch], [w[:batch] for w in want])
        except BaseException as error:  # reported by the main thread
            errors.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


def test_forked_child_runs(whole: Any) -> None:
    """A child has none of its parent's workers and starts its own."""
    _, file, x, want = whole
    plan = _C.EnginePlan(file, threads=3, image_threads=3)
    check(plan, x, want)
    child = os.fork()
    if not child:
        try:
            check(plan, x, want)
            check(plan, x[:1], [w[:1] for w in want])
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 30
    while (finished := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if finished[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert finished == (child, 0)
    check(plan, x, want)


def test_idle_threads_cost_nothing(whole: Any) -> None:
    _, file, x, want = whole
    affinity = os.sched_getaffinity(0)
    plan = _C.EnginePlan(file, threads=3, image_threads=3)
    check(plan, x, want)
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03
    assert os.sched_getaffinity(0) == affinity
    tasks = os.listdir("/proc/self/task")
    assert all(os.sched_getaffinity(int(task)) == affinity for task in tasks)


def test_description(whole: Any) -> None:
    net, _, x, _ = whole
    plan = _C.EnginePlan(net.file(OUTPUTS, b'{"model": "x"}'), threads=2)
    assert plan.input == net.shapes[0]
    assert plan.outputs == [net.shapes[i] for i in OUTPUTS]
    assert plan.metadata == b'{"model": "x"}'
    assert plan.threads == 2
    assert plan.image_threads in (1, 2)
    rows = plan.profile(x.ctypes.data, "float32", 3)
    assert all(seconds >= 0 and macs >= 0 and tasks >= 1 for _, _, seconds, macs, _, tasks in rows)
    convolutions = sum(
        n[3][0].numel() * np.prod(s[1:]) for n, s in zip(net.nodes, net.shapes[1:], strict=True) if n[0] == "conv"
    )
    assert sum(row[3] for row in rows) >= convolutions
    values = sum(4 * -(-c // 16) * 16 * h * w for c, h, w in net.shapes)
    assert plan.arena_bytes < 2 * values


def test_memory_is_used_again() -> None:
    """A long chain needs the memory of its two largest neighbours, not of all its values."""
    net = Network(16, 32, 32)
    x = conv(net, 0, 32, (1, 1))
    for _ in range(12):
        x = affine(net, x, 1)
    plan = plan_of(net, isa="baseline")
    assert plan.arena_bytes < 2.5 * 32 * 32 * 32 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"image_threads": -1}, "image_threads: expected 0 or more, got -1"),
        ({"dtype": "float16"}, "dtype: expected .*, got 'float16'"),
        ({"isa": "sse9"}, "isa: expected .*, got 'sse9'"),
        ({"scale": [1.0], "shift": [1.0, 2.0]}, "scale, shift: expected as many of each, got 1 and 2"),
        ({"scale": [1.0], "shift": [1.0]}, "scale, shift: expected 3 values, one for each channel, got 1"),
    ],
)
def test_bad_options(whole: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.EnginePlan(whole[1], **options)


def test_bad_calls(whole: Any) -> None:
    plan = _C.EnginePlan(whole[1])
    with pytest.raises(ValueError, match="outputs: expected 2 addresses, got 1"):
        plan.run(0, "float32", 1, [0])
    with pytest.raises(ValueError, match="image dtype: expected float32 or uint8, got 'float64'"):
        plan.run(0, "float64", 1, [0, 0])
    with pytest.raises(ValueError, match="repeats: expected at least 1, got 0"):
        plan.profile(0, "float32", 0)
    with pytest.raises(BufferError):
        _C.EnginePlan(memoryview(whole[1])[::2])


def changed(file: bytes, at: int, value: bytes) -> bytes:
    return seal(file[:at] + value + file[at + len(value) :])


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def test_bad_files(whole: Any) -> None:
    file = whole[1]
    graph = struct.unpack_from("<Q", file, 48)[0]
    for data, message in [
        (b"", "expected at least 96 bytes, got 0"),
        (b"X" + file[1:], "expected it to start with FFENGINE"),
        (changed(file, 8, u32(9)), "version: expected 1, got 9"),
        (file[:-4], "as its header says"),
        (file[:-1] + bytes([file[-1] ^ 1]), "checksum does not match"),
        (changed(file, 80, b"\1"), "expected zeros in its unused fields"),
        (changed(file, 40, struct.pack("<Q", 2**63)), "metadata: expected a part of the file"),
        (changed(file, graph, u32(2**31)), "values: expected at most"),
        (changed(file, graph + 8, u32(99)), "the input: expected a value below"),
        (changed(file, graph + 16, u32(99)), "an output: expected a value below"),
        (changed(file, graph + 24, u32(0)), "a value's channels: expected 1 to"),
    ]:
        with pytest.raises(ValueError, match=message):
            _C.EnginePlan(data)


@pytest.mark.parametrize(
    ("op", "attrs", "weights", "message"),
    [
        (
            "conv",
            [3, 3, 1, 1, 0, 0, 0, 0, 3, 0],
            [36, 4],
            "groups: expected a divisor of the channels of input and output",
        ),
        ("conv", [3, 3, 1, 1, 0, 0, 0, 0, 1, 0], [143, 4], "weight: expected 144 floats, got 143"),
        ("conv", [9, 9, 1, 1, 0, 0, 0, 0, 1, 0], [1296, 4], "kernel: expected at most the padded image, got 9x9"),
        ("conv", [1, 1, 0, 1, 0, 0, 0, 0, 1, 0], [16, 4], "sh: expected 1 to 1024, got 0"),
        ("conv", [1, 1, 1, 1, 0, 0, 0, 0, 1, 7], [16, 4], "act: expected 0 to 6, got 7"),
        ("max_pool", [2, 2, 1, 1, 2, 0, 0, 0], [], "top: expected 0 to 1, got 2"),
        ("eca", [], [4], "weight: expected an odd number of floats, got 4"),
        ("cbam", [2, 3], [4, 1, 4, 4, 12, 1], "kernel: expected odd sizes, got 2x3"),
        ("se", [0, 0], [4, 1, 5, 4], "w2: expected 4 floats, got 5"),
        ("act", [], [], "number of attributes: expected 1, got 0"),
        ("affine", [0], [4], "number of weights: expected 2, got 1"),
        ("relu", [0], [], "op: expected a known code, got 99"),
    ],
)
def test_bad_nodes(op: str, attrs: list[int], weights: list[int], message: str) -> None:
    net = Network(4, 6, 5)
    net.nodes.append((op, [0], attrs, [net.weight(n) for n in weights]))
    net.shapes.append((4, 6, 5))
    with pytest.raises(ValueError, match=re.escape(message)):
        plan_of(net)


def test_order_of_nodes() -> None:
    net = Network(4, 6, 5)
    affine(net, 0, 0)
    net.nodes[0][1][0] = 1
    with pytest.raises(ValueError, match="reads value 1 before it is written"):
        plan_of(net)
    net.nodes[0][1][0] = 0
    net.shapes.append((4, 6, 5))
    with pytest.raises(ValueError, match="value 2: no node writes it"):
        _C.EnginePlan(net.file([1]))
