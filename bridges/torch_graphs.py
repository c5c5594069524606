"""Reverse mode on torch's graphs: adjoints, with the value in one run, or later from the graph that a run has left."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bridges.torch_kernels import plain_kernels
from pyadjoint_utils.engine import Arrays, Map
from pyadjoint_utils.errors import NotDifferentiableError

_grad_enabled = torch.is_grad_enabled
_set_grad_enabled = torch._C._set_grad_enabled  # torch.no_grad() costs as much as a small operation


def with_grad_mode(mode: bool, f: Callable[..., Any]) -> Callable[..., Any]:
    """Run with autograd's recording on or off, whatever the caller's mode."""

    @functools.wraps(f)
    def call(*args: Any) -> Any:
        before = _grad_enabled()
        _set_grad_enabled(mode)
        try:
            return f(*args)
        finally:
            _set_grad_enabled(before)

    return call


def require_grad(arrays: Iterable[Any]) -> bool:
    """Whether a tensor among these belongs to a graph."""
    return any(isinstance(t, torch.Tensor) and t.requires_grad for t in arrays)


def vjp_of(f: Map, n: int) -> Map:
    """See :meth:`pyadjoint_utils.Engine.vjp_of`."""
    return _checked_once(lambda x, c: _Graph(f, x[:n], c, require_grad((*x, *c))).pull_back(x[n:]))


def value_and_vjp_of(f: Map, n: int, outs: Sequence[int]) -> Map:
    """See :meth:`pyadjoint_utils.Engine.value_and_vjp_of`."""

    def value_and_vjp(x: Arrays, c: Arrays) -> Arrays:
        graph = _Graph(f, x[:n], c, require_grad((*x, *c)))
        return (*graph.outputs, *graph.pull_back(x[n:], outs))

    return _checked_once(value_and_vjp)


def split_vjp_of(f: Map, n: int, outs: Sequence[int]) -> tuple[Map, Map]:
    """See :meth:`pyadjoint_utils.Engine.split_vjp_of`; what is kept is the graph, for one adjoint."""

    def forward(x: Arrays, c: Arrays) -> Arrays:
        graph = _Graph(f, x[:n], c, nested=False)
        return (*graph.outputs, graph)

    return _checked_once(forward), lambda yb, kept: kept[0].pull_back(yb, outs)


def jvp_of(f: Map, n: int) -> Map:
    """See :meth:`pyadjoint_utils.Engine.jvp_of`: ``J dx`` is the gradient, by ``u``, of ``<J^H u, dx>``."""

    def jvp(x: Arrays, c: Arrays) -> Arrays:
        graph = _Graph(f, x[:n], c, nested=True)
        u = tuple([torch.ones_like(y).requires_grad_() for y in graph.outputs])
        return (*graph.outputs, *_filled(_gradients(graph.pull_back(u), u, x[n:]), u))

    return _checked_once(jvp)


def hvp_of(f: Map, n: int, m: int) -> Map:
    """See :meth:`pyadjoint_utils.Engine.hvp_of`."""

    def hvp(x: Arrays, c: Arrays) -> Arrays:
        xb, pull_back = _recorded_adjoint(f, x[:n], x[n : n + m], c)
        return (*xb, *pull_back(x[n + m : 2 * n + m], x[2 * n + m :]))

    return _checked_once(hvp)


def vjp_tangent_of(f: Map, n: int, m: int) -> Map:
    """See :meth:`pyadjoint_utils.Engine.vjp_tangent_of`."""

    def vjp_tangent(x: Arrays, c: Arrays) -> Arrays:
        _, pull_back = _recorded_adjoint(f, x[:n], c[:m], c[m:])
        return pull_back(x[n:], ())

    return _checked_once(vjp_tangent)


def _recorded_adjoint(f: Map, x: Arrays, yb: Arrays, c: Arrays) -> tuple[Arrays, Callable[[Arrays, Arrays], Arrays]]:
    """Return the adjoint, and the function ``(dx, dyb) -> dxb`` of its derivative."""
    seeds = tuple([_leaf(b) for b in yb])
    graph = _Graph(f, x, c, nested=True)
    xb = graph.pull_back(seeds)

    def pull_back(dx: Arrays, dyb: Arrays) -> Arrays:
        # Second derivatives are symmetric: d(J^H yb) along dx is the gradient of <J^H yb, dx>.
        return _filled(_gradients((*xb, *graph.outputs[: len(dyb)]), graph.leaves, (*dx, *dyb)), graph.leaves)

    return xb, pull_back


class _Graph:
    """Outputs of a map, and torch's graph of how they were computed, which lasts for one adjoint.

    Args:
        f: the map.
        primals: what it is differentiated by.
        c: its constants.
        nested: whether an outer map differentiates the adjoint in reverse mode.
    """

    def __init__(self, f: Map, primals: Arrays, c: Arrays, nested: bool) -> None:
        self.leaves, self._nested = tuple([_leaf(x) for x in primals]), nested
        with plain_kernels() if nested else contextlib.nullcontext():
            self.outputs = f(self.leaves, c)

    def pull_back(self, seeds: Arrays, outs: Sequence[int] | None = None) -> Arrays:
        """Return the adjoint for seeds of the outputs, of all if ``outs`` names none."""
        outputs = self.outputs if outs is None else tuple([self.outputs[k] for k in outs])
        xb = _gradients(outputs, self.leaves, seeds, create_graph=self._nested)
        if self._nested and require_grad(seeds):
            _check_linear(xb)
        return _filled(xb, self.leaves)


def _gradients(outputs: Arrays, leaves: Arrays, seeds: Arrays, *, create_graph: bool = False) -> list[Any]:
    """The gradient of ``<outputs, seeds>`` by leaves, None by what has no part in it."""
    live = [(y, yb) for y, yb in zip(outputs, seeds, strict=True) if y.requires_grad]
    if not live:
        return [None] * len(leaves)
    y, yb = zip(*live, strict=True)
    return list(torch.autograd.grad(y, leaves, yb, create_graph=create_graph, allow_unused=True))


def _filled(gradients: Sequence[Any], leaves: Arrays) -> Arrays:
    return tuple([torch.zeros_like(x) if b is None else b for x, b in zip(leaves, gradients, strict=True)])


def _leaf(x: torch.Tensor) -> torch.Tensor:
    """A variable to differentiate by, still linked to an outer graph and carrying an outer tangent."""
    alias = x.view_as(x)
    return alias if alias.requires_grad else alias.requires_grad_()


def _checked_once(f: Map) -> Map:
    """A map with a graph of its own that refuses, at the first call, what would drop derivatives."""
    recorded = with_grad_mode(True, f)
    checked = False

    def call(x: Arrays, c: Arrays) -> Arrays:
        nonlocal checked
        if checked:
            return recorded(x, c)
        with _Leaving():
            y = recorded(x, c)
        checked = True
        return y

    return call


def _check_linear(xb: Sequence[torch.Tensor | None]) -> None:
    """A VJP is linear in its seed: a result without a link to it, other than zero, has been cut off on the way."""
    for b in xb:
        if b is not None and not b.requires_grad and b.detach().any():
            raise NotDifferentiableError(
                "The backward of a torch.autograd.Function computes outside of torch (or detaches), so that its own "
                "derivative would be lost. Write it with torch operations, or mark it once_differentiable and stay at "
                "first order."
            )


class _Leaving(TorchFunctionMode):
    """Refuses to turn a tensor that is being differentiated into a Python number, which drops its derivative silently."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _COPIES and not isinstance(args[0], torch.Tensor) and require_grad(tree_leaves(args[0])):
            raise NotDifferentiableError(
                f"torch.{func.__name__} copies numbers out of tensors that are differentiated, which would lose their "
                "derivative. Write torch.stack([...])."
            )
        if func in _NUMBERS and args[0].requires_grad:
            raise NotDifferentiableError(
                f"An overloaded function takes a number out of a tensor that is differentiated (Tensor.{func.__name__}), "
                "which would lose its derivative. Compute with the tensor itself; where the number is meant as a "
                "constant, write x.detach().item()."
            )
        return func(*args, **(kwargs or {}))


_COPIES = {torch.tensor, torch.as_tensor, torch.asarray}
_NUMBERS = {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__float__, torch.Tensor.__int__}
