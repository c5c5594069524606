"""PyTorch: eager maps over ``torch.autograd``, reverse mode with a tape of its own and forward mode with dual numbers."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.autograd.forward_ad as forward_ad
import torch.utils.checkpoint

from bridges.torch_batches import batch_of
from bridges.torch_duals import disjoint, dual_level, forward_serves, is_dual, push_forward
from bridges.torch_functions import FUNCTIONS
from bridges.torch_graphs import (
    hvp_of,
    jvp_of,
    require_grad,
    split_vjp_of,
    value_and_vjp_of,
    vjp_of,
    vjp_tangent_of,
    with_grad_mode,
)
from bridges.torch_inside import as_torch
from bridges.torch_kernels import ONE_AT_A_TIME
from bridges.torch_modules import OverloadedModule, random_state, set_random_state
from pyadjoint_utils.engine import Arrays, Aval, Engine, Map
from pyadjoint_utils.errors import (
    ArgumentTypeError,
    ImmutableError,
    MissingEngineError,
    UnsupportedError,
)
from pyadjoint_utils.overloading import overload
from pyadjoint_utils.registry import FEW

_NAMES = ("bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64 complex64 complex128").split()
_TO_NUMPY: dict[torch.dtype, np.dtype] = {getattr(torch, name): np.dtype(name) for name in _NAMES}
_TO_TORCH: dict[np.dtype, torch.dtype] = {dtype: ours for ours, dtype in _TO_NUMPY.items()}
_PLAIN = frozenset(_TO_TORCH)
_COMMON = frozenset([torch.float32, torch.float64, torch.complex64, torch.complex128])
# Dtypes that NumPy lacks travel through it as integers of their width.
_CARRIERS = {1: torch.uint8, 2: torch.int16}


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    found = _TO_NUMPY.get(dtype)
    return _foreign_dtype(dtype) if found is None else found


def _foreign_dtype(dtype: torch.dtype) -> np.dtype:
    """Learn a dtype that NumPy has only with the package ml_dtypes, such as bfloat16."""
    name = str(dtype).removeprefix("torch.")
    try:
        found = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
    except ModuleNotFoundError as error:
        raise MissingEngineError(
            f"NumPy has no dtype {name}; the package 'ml_dtypes' brings it (pip install ml_dtypes). "
            "Or cast first: tensor.float()."
        ) from error
    except AttributeError as error:
        raise ArgumentTypeError(
            f"NumPy has no dtype for {dtype}. Cast the tensor first, for example tensor.float()."
        ) from error
    _TO_NUMPY[dtype], _TO_TORCH[found] = found, dtype
    return found


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    found = _TO_TORCH.get(dtype)
    if found is None:
        found = getattr(torch, dtype.name, None)
        if not isinstance(found, torch.dtype):
            raise ArgumentTypeError(f"PyTorch has no dtype {dtype}. Cast the array first, for example to float64.")
        _numpy_dtype(found)
    return found


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    dtype = _torch_dtype(array.dtype.newbyteorder("="))
    if not array.dtype.isnative or any(s < 0 or s % array.itemsize for s in array.strides):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    if array.dtype not in _PLAIN:
        carrier = array.view(_TO_NUMPY[_CARRIERS[array.itemsize]])
        return _from_numpy(carrier).view(dtype)
    # from_numpy warns about read-only memory, though nobody writes to a value on the tape.
    return torch.from_numpy(array) if array.flags.writeable else torch.from_dlpack(array)


def _astype(x: torch.Tensor, dtype: Any) -> torch.Tensor:
    return x.to(_torch_dtype(np.dtype(dtype)))


def _settled(array: torch.Tensor) -> torch.Tensor:
    """An alias outside any autograd graph, without a lazy conjugation or negation."""
    return array.detach().resolve_conj().resolve_neg()


# What maps are made of ---------------------------------------------------------------------------------------------------

_transforming = torch._C._are_functorch_transforms_active


def _is_nested(x: Arrays, c: Arrays) -> bool:
    """Whether an outer map or a transformation differentiates what is done with these arrays."""
    return _transforming() or forward_ad._current_level >= 0 or require_grad((*x, *c))


def _first_run(f: Map, x: Arrays, c: Arrays) -> Arrays:
    """Run once on copies, and refuse what could not be replayed."""
    copies = [tuple([t.clone() if isinstance(t, torch.Tensor) else t for t in arrays]) for arrays in (x, c)]
    states = random_state()
    y = f(*copies)
    if not all(map(torch.equal, states, random_state())):
        set_random_state(states)
        raise UnsupportedError(
            "An overloaded function draws from torch's global random generator, so that every replay would compute "
            "something else. Draw outside and pass the numbers as an argument, or use a torch.Generator that is seeded "
            "inside the function. (overload_torch of a torch.nn.Module replays dropout with the recorded state.)"
        )
    if any(map(_changed, (*copies[0], *copies[1]), (*x, *c))):
        raise ImmutableError(
            "An overloaded function changes an argument in place, which would change a value on the tape. "
            "Write x = x + 1 for x += 1, or start with x = x.clone()."
        )
    return y


def _changed(copy: Any, original: Any) -> bool:
    # batch_norm changes its running statistics without telling their version counter.
    if not isinstance(copy, torch.Tensor):
        return False
    return bool(copy._version) or not bool(((copy == original) | (copy != copy)).all())


def _concrete(array: Any) -> Any:
    """What a map may compute on: no link to the user's graph, and nothing that autograd may not save."""
    if isinstance(array, torch.Tensor):
        if array.is_inference():
            return array.detach().clone()
        if array.requires_grad:
            return array.detach()
    return array


class TorchEngine(Engine):
    """PyTorch tensors and ``torch.autograd``."""

    name = "torch"
    array_types = (torch.Tensor, torch.nn.Parameter)

    def enter(self, source: Any, dtype: np.dtype | None = None) -> Any:
        array = _from_numpy(source) if isinstance(source, np.ndarray) else torch.from_dlpack(source)
        return array if dtype is None or _torch_dtype(dtype) == array.dtype else self.cast(array, dtype)

    def export(self, array: Any) -> Any:
        if array.is_cpu and array.numel() <= FEW and array.dtype in _COMMON:
            return array.numpy(force=True)  # others take it in less time than they ask for torch's memory
        return _settled(array).contiguous()

    def to_numpy(self, array: Any) -> np.ndarray:
        if array.layout != torch.strided:
            raise ArgumentTypeError(f"A tensor of layout {array.layout} is no dense array. Write tensor.to_dense().")
        dtype = _numpy_dtype(array.dtype)
        if dtype not in _PLAIN:
            return array.detach().view(_CARRIERS[dtype.itemsize]).numpy(force=True).view(dtype)
        return array.numpy(force=True)

    def aval(self, array: Any) -> Aval:
        return Aval(tuple(array.shape), _numpy_dtype(array.dtype))

    def copy(self, array: Any) -> Any:
        return array.detach().clone().resolve_conj().resolve_neg()

    def cast(self, array: Any, dtype: np.dtype) -> Any:
        return array.detach().to(_torch_dtype(np.dtype(dtype)))

    def number(self, value: complex, dtype: np.dtype) -> Any:
        # Beside tensors a Python number neither promotes their dtype nor fails as a size or a dim.
        return value

    def zeros(self, aval: Aval, like: Any = None) -> Any:
        return torch.zeros(aval.shape, dtype=_torch_dtype(aval.dtype), device=None if like is None else like.device)

    def beside(self, array: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return array if array.device == like.device else array.to(like.device)

    def outputs_of(self, f: Callable[[Arrays], Arrays], inputs: Sequence[Aval]) -> tuple[Aval, ...]:
        empty = [torch.empty(aval.shape, dtype=_torch_dtype(aval.dtype), device="meta") for aval in inputs]
        return tuple([self.aval(y) for y in f(tuple(empty))])

    def is_tracer(self, leaf: Any) -> bool:
        """Tensors of a running transformation, and those in a graph of the user's own, Parameters included."""
        return isinstance(leaf, torch.Tensor) and (
            leaf.requires_grad
            or _transforming()
            or isinstance(leaf, torch._subclasses.FakeTensor)
            or torch.compiler.is_compiling()
            or is_dual(leaf)
        )

    def vjp_of(self, f: Map, n: int) -> Map:
        pull_back = vjp_of(f, n)

        def vjp(x: Arrays, c: Arrays) -> Arrays:
            if _transforming():
                return torch.func.vjp(lambda *x: f(x, c), *x[:n])[1](tuple(x[n:]))
            return pull_back(x, c)

        return vjp

    def value_and_vjp_of(self, f: Map, n: int, outs: Sequence[int]) -> Map:
        together, apart = value_and_vjp_of(f, n, outs), super().value_and_vjp_of(f, n, outs)
        return lambda x, c: (apart if _transforming() else together)(x, c)

    def split_vjp_of(self, f: Map, n: int, outs: Sequence[int]) -> tuple[Map, Map]:
        return split_vjp_of(f, n, outs)

    def hvp_of(self, f: Map, n: int, m: int) -> Map:
        graphs, nested = hvp_of(f, n, m), super().hvp_of(f, n, m)
        return lambda x, c: (nested if _is_nested(x, c) else graphs)(x, c)

    def vjp_tangent_of(self, f: Map, n: int, m: int) -> Map:
        graphs, nested = vjp_tangent_of(f, n, m), super().vjp_tangent_of(f, n, m)
        return lambda x, c: (nested if _is_nested(x, c) else graphs)(x, c)

    def jvp_of(self, f: Map, n: int) -> Map:
        forward: bool | None = None  # whether forward mode is right, and fast; unknown before the first call
        pull_back, twice_back = self.vjp_of(f, n), jvp_of(f, n)

        def jvp(x: Arrays, c: Arrays) -> Arrays:
            nonlocal forward
            if _transforming():
                # Inside of dual numbers of ours a transformation cannot make its own.
                if forward is False or dual_level.locked():
                    return self._transposed(f, x, c, n)
                x = tuple([disjoint(t) for t in x])
                y, dy = torch.func.jvp(lambda *x: f(x, c), x[:n], x[n:])
                return (*y, *dy)
            # Torch's forward formulas are not to be differentiated again: several drop a term then, without a word.
            # Its reverse ones are, so what is nested in an outer map is the transposed VJP.
            if _is_nested(x, c):
                return self._transposed(f, x, c, n)
            if forward is None:
                forward = forward_serves(f, x, c, n, pull_back)
            result = push_forward(f, x, c, n) if forward else None
            return twice_back(x, c) if result is None else result

        return jvp

    def _transposed(self, f: Map, x: Arrays, c: Arrays, n: int) -> Arrays:
        """``J dx`` as the VJP, in ``u``, of the linear map ``u -> J^H u``."""
        y = f(x[:n], c)
        pull_back = self.vjp_of(f, n)
        transposed = self.vjp_of(lambda u, xc: pull_back((*xc[:n], *u), xc[n:]), len(y))
        dy = transposed((*[torch.ones_like(v) for v in y], *x[n:]), (*x[:n], *c))
        return (*y, *dy)

    def batch_of(self, f: Map, batched: Sequence[bool]) -> Map:
        return batch_of(f, batched, super().batch_of(f, batched))

    def compile(self, f: Map, avals: Sequence[Aval]) -> Map:
        base = with_grad_mode(False, f)
        checked = False

        def run(x: Arrays, c: Arrays) -> Arrays:
            nonlocal checked
            if _transforming():
                return f(x, c)
            if torch.is_inference_mode_enabled():
                with torch.inference_mode(False):
                    return run(x, c)
            x, c = tuple([_concrete(t) for t in x]), tuple([_concrete(t) for t in c])
            y = base(x, c) if checked else _first_run(base, x, c)
            checked = True
            return tuple([_concrete(t) for t in y])

        return run

    def checkpoint(self, f: Map) -> Map:
        def remade(x: Arrays, c: Arrays) -> Arrays:
            if any(is_dual(t) for t in (*x, *c)):
                # Recomputed after the dual level has been left, the tangents' part of the graph would be missing.
                return f(x, c)
            # The random state needs no keeping: functions that draw are refused, modules bring their own.
            return torch.utils.checkpoint.checkpoint(f, x, c, use_reentrant=False, preserve_rng_state=False)

        return remade

    def stop(self, array: Any) -> Any:
        return array.detach()

    def compiler(self, name: str) -> Any:
        return _compiler(name)

    def function(self, name: str) -> Callable[..., Any] | None:
        return _astype if name == "astype" else FUNCTIONS.get(name)

    def parameters(self, model: Any) -> Any:
        """Return a module's trainable parameters, tied ones once, as a dict from name to a detached copy."""
        if not isinstance(model, torch.nn.Module):
            return None
        with ONE_AT_A_TIME:
            return {name: self.copy(p) for name, p in model.named_parameters() if p.requires_grad}


def overload_torch(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Overload a PyTorch function, or a ``torch.nn.Module``, for values on the tape.

    Called with tensors that require grad, or inside a transformation of ``torch.func``, and without a taped value, the
    result just runs and torch differentiates it. A module becomes ``f(params, *args, **kwargs)``.

    A module that a function captures, or that is an argument, is used as it is at every replay: overload the module itself.

    Args:
        function: takes and returns tensors, in nested containers; or a module; None to use as a decorator with options.
        **options: see :func:`pyadjoint_utils.overload`.

    Returns:
        A function of arrays of any engine that returns :class:`pyadjoint_utils.ndarray` in the function's containers.

    Raises:
        UnsupportedError: at the first call, if the function draws from torch's global random generator.
        ImmutableError: at the first call, if the function changes an argument in place.

    Example:
        >>> import torch
        >>> from pyadjoint_utils import array, overload_torch
        >>> float(overload_torch(torch.sum)(array([1.0, 2.0])))
        3.0
    """
    if function is None:
        return functools.partial(overload_torch, **options)
    if isinstance(function, torch.nn.Module):
        return OverloadedModule(function, engine, **options)
    return overload(function, engine, **options)


@functools.cache
def _compiler(backend: str) -> Any:
    from bridges.torch_compiler import TorchCompiler  # with torch.fx, which few need

    return TorchCompiler(engine, backend)


engine = TorchEngine()

__all__ = ["TorchEngine", "as_torch", "engine", "overload_torch"]
