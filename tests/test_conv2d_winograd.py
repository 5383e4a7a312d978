# SPDX-License-Identifier: Apache-2.0
"""Training of dense 3x3 convolutions at the shapes where the native kernels take Winograd's algorithm."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import Variant
from conv_oracle import Case, Layer, assert_result, assert_same_for_any_threads, expected, make, safe
from draws import kernels
from flat import Flat
from guard import Guarded
from oracle import Result, same_bits
from test_conv2d_torch import backward_arguments, ops_of
from tolerance import assert_close

from fastfer import backend

LAYERS = (
    Layer(1, 16, 15, 18, 17, bias=True, act="silu"),
    Layer(3, 33, 7, 9, 40, padding=(0, 2, 2, 1), bias=True, act="silu"),
    Layer(2, 17, 14, 10, 16, padding=(0, 0, 0, 0), act="sigmoid"),
    Layer(5, 18, 6, 11, 48, padding=(2, 1, 0, 2), norm=False, act="none"),
    Layer(20, 24, 3, 3, 32, act="silu"),
    Layer(6, 32, 16, 16, 16, bias=True, act="silu"),
    Layer(1, 16, 45, 40, 20, padding=(2, 1, 1, 0), act="silu"),
    Layer(2, 80, 12, 12, 96, act="silu"),
)
"""Odd sizes, an image and its bands, few tiles and many images, four-sided pads, channels around vectors and panels."""

SMALL = Layer(2, 16, 8, 16, 32, norm=False, act="none", bias=True)
layers = pytest.mark.parametrize("layer", LAYERS, ids=str)


@cache
def scaled(layer: Layer) -> tuple[Case, Result]:
    """Outputs of the size of the inputs: an activation's curvature turns an error of y into one of the gradients."""
    case = make(layer)
    case.leaves["weight"] = (case.leaves["weight"] / math.sqrt(9 * layer.c)).float().double()
    return case, expected(case)


@layers
@pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
def test_gradients(variant: Variant, layer: Layer, training: bool) -> None:
    case, want = scaled(replace(layer, training=training))
    with variant.runs(*kernels("conv2d", torch.float32, "train", "bwd")):
        got = case.measured(torch.float32)
    assert_result(got, want, case.layer)


def test_relu(variant: Variant) -> None:
    case, want = safe(Layer(2, 16, 9, 10, 17, act="relu"), torch.float32)
    assert_result(case.measured(torch.float32), want, case.layer)


@layers
def test_these_layers_take_it(kernel_variant: Variant, layer: Layer) -> None:
    """The direct sum of small integers is exact; the transforms divide by 6 and 24."""
    case = make(replace(layer, norm=False, act="none"))
    for value in (*case.leaves.values(), case.upstream):
        value.mul_(4).round_()
    got, want = case.measured(torch.float32), expected(case)
    rounded = {name: not torch.equal(got.grads[name].double(), want.grads[name]) for name in ("x", "weight")}
    rounded["out"] = not torch.equal(got.out.double(), want.out)
    assert all(rounded.values()) == (kernel_variant.backend == "native"), rounded


def test_only_the_gradients_asked_for(cpu_backend: Variant) -> None:
    case, want = scaled(replace(LAYERS[1], act="silu"))
    for name in case.leaves:
        got = case.measured(torch.float32, [name])
        assert set(got.grads) == {name}
        assert_result(got, want, case.layer)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(1, -1, 3, 7), (0, 2, 0, 0), (1, 5, -1, -1)])
@pytest.mark.parametrize("zeros", [False, True])
def test_non_finite_as_torch(variant: Variant, value: float, place: tuple[int, ...], zeros: bool) -> None:
    """A NaN or infinity reaches what it reaches in the direct sum, and nothing else of its tile."""
    case = make(SMALL)
    if zeros:
        case.leaves["weight"][0, 0, 0] = 0
        case.leaves["weight"][1] = 0
    # A weight that is not finite meets the zeros of the padding only where those are summed.
    skips = variant.backend in ("numba", "cuda-host")
    for where in ("x", "upstream") if skips else ("x", "upstream", "weight"):
        broken = Case(SMALL, {k: v.clone() for k, v in case.leaves.items()}, {}, case.upstream.clone())
        if where == "weight":
            broken.leaves[where][3, 4, 1, 2] = value
        else:
            (broken.leaves["x"] if where == "x" else broken.upstream)[place] = value
        got, want = broken.measured(torch.float32), expected(broken)
        assert_close(got.out, want.out, "reduction", SMALL.terms, name="out")
        for name, grad in got.grads.items():
            assert_close(grad, want.grads[name], "reduction", SMALL.terms, name=f"{name} of a broken {where}")


def test_what_overflows_in_the_transforms_alone(variant: Variant) -> None:
    case = make(SMALL)
    case.leaves["x"][1, 3, 4, 5] = 2.0**127
    case.leaves["weight"][:, 3] = 0.25
    case.upstream[1] = 0.25
    got, want = case.measured(torch.float32), expected(case)
    assert got.out.isfinite().all()
    assert_close(got.out, want.out, "reduction", SMALL.terms, name="out")
    for name, grad in got.grads.items():
        assert_close(grad, want.grads[name], "reduction", SMALL.terms, name=name)


@pytest.mark.parametrize("layer", [*LAYERS[1:3], *LAYERS[5:7]], ids=str)
def test_threads_give_the_same_bits(kernel_variant: Variant, layer: Layer, threads: None) -> None:
    assert_same_for_any_threads(layer)


def test_threads_give_the_same_bits_beside_a_nan(kernel_variant: Variant, threads: None) -> None:
    case, results = make(replace(LAYERS[5], norm=False, act="none")), []
    case.leaves["x"][2, 3, 4, 5] = math.nan
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        got = case.measured(torch.float32)
        results.append(Result(got.out.nan_to_num(), {k: v.nan_to_num() for k, v in got.grads.items()}, {}))
    for other in results[1:]:
        same_bits(other, results[0])


@pytest.mark.parametrize("layer", LAYERS[:4], ids=str)
def test_nothing_beside_the_outputs_is_written(kernel_variant: Variant, layer: Layer) -> None:
    case, module = make(layer), Flat(backend.implementation("conv2d", "cpu"))
    _, train, backward = (getattr(module, op.name().partition("::")[2]) for op in ops_of(layer))
    arguments, last = case.raw(torch.float32, False), backward_arguments(case, torch.float32, train)
    with Guarded() as guarded:
        train(*arguments, True)
        backward(*last)
    guarded.check()
