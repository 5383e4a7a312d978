# SPDX-License-Identifier: Apache-2.0
"""Memory whose address goes to native code: what is read is real, dense, aligned and in the machine's byte order.

Neither torch nor numpy is imported here: the caller's arrays bring theirs.
"""

from __future__ import annotations

from typing import Any


def check(op: str, arg: str, t: Any) -> None:
    """Raise where a torch tensor's elements are not all in memory.

    TypeError for a tensor without memory of its own (of a FakeTensorMode, of ``torch.func``, sparse, nested, not yet
    initialised), ValueError for one on the meta device, or whose storage was freed or ends before its last element.
    """
    try:
        if t.is_nested:
            raise RuntimeError
        elements, storage = t.numel(), t.untyped_storage()
        size = storage.nbytes()
        real = storage.device.type != "meta" and (elements == 0 or size == 0 or storage.data_ptr() != 0)
    except (NotImplementedError, RuntimeError, ValueError):  # what torch raises for a tensor that has no storage
        raise TypeError(f"{op}: {arg}: expected a dense tensor with memory, got {described(t)}") from None
    if t.is_meta:
        raise ValueError(f"{op}: {arg}: expected a tensor with memory, got one on meta")
    if not real:
        raise TypeError(f"{op}: {arg}: expected a dense tensor with memory, got {described(t)}")
    if elements == 0:
        return
    last = t.storage_offset()
    if t.is_contiguous():
        last += elements - 1
    else:
        last += sum((count - 1) * step for count, step in zip(t.shape, t.stride(), strict=True))
    if (last + 1) * t.element_size() > size:
        raise ValueError(
            f"{op}: {arg}: expected a tensor whose storage holds its elements, got {size} bytes for {described(t)}"
        )


LOWEST = 1 << 40
"""Addresses below are looked at twice: a tensor whose storage was freed has its offset alone for an address."""


def check_address(op: str, arg: str, t: Any) -> None:
    """As `check`, where the address alone tells that something is wrong, as of a tensor whose storage was freed."""
    if t.data_ptr() < LOWEST and t.numel():
        check(op, arg, t)


def _is_plain(t: Any) -> bool:
    """Whether a tensor is what `dense` gives, as almost all are: in a third of the time of its checks."""
    if (
        type(t).__name__ != "Tensor"
        or not t.is_cpu
        or not t.is_contiguous()
        or t.is_nested
        or t.is_neg()
        or t.is_conj()
    ):
        return False
    try:
        room = t.untyped_storage().nbytes() - t.storage_offset() * t.element_size()
        return bool(room >= t.nbytes > 0 and t.data_ptr() != 0)
    except (NotImplementedError, RuntimeError):
        return False


def dense(op: str, arg: str, t: Any) -> Any:
    """A torch tensor on the CPU as contiguous memory: itself, or a copy where strides or lazy signs ask for one.

    Raises as `check`, and ValueError for a tensor on another device.
    """
    if _is_plain(t):
        return t
    if not t.is_cpu:
        raise ValueError(f"{op}: {arg}: expected a tensor on the CPU, got one on {t.device}")
    check(op, arg, t)
    if t.is_neg() or t.is_conj():
        t = t.resolve_conj().resolve_neg()
    return t.contiguous()


def empty(torch: Any, op: str, shape: tuple[int, ...]) -> Any:
    """A new contiguous float32 tensor on the CPU, whatever torch's default dtype and device are.

    Raises RuntimeError inside a mode that makes tensors without memory.
    """
    t = torch.empty(shape, dtype=torch.float32, device="cpu")
    if type(t) is not torch.Tensor:
        raise RuntimeError(f"{op}: expected a call outside of modes whose tensors have no memory, got a {described(t)}")
    return t


def described(t: Any) -> str:
    """A tensor in words: "FakeTensor of shape (1, 3)"."""
    kind = type(t).__name__
    try:
        layout = str(t.layout).removeprefix("torch.")
        return f"{kind} of shape {tuple(t.shape)}" + ("" if layout == "strided" else f" and layout {layout}")
    except (NotImplementedError, RuntimeError):  # nested or not initialised
        return f"{kind} without one shape"


def dense_array(x: Any) -> Any:
    """A numpy array as contiguous, aligned memory in the machine's byte order: itself, or a copy."""
    if x.dtype.isnative and x.flags.c_contiguous and x.flags.aligned:
        return x
    import numpy as np

    return np.require(x, x.dtype.newbyteorder("="), ("C_CONTIGUOUS", "ALIGNED"))


def keep_pages() -> None:
    """Let the C library keep the memory of pictures for the next ones.

    glibc gives blocks above 128 KB back to the system as they are freed, until one was freed that is larger than those
    to come, and up to 32 MB. Each page that comes back costs up to 2 µs: 1.7 ms of 11 for a photo of 640x480.
    """
    import numpy as np

    np.empty(20 << 20, np.uint8)
