# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence
from types import ModuleType

from typing_extensions import Buffer

compiler: str
cuda: ModuleType | None

def isa() -> str: ...
def set_isa(name: str) -> None: ...
def isas(only_supported: bool = False) -> list[str]: ...
def kernels() -> dict[str, dict[str, int]]: ...
def openmp_runtime() -> str: ...
def huge_empty(f64: bool, shape: list[int], strides: list[int]) -> object: ...
def release_memory() -> None: ...
def activation_fwd(wide: bool, x: int, y: int, count: int, act: int, threads: int) -> None: ...
def activation_bwd(wide: bool, dy: int, x: int, dx: int, count: int, act: int, threads: int) -> None: ...
def update_running(wide: bool, channels: int, stats: int, mean: int, var: int, momentum: float) -> None: ...
def inverted_bottleneck_fwd(
    wide: bool, train: bool, shape: list[int], x: int, weights: list[int], norms: list[list[int]], eps: list[float],
    act: int, batch_stats: bool, residual: bool, result: int, y1: int, y2: int, covariance: int, threads: int,
) -> None: ...  # fmt: skip
def inverted_bottleneck_bwd(
    wide: bool, shape: list[int], dout: int, x: int, y1: int, y2: int, covariance: int, weights: list[int],
    norms: list[list[int]], act: int, batch_stats: bool, residual: bool, dx: int, d_weights: list[int], threads: int,
) -> None: ...  # fmt: skip
def depthwise_conv2d_fwd(wide: bool, shape: list[int], x: int, w: int, bias: int, y: int, threads: int) -> None: ...
def depthwise_conv2d_bwd(
    wide: bool, shape: list[int], dy: int, x: int, w: int, dx: int, dw: int, db: int, threads: int
) -> None: ...
def depthwise_norm_fwd(
    wide: bool, train: bool, shape: list[int], x: int, weight: int, bias: int, norm: list[int], eps: float, act: int,
    batch_stats: bool, out: int, y: int, threads: int, link: list[int],
) -> None: ...  # fmt: skip
def depthwise_norm_bwd(
    wide: bool, shape: list[int], dout: int, x: int, y: int, weight: int, norm: list[int], act: int, batch_stats: bool,
    dx: int, d_weight: int, d_bias: int, threads: int, link: list[int],
) -> None: ...  # fmt: skip
def pointwise_conv2d_fwd(
    wide: bool, rows: int, inputs: int, outputs: int, x: int, w: int, bias: int, y: int, threads: int
) -> None: ...
def pointwise_conv2d_bwd(
    wide: bool, rows: int, inputs: int, outputs: int, dy: int, x: int, w: int, dx: int, dw: int, db: int, threads: int
) -> None: ...
def separable_conv2d_fwd(
    wide: bool, train: bool, shape: list[int], outputs: int, x: int, dw: int, dw_bias: int, norm1: list[int],
    eps1: float, act1: int, pw: int, pw_bias: int, norm2: list[int], eps2: float, act2: int, batch_stats: bool,
    out: int, y1: int, y2: int, threads: int, link: list[int],
) -> None: ...  # fmt: skip
def separable_conv2d_bwd(
    wide: bool, shape: list[int], outputs: int, dout: int, x: int, y1: int, y2: int, dw: int, norm1: list[int],
    act1: int, pw: int, norm2: list[int], act2: int, batch_stats: bool, dx: int, d_dw: int, d_dw_bias: int, d_pw: int,
    d_pw_bias: int, threads: int, link: list[int],
) -> None: ...  # fmt: skip
def max_pool2d_fwd(wide: bool, shape: list[int], x: int, y: int, positions: int, threads: int) -> None: ...
def max_pool2d_bwd(wide: bool, shape: list[int], dy: int, positions: int, dx: int, threads: int) -> None: ...
def global_avg_pool_fwd(
    wide: bool, n: int, pixels: int, channels: int, x: int, avg: int, max: int, positions: int, threads: int
) -> None: ...
def global_avg_pool_bwd(
    wide: bool, n: int, pixels: int, channels: int, davg: int, dmax: int, positions: int, dx: int, threads: int
) -> None: ...
def global_max_pool_fwd(
    wide: bool, n: int, pixels: int, channels: int, x: int, avg: int, max: int, positions: int, threads: int
) -> None: ...
def global_max_pool_bwd(
    wide: bool, n: int, pixels: int, channels: int, davg: int, dmax: int, positions: int, dx: int, threads: int
) -> None: ...
def global_avg_max_pool_fwd(
    wide: bool, n: int, pixels: int, channels: int, x: int, avg: int, max: int, positions: int, threads: int
) -> None: ...
def global_avg_max_pool_bwd(
    wide: bool, n: int, pixels: int, channels: int, davg: int, dmax: int, positions: int, dx: int, threads: int
) -> None: ...
def conv2d_fwd(
    wide: bool, train: bool, shape: list[int], x: int, weight: int, bias: int, norm: list[int], eps: float, act: int,
    batch_stats: bool, out: int, y: int, threads: int, pool: list[int], best: int, positions: int, link: list[int],
) -> None: ...  # fmt: skip
def conv2d_bwd(
    wide: bool, shape: list[int], dout: int, x: int, y: int, weight: int, norm: list[int], act: int, batch_stats: bool,
    dx: int, d_weight: int, d_bias: int, threads: int, pool: list[int], best: int, positions: int, link: list[int],
) -> None: ...  # fmt: skip
def batch_norm_fwd(
    wide: bool, train: bool, rows: int, channels: int, x: int, norm: list[int], eps: float, act: int,
    batch_stats: bool, out: int, threads: int,
) -> None: ...  # fmt: skip
def batch_norm_bwd(
    wide: bool, rows: int, channels: int, dout: int, x: int, norm: list[int], act: int, batch_stats: bool, dx: int,
    threads: int,
) -> None: ...  # fmt: skip
def cbam_fwd(
    wide: bool, train: bool, shape: list[int], channel: list[int], spatial: list[int], eps: float, batch_stats: bool,
    saved: list[int], out: int, threads: int,
) -> None: ...  # fmt: skip
def cbam_bwd(
    wide: bool, shape: list[int], channel: list[int], spatial: list[int], batch_stats: bool, saved: list[int],
    dout: int, grads: list[int], threads: int,
) -> None: ...  # fmt: skip
def channel_gate_fwd(
    wide: bool, train: bool, shape: list[int], channel: list[int], spatial: list[int], eps: float, batch_stats: bool,
    saved: list[int], out: int, threads: int,
) -> None: ...  # fmt: skip
def channel_gate_bwd(
    wide: bool, shape: list[int], channel: list[int], spatial: list[int], batch_stats: bool, saved: list[int],
    dout: int, grads: list[int], threads: int,
) -> None: ...  # fmt: skip
def spatial_gate_fwd(
    wide: bool, train: bool, shape: list[int], channel: list[int], spatial: list[int], eps: float, batch_stats: bool,
    saved: list[int], out: int, threads: int,
) -> None: ...  # fmt: skip
def spatial_gate_bwd(
    wide: bool, shape: list[int], channel: list[int], spatial: list[int], batch_stats: bool, saved: list[int],
    dout: int, grads: list[int], threads: int,
) -> None: ...  # fmt: skip
def cpsca_pool_fwd(wide: bool, shape: list[int], x: int, out: list[int], threads: int) -> None: ...
def cpsca_pool_bwd(wide: bool, shape: list[int], grads: list[int], x: int, dx: int, threads: int) -> None: ...
def coordinate_attention_fwd(
    wide: bool, train: bool, shape: list[int], x: int, params: list[int], norm: list[int], eps: float,
    batch_stats: bool, out: int, saved: list[int], threads: int,
) -> None: ...  # fmt: skip
def coordinate_attention_bwd(
    wide: bool, shape: list[int], dout: int, x: int, saved: list[int], params: list[int], norm: list[int],
    batch_stats: bool, dx: int, d_params: list[int], threads: int,
) -> None: ...  # fmt: skip
def gate_fwd(
    wide: bool,
    train: bool,
    shape: list[int],
    x: int,
    params: list[int],
    out: int,
    means: int,
    pixels: int,
    threads: int,
    link: list[int],
) -> None: ...
def gate_bwd(
    wide: bool, shape: list[int], dout: int, x: int, means: int, pixels: int, params: list[int], dx: int,
    d_params: list[int], threads: int, link: list[int],
) -> None: ...  # fmt: skip
def dot_product_attention_fwd(
    wide: bool, batch: int, queries: int, keys: int, depth: int, width: int, q: int, k: int, v: int, scale: int,
    factor: float, out: int, stats: int, threads: int,
) -> None: ...  # fmt: skip
def dot_product_attention_bwd(
    wide: bool, batch: int, queries: int, keys: int, depth: int, width: int, dout: int, q: int, k: int, v: int,
    scale: int, factor: float, out: int, stats: int, dq: int, dk: int, dv: int, dscale: int, threads: int,
) -> None: ...  # fmt: skip
def additive_attention_fwd(
    wide: bool, batch: int, tokens: int, dim: int, hidden: int, x: int, h: int, weight: int, bias: int, v: int,
    v_bias: int, out: int, u: int, weights: int, threads: int,
) -> None: ...  # fmt: skip
def additive_attention_bwd(
    wide: bool, batch: int, tokens: int, dim: int, hidden: int, dout: int, x: int, h: int, weight: int, v: int, u: int,
    weights: int, dx: int, dh: int, d_weight: int, d_bias: int, d_v: int, d_v_bias: int, threads: int,
) -> None: ...  # fmt: skip
def first_outside(labels: int, count: int, classes: int) -> int: ...
def center_loss_fwd(
    wide: bool, count: int, dim: int, classes: int, features: int, labels: int, centers: int, loss: int, threads: int
) -> None: ...
def center_loss_bwd(
    wide: bool, count: int, dim: int, classes: int, dloss: int, features: int, labels: int, centers: int,
    d_features: int, d_centers: int, threads: int,
) -> None: ...  # fmt: skip
def triplet_loss_fwd(
    wide: bool, count: int, dim: int, features: int, labels: int, margin: float, loss: int, pairs: int, slopes: int,
    threads: int,
) -> None: ...  # fmt: skip
def triplet_loss_bwd(
    wide: bool, count: int, dim: int, dloss: int, features: int, pairs: int, slopes: int, d_features: int, threads: int
) -> None: ...
def cross_entropy_fwd(
    wide: bool, count: int, classes: int, logits: int, labels: int, targets: int, weight: int, smoothing: float,
    loss: int, d_logits: int, threads: int,
) -> None: ...  # fmt: skip
def engine_checksum(data: Buffer) -> int: ...
def engine_ops() -> list[tuple[str, int, int, list[str], list[str]]]: ...
def engine_output_shape(
    op: str, inputs: Sequence[tuple[int, int, int]], attrs: Sequence[int], weights: Sequence[int]
) -> tuple[int, int, int]: ...
def engine_spin(microseconds: int) -> None: ...

class EnginePlan:
    def __init__(
        self, file: Buffer, threads: int = 1, dtype: str = "float32", isa: str = "auto", scale: list[float] = ...,
        shift: list[float] = ..., image_threads: int = 0, strict: bool = False, apart: bool = False,
    ) -> None: ...  # fmt: skip
    def run(self, images: int, dtype: str, batch: int, outputs: list[int]) -> None: ...
    def profile(self, image: int, dtype: str, repeats: int = 20) -> list[tuple[str, int, float, float, float, int]]: ...
    def ranges(self, images: int, dtype: str, batch: int) -> list[tuple[float, float]]: ...
    @property
    def metadata(self) -> bytes: ...
    @property
    def input(self) -> tuple[int, int, int]: ...
    @property
    def outputs(self) -> list[tuple[int, int, int]]: ...
    @property
    def threads(self) -> int: ...
    @property
    def image_threads(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
