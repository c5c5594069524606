"""Tapes inside PyTorch: a reduced function as a function of tensors, or as a module, that torch differentiates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.autograd.forward_ad as forward_ad

from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, UnsupportedError
from pyadjoint_utils.evaluation import Evaluation
from pyadjoint_utils.inside.called import Inside
from pyadjoint_utils.inside.host_function import HostFunction
from pyadjoint_utils.registry import get_engine

Tensors = Sequence[torch.Tensor]

_transforming = torch._C._are_functorch_transforms_active
_get_dispatch_mode, _PROXY = torch._C._get_dispatch_mode, torch._C._TorchDispatchModeKey.PROXY
_is_tracing, _FakeTensor = torch._C._is_tracing, torch._subclasses.FakeTensor
_is_legacy = torch._C._functorch.is_legacy_batchedtensor
_is_wrapped, _unwrapped = torch._C._functorch.is_functorch_wrapped_tensor, torch._C._functorch.get_unwrapped


# One function from outside -----------------------------------------------------------------------------------------------


class _Rules(torch.autograd.Function):
    """The derivatives of a host function on tensors, which are host functions again and called in the same way."""

    @staticmethod
    def backward(ctx: Any, *yb: Any) -> Any:
        at, x = ctx.at, ctx.saved_tensors
        function = at.function
        outs = tuple([k for k in function.differentiable if yb[k] is not None])
        ins = tuple([i for i in function.active if ctx.needs_input_grad[i + 1]])
        xb: list[Any] = [None] * (len(x) + 1)
        if ins and outs:
            found = call(at.adjoint(ins, outs), [*x, *[yb[k] for k in outs]])
            for i, b in zip(ins, found, strict=True):
                xb[i + 1] = b if b.device == x[i].device else b.to(x[i].device)
        return tuple(xb)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        at, x, dx = ctx.at, ctx.saved_tensors, tangents[1:]
        function = at.function
        ins = tuple([i for i in function.active if dx[i] is not None])
        dy: list[Any] = [None] * len(function.outputs)
        if ins:
            found = call(at.tangent(ins), [*x, *[dx[i] for i in ins]])
            for k, d in zip(function.differentiable, found, strict=True):
                dy[k] = d
        return tuple(dy)


def _keep(ctx: Any, at: Evaluation, x: Tensors, y: Tensors) -> None:
    ctx.at = at
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*[a for k, a in enumerate(y) if k not in at.function.differentiable])
    ctx.save_for_backward(*x)
    ctx.save_for_forward(*x)


class _Eager(_Rules):
    """Without a transformation of ``torch.func`` around it; torch applies this form much faster."""

    @staticmethod
    def forward(ctx: Any, at: Evaluation, *x: torch.Tensor) -> Any:
        y = _legacy_batch(at.function, x) if any(map(_is_legacy, x)) else _evaluated(at, x)
        _keep(ctx, at, x, y)
        return y


class _Transformed(_Rules):
    """Inside transformations of ``torch.func``."""

    @staticmethod
    def forward(at: Evaluation, *x: torch.Tensor) -> Any:
        return _evaluated(at, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _keep(ctx, inputs[0], inputs[1:], output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, at: Evaluation, *x: torch.Tensor) -> Any:
        dims = in_dims[1:]
        marks = tuple([d is not None for d in dims])
        rows = [a if d is None else a.movedim(d, 0) for a, d in zip(x, dims, strict=True)]
        y = call(Evaluation(at.function.batched(marks, info.batch_size)), rows)
        return y, (0,) * len(y)


def call(at: Evaluation, x: Tensors) -> Tensors:
    """Call a host function on tensors of any transformation."""
    if _get_dispatch_mode(_PROXY) is not None or _is_tracing() or any(isinstance(a, _FakeTensor) for a in x):
        raise UnsupportedError(
            f"{at.function.name} computes outside of PyTorch, so that a trace would take its results for constants "
            "(make_fx, torch.func.linearize, torch.export, torch.jit.trace). Trace the code around it, or use "
            "torch.func.jvp; torch.compile leaves it out by itself."
        )
    return (_Transformed if _transforming() else _Eager).apply(at, *x)


def _evaluated(function: HostFunction | Evaluation, x: Tensors) -> tuple[torch.Tensor, ...]:
    # Arguments are other objects at every call: nothing is found that was kept for a tensor written to since. Results are
    # copies: PyTorch writes into its tensors (gradients accumulate in place), and engines share theirs.
    engine = get_engine("torch")
    if any(a.device.type != "cpu" for a in x):
        return tuple([y.to(x[0].device, copy=True) for y in function([a.detach() for a in x], engine)])
    # Other engines exchange arrays with NumPy much faster than with PyTorch.
    return tuple([engine.enter(np.array(y)) for y in function([engine.to_numpy(a) for a in x])])


def _legacy_batch(function: HostFunction, x: Tensors) -> tuple[torch.Tensor, ...]:
    """Evaluate within the older vmap, which ``torch.autograd.grad(..., is_grads_batched=True)`` uses."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    marks = tuple(map(_is_legacy, x))
    rows = [torch._remove_batch_dim(a, level, 1, 0) if marked else a for a, marked in zip(x, marks, strict=True)]
    if any(map(_is_legacy, rows)):
        raise UnsupportedError(f"{function.name} is in nested batches of torch.autograd. Use torch.func.vmap.")
    size = next(len(a) for a, marked in zip(rows, marks, strict=True) if marked)
    return tuple([torch._add_batch_dim(y, 0, level) for y in _evaluated(function.batched(marks, size), rows)])


# A reduced function ------------------------------------------------------------------------------------------------------


class TapeFunction:
    """A reduced function as a function of tensors; made by :func:`as_torch`."""

    def __init__(self, rf: Any) -> None:
        self.inside = Inside(rf, get_engine("torch"), "torch.func.vmap")

    def __call__(self, values: Any, inputs: Any = None) -> Any:
        return self.evaluate(self.inside.values(values, inputs))

    def __copy__(self) -> "TapeFunction":
        return self  # it has no state

    def __deepcopy__(self, memo: Any) -> "TapeFunction":
        return self

    def __reduce__(self) -> Any:
        raise self.inside.unsaved("Save module.state_dict()")

    def evaluate(self, values: Sequence[Any]) -> Any:
        """Return the outputs at one value per argument."""
        if torch.compiler.is_compiling():
            return torch.compiler.disable(self._evaluate)(values)
        return self._evaluate(values)

    def _evaluate(self, values: Sequence[Any]) -> Any:
        x = [self._tensor(k, value) for k, value in enumerate(values)]
        # In forward mode nothing is left to torch: a derivative of its forward formulas, and a forward derivative of its
        # reverse ones, is wrong for det, solve, layer_norm and others.
        y = self.inside.replay(x, lambda f, x: call(Evaluation(f), x), whole=forward_ad._current_level >= 0)
        return self.inside.delist(_own(y, [*x, *self.inside.constants.values()]))

    def _tensor(self, k: int, value: Any) -> torch.Tensor:
        engine = get_engine("torch")
        if not isinstance(value, torch.Tensor):
            value = engine.enter(self._numpy(k, value))
        self.inside.check(k, *engine.aval(value))
        return value

    def _numpy(self, k: int, value: Any) -> np.ndarray:
        if isinstance(value, (np.ndarray, np.generic)):
            return np.asarray(value)
        if type(value) in (bool, int, float, complex):
            return np.asarray(value, self.inside.arguments[k].dtype)
        raise ArgumentTypeError(
            f"{self.inside.names[k]} must be a torch.Tensor, a NumPy array or a number; got {type(value).__name__}. "
            "A value of the tape goes to the reduced function itself, or to overload_torch(as_torch(rf))."
        )


def _own(tensors: Tensors, others: list[Any]) -> list[torch.Tensor]:
    """The tensors, each in memory of its own: what the user does to one of them changes nothing else."""
    mine = []
    for t in tensors:
        mine.append(t.clone() if _is_view(t) or any(t is other for other in others) else t)
        others.append(t)
    return mine


def _is_view(t: torch.Tensor) -> bool:
    while _is_wrapped(t):
        t = _unwrapped(t)
    return t._is_view()


class TapeModule(torch.nn.Module):
    """A reduced function as a module, with some of its controls as parameters; made by :func:`as_torch`."""

    def __init__(self, function: TapeFunction, parameters: Mapping[str, int]) -> None:
        super().__init__()
        self._function, self._places = function, dict(parameters)
        inside = function.inside
        for name, k in parameters.items():
            if hasattr(self, name):
                raise ArgumentValueError(
                    f"Modules of PyTorch have an attribute {name!r}: give the parameter another name."
                )
            self.register_parameter(name, torch.nn.Parameter(inside.engine.copy(inside.recorded[k])))

    def forward(self, *values: Any, inputs: Any = None) -> Any:
        """Return the outputs at the parameters and at one value for each of the other controls."""
        return self._function.evaluate(self._function.inside.values_beside(self._own(), values, inputs))

    def _own(self) -> dict[int, torch.Tensor]:
        return {k: getattr(self, name) for name, k in self._places.items()}


def as_torch(rf: Any, *, parameters: Mapping[str, Any] | None = None) -> Any:
    """Return a reduced function as a function of PyTorch, which torch differentiates.

    Steps of PyTorch run in the caller's graph, the others are functions from outside. Reverse and forward mode, double
    backward, ``torch.func`` with ``vmap``, and gradients in batches work; ``torch.compile`` leaves the function out of its
    graph. The function is a snapshot: evaluations elsewhere and clearing the tape do not change it, and each call is
    differentiated at its own point.

    Args:
        rf: a :class:`ReducedFunction` or :class:`ReducedFunctional`; its callbacks are not called.
        parameters: names for controls that become the parameters of a ``torch.nn.Module``, as ``{"theta": control}``, and
            start at the values of the last evaluation; None for a function.

    Returns:
        ``f(values, inputs=None)`` with the signature and the lists of ``rf``; or a module that is called with the other
        controls' values one by one, ``module(*values, inputs=None)``. Values are tensors (or NumPy arrays, or numbers) of
        the recorded shapes and dtypes, outputs are tensors on the device of the values.

    Raises:
        ArgumentTypeError: something else than a reduced function; a control that is no array.
        ArgumentValueError: ``parameters`` names something else than controls, one control twice, or has a name that a
            module cannot take.
        NotDifferentiableError: an output has no derivative.
        StaleTapeError: the tape was cleared.

    Example:
        >>> import torch
        >>> from pyadjoint_utils import Control, ReducedFunction, array, as_torch
        >>> x = array([1.0, 2.0])
        >>> f = as_torch(ReducedFunction((x * x).sum(), Control(x)))
        >>> torch.func.grad(f)(torch.tensor([3.0, 4.0], dtype=torch.float64)).tolist()
        [6.0, 8.0]
    """
    function = TapeFunction(rf)
    if parameters is None:
        return function
    return TapeModule(function, function.inside.places(parameters))
