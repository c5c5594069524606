"""Forward mode of PyTorch: dual numbers, where they are right and not slow."""

import threading
from collections.abc import Iterable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bridges.torch_batches import generic
from pyadjoint_utils.engine import Arrays, Map

# There is one in the whole process, so threads take turns; who finds it taken differentiates twice in reverse mode.
dual_level = threading.Lock()


def is_dual(x: Any) -> bool:
    """Whether a tensor carries a tangent."""
    return isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None


def disjoint(x: torch.Tensor) -> torch.Tensor:
    """The tensor in memory of which dual numbers can be made."""
    # A dual number cannot be made of a tensor that stores one number for several entries, as expand() does.
    return x.contiguous() if 0 in x.stride() else x


def push_forward(f: Map, x: Arrays, c: Arrays, n: int) -> Arrays | None:
    """Run on dual numbers; None if a dual level is in use already, by an outer map, the user or another thread."""
    if not dual_level.acquire(blocking=False):
        return None
    try:
        try:
            level = forward_ad.enter_dual_level()
        except RuntimeError:
            return None
        try:
            # Inside autograd.Function.forward torch switches forward mode off and returns no tangent.
            with forward_ad._set_fwd_grad_enabled(True):
                return _on_duals(f, x, c, n)
        finally:
            forward_ad.exit_dual_level(level=level)
    finally:
        dual_level.release()


def _on_duals(f: Map, x: Arrays, c: Arrays, n: int) -> Arrays:
    """``(*y, *dy)`` by dual numbers; the caller has entered the level."""
    duals = tuple([forward_ad.make_dual(disjoint(p), t) for p, t in zip(x[:n], x[n:], strict=True)])
    pairs = [forward_ad.unpack_dual(y) for y in f(duals, c)]
    dy = [torch.zeros_like(pair.primal) if pair.tangent is None else pair.tangent for pair in pairs]
    return (*[pair.primal for pair in pairs], *dy)


def _inner(a: Iterable[torch.Tensor], b: Iterable[torch.Tensor]) -> tuple[float, float]:
    """``Re<a, b>``, and the size of what was summed."""
    products = [(x.conj() * y).real.to(torch.float64) for x, y in zip(a, b, strict=True)]
    return sum([float(p.sum()) for p in products]), sum([float(p.abs().sum()) for p in products])


def forward_serves(f: Map, x: Arrays, c: Arrays, n: int, vjp: Map) -> bool | None:
    """Whether forward mode is right and not slow, by comparing ``<J dx, u>`` with ``<dx, J^H u>`` once.

    Some of torch's forward formulas are missing, some are wrong.

    Returns:
        None if a dual level is in use, so that nothing can be said yet.
    """
    x = x[:n]
    dx = tuple([generic(t, k) for k, t in enumerate(x)])
    work = _Work()
    try:
        with work:
            result = push_forward(f, (*x, *dx), c, n)
    except NotImplementedError:
        return False
    if result is None:
        return None
    y, dy = result[: len(result) // 2], result[len(result) // 2 :]
    u = tuple([generic(t, k) for k, t in enumerate(y)])
    try:
        xb = vjp((*x, *u), c)
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        return True  # there is no reverse formula to compare with
    (a, size), (b, other) = _inner(dy, u), _inner(dx, xb)
    eps = max([torch.finfo(t.dtype).eps for t in (*x, *y)], default=0.0)
    # Not the negation of >, so that a NaN is left to the reverse formulas.
    return abs(a - b) <= eps**0.5 * max(size, other) and not work.slow


class _Work(TorchDispatchMode):
    """Counts what a run in forward mode does."""

    def __init__(self) -> None:
        super().__init__()
        self._in_python = self._numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        self._in_python += func.namespace == "prims"
        self._numbers += sum(t.numel() for t in tree_leaves(y) if isinstance(t, torch.Tensor))
        return y

    @property
    def slow(self) -> bool:
        """Whether two sweeps back take less time."""
        # What an operation does with the tangent of a constant, a symbol for zeros, torch works out in Python. That takes
        # about as long as computing so many numbers.
        return self._in_python * 100_000 > self._numbers
