"""Arithmetic, indexing and NumPy functions on taped arrays, recorded through the engine that owns the buffer.

There is no derivative rule in here: a function of a NumPy name is looked up in the engine and overloaded like any other.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from pyadjoint import AdjFloat
from pyadjoint.adjfloat import _ops
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.engine import Engine
from pyadjoint_utils.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    CapturedValueError,
    ImmutableError,
    NotDifferentiableError,
)
from pyadjoint_utils.floats import install_variables, kept_literal
from pyadjoint_utils.jacobians.points import nature_of
from pyadjoint_utils.registry import get_engine

# Ufunc methods that have a function of their own.
_REDUCTIONS = {"add": "sum", "multiply": "prod", "maximum": "max", "minimum": "min"}
# Functions whose first argument is a sequence of arrays.
_OF_SEQUENCES = {
    *("stack", "concatenate", "concat", "hstack", "vstack", "dstack", "column_stack", "block"),
    "broadcast_arrays",
}
_ACCUMULATIONS = {"add": "cumsum", "multiply": "cumprod"}
# Names that NumPy spells in two ways; the engines are asked for the left one.
_ALIASES = {
    "amax": "max",
    "amin": "min",
    "round_": "round",
    "conjugate": "conj",
    "divide": "true_divide",
    "arcsin": "arcsin",
    "concat": "concatenate",
    "permute_dims": "transpose",
    "pow": "power",
    "acos": "arccos",
    "asin": "arcsin",
    "atan": "arctan",
    "absolute": "abs",
}
# Questions about values: they have no derivative, so NumPy answers them off the tape.
_QUESTIONS = {
    "allclose",
    "array_equal",
    "array_equiv",
    "array_repr",
    "array_str",
    "array2string",
    "isclose",
    "shape",
    "ndim",
    "size",
    "iscomplexobj",
    "isrealobj",
    "may_share_memory",
    "shares_memory",
    "result_type",
    "can_cast",
    "common_type",
    "min_scalar_type",
    "save",
    "savez",
    "savetxt",
    "nonzero",
    "flatnonzero",
    "count_nonzero",
}


_WITH_NUMBERS = {"where", "clip"}

# Constant almost everywhere: of an AdjFloat they may as well be plain numbers.
_STEPS = {
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
    *("isfinite", "isinf", "isnan", "signbit", "logical_and", "logical_or", "logical_not", "logical_xor"),
    *("sign", "floor", "ceil", "rint", "trunc", "floor_divide", "heaviside"),
}


@functools.cache
def recorded_function(engine: Engine, name: str) -> Callable[..., Any]:
    """Return an engine's function of a NumPy name, overloaded.

    Python numbers among its arguments are static, but for those of an index: ``x[0]`` and ``x[1]`` are one function.
    """
    from pyadjoint_utils.overloading import Overloaded

    function = taped_function(engine, name)
    if function is None:
        raise NotDifferentiableError(
            f"The engine {engine.name!r} has no function {name!r} for taped arrays. Write the computation as a function "
            f"of that engine and overload it, or take the data off the tape with x.numpy()."
        )
    static = name != "getitem"
    return Overloaded(function, engine, name=name, static_numbers=static, nature=nature_of(name), numpy_name=name)


def taped_function(engine: Engine, name: str) -> Callable[..., Any] | None:
    """Return an engine's function of a NumPy name with the arguments that it is recorded with, or None."""
    function = engine.function(name)
    if function is None or name != "astype":
        return function
    astype = function
    # An array of the new dtype goes along, so that an engine sees from its arguments which precision it works in.
    return lambda x, like, dtype: astype(x, dtype)


def differentiator(value: Any) -> Engine:
    """Return the engine that differentiates functions of an ndarray."""
    engine = value._engine
    other = getattr(engine, "differentiator", None)
    return engine if other is None else get_engine(other)


def call_numpy(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any]) -> Any:
    """Record a NumPy function; the leftmost array's engine runs it."""
    from pyadjoint_utils.running import running_engine, running_name

    first = next((leaf for leaf in leaves if isinstance(leaf, ArrayFunctions)), None)
    engine = get_engine("autograd") if first is None else differentiator(first)
    if running_engine() is not None:
        raise CapturedValueError(
            f"numpy.{name} inside the overloaded function {running_name()!r} met a taped value that was not passed "
            "to it; its derivative would be lost. Pass it as an argument."
        )
    return recorded_function(engine, name)(*args, **kwargs)


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``numpy.add(x, y)`` and ``x + y`` do when an operand is a taped array."""
    kwargs = dict(kwargs)
    if kwargs.pop("out", None) is not None:
        raise ImmutableError(
            f"numpy.{ufunc.__name__} cannot write into out=: values on the tape are immutable, and an array that is not "
            f"on the tape would lose the derivative. Write y = numpy.{ufunc.__name__}(...) instead of an in-place "
            "operator or out=."
        )
    if kwargs.get("where", True) is not True or kwargs.get("dtype") is not None:
        raise ArgumentValueError(
            f"numpy.{ufunc.__name__} of a taped array takes no where= (it leaves entries undefined) and no dtype=. "
            "Write numpy.where(mask, y, x), or y.astype(dtype)."
        )
    kwargs = {key: value for key, value in kwargs.items() if key not in ("where", "dtype")}
    inputs = tuple([_array_like(x) if isinstance(x, (list, tuple)) else x for x in inputs])
    name = _ALIASES.get(ufunc.__name__, ufunc.__name__)
    if method == "accumulate" and ufunc.__name__ in _ACCUMULATIONS:
        (x,) = inputs
        return call_numpy(_ACCUMULATIONS[ufunc.__name__], (x,), {"axis": 0, **kwargs}, [x])
    if method == "reduce" and ufunc.__name__ in _REDUCTIONS:
        (x,) = inputs
        return call_numpy(_REDUCTIONS[ufunc.__name__], (x,), {"axis": kwargs.pop("axis", 0), **kwargs}, [x])
    if method != "__call__":
        return NotImplemented
    if any(isinstance(x, (str, bytes, type(None))) for x in inputs):
        return NotImplemented
    static_exponent = name in ("power", "float_power", "ldexp") and type(inputs[-1]) is int
    operands = [x if k == 1 and static_exponent else _operand(x, inputs, name) for k, x in enumerate(inputs)]
    return call_numpy(name, tuple(operands), kwargs, operands)


def _operand(x: Any, inputs: tuple[Any, ...], name: str) -> Any:
    """Python numbers become arrays of the dtype that NumPy's promotion gives them, so that no value is compiled in."""
    if isinstance(x, OverloadedType) or type(x) not in (int, float, complex, bool):
        return x
    dtypes = [i.dtype for i in inputs if isinstance(i, (ArrayFunctions, np.ndarray, np.generic))]
    kinds = [d for d in dtypes if d.kind == "V"]
    if kinds:  # bfloat16 and its kin, which NumPy's promotion does not know
        return np.asarray(x, kinds[0])
    return np.asarray(x, np.result_type(*dtypes, x)) if dtypes else np.asarray(x)


def call_function(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``numpy.sum(x)`` and other functions do when an argument is a taped array."""
    name = func.__name__
    module = func.__module__ or "numpy"
    if name in _QUESTIONS:
        return func(*_off_tape(args), **_off_tape(kwargs))
    if kwargs.get("out") is not None:
        raise ImmutableError(f"numpy.{name} cannot write into out=: values on the tape are immutable.")
    prefix = module.partition("numpy.")[2]
    full = f"{prefix}.{name}" if prefix in ("linalg", "fft") else _ALIASES.get(name, name)
    args = _without_taped_lists(name, args)
    if name == "clip":
        kwargs = {{"a_min": "min", "a_max": "max"}.get(k, k): v for k, v in kwargs.items()}
    if name == "take":
        args = (args[0], *(np.asarray(a) if isinstance(a, list) else a for a in args[1:]))
    leaves: list[Any] = []
    _collect((args, kwargs), leaves)
    if name in _WITH_NUMBERS:  # their numbers are data: static ones would be compiled in, one program for each
        arrays = tuple([leaf for leaf in leaves if isinstance(leaf, (ArrayFunctions, np.ndarray, np.generic))])
        args = tuple([_array_like(a) for a in args])
        args = tuple([_operand(a, (*arrays, a), name) if type(a) in (int, float, complex) else a for a in args])
        kwargs = {
            k: _operand(a, (*arrays, a), name) if type(a) in (int, float, complex) else a for k, a in kwargs.items()
        }
    return call_numpy(full, args, {k: v for k, v in kwargs.items() if v is not np._NoValue}, leaves)


def _array_like(value: Any) -> Any:
    """Return a nested list as an array; what is taped in it is stacked, which records."""
    if not isinstance(value, (list, tuple)):
        return value
    if not _has_taped(value):
        return np.asarray(value)
    return np.stack([_array_like(item) for item in value])


def _has_taped(tree: Any) -> bool:
    return any(map(_has_taped, tree)) if isinstance(tree, (list, tuple)) else isinstance(tree, OverloadedType)


def _without_taped_lists(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Stack lists that hold taped values: an engine would make an array of objects of them, and drop the derivative."""
    if name in _OF_SEQUENCES and args and isinstance(args[0], (list, tuple)):
        return [_array_like(item) for item in args[0]], *args[1:]
    return tuple([_array_like(arg) if isinstance(arg, (list, tuple)) and _has_taped(arg) else arg for arg in args])


def _collect(tree: Any, leaves: list[Any]) -> None:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for item in tree:
            _collect(item, leaves)
    else:
        leaves.append(tree)


def _off_tape(tree: Any) -> Any:
    if isinstance(tree, ArrayFunctions):
        return tree.numpy()
    if isinstance(tree, AdjFloat):
        return float(tree)
    if isinstance(tree, dict):
        return {k: _off_tape(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_off_tape(v) for v in tree)
    return tree


def _index(index: Any) -> Any:
    """Return an index in which lists and masks are integer arrays, which all engines take."""
    if not isinstance(index, tuple):
        return items[0] if len(items := _index_items(index)) == 1 else tuple(items)
    return tuple([item for part in index for item in _index_items(part)])


def _index_items(item: Any) -> list[Any]:
    item = _array_like(item) if isinstance(item, list) else item
    if isinstance(item, ArrayFunctions) and item.dtype == np.bool_:
        raise ArgumentTypeError(
            "Indexing with a taped mask would change the shape of the result from one evaluation to the next. "
            "Write numpy.where(mask, x, 0.0), or take the mask off the tape: x[mask.numpy()]."
        )
    if isinstance(item, np.ndarray) and item.dtype == np.bool_ and item.ndim:
        return list(np.nonzero(item))
    return [item]


def _binary(ufunc: np.ufunc) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(self: Any, other: Any) -> Any:
        return call_ufunc(ufunc, "__call__", (self, other), {}) if _is_operand(other) else NotImplemented

    def reflected(self: Any, other: Any) -> Any:
        return call_ufunc(ufunc, "__call__", (other, self), {}) if _is_operand(other) else NotImplemented

    return forward, reflected


def _is_operand(other: Any) -> bool:
    if isinstance(other, (ArrayFunctions, AdjFloat, int, float, complex, list, tuple, np.ndarray, np.generic)):
        return True
    return hasattr(other, "__dlpack__") or hasattr(other, "__array__")


def _unary(ufunc: np.ufunc) -> Callable[..., Any]:
    return lambda self: call_ufunc(ufunc, "__call__", (self,), {})


def _method(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call_numpy(name, (self, *args), kwargs, [self])

    method.__name__ = name
    method.__doc__ = f"``numpy.{name}`` of this array, recorded."
    return method


class ArrayFunctions:
    """The operators and functions of an array; each records one Block."""

    __slots__ = ()
    __array_priority__ = 1000.0
    __hash__ = object.__hash__

    numpy: Callable[[], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """The number of axes."""
        raise NotImplementedError

    @property
    def dtype(self) -> np.dtype:
        """The NumPy dtype."""
        raise NotImplementedError

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return call_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return call_function(func, args, kwargs)

    __add__, __radd__ = _binary(np.add)
    __sub__, __rsub__ = _binary(np.subtract)
    __mul__, __rmul__ = _binary(np.multiply)
    __truediv__, __rtruediv__ = _binary(np.true_divide)
    __floordiv__, __rfloordiv__ = _binary(np.floor_divide)
    __mod__, __rmod__ = _binary(np.remainder)
    __pow__, __rpow__ = _binary(np.power)
    __matmul__, __rmatmul__ = _binary(np.matmul)
    __lt__, __le__ = _binary(np.less)[0], _binary(np.less_equal)[0]
    __gt__, __ge__ = _binary(np.greater)[0], _binary(np.greater_equal)[0]
    __eq__, __ne__ = _binary(np.equal)[0], _binary(np.not_equal)[0]

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    __neg__, __pos__, __abs__ = _unary(np.negative), _unary(np.positive), _unary(np.absolute)

    def __getitem__(self, index: Any) -> Any:
        return call_numpy("getitem", (self, self._position(_index(index))), {}, [self])

    def _position(self, index: Any) -> Any:
        """Integers as arrays, so that an engine that traces does not compile a program for each."""
        if not differentiator(self).traces:
            return index
        items = index if isinstance(index, tuple) else (index,)
        axes = self.ndim - sum(i is not None and i is not Ellipsis for i in items)
        axis, result = 0, []
        for i in items:
            if type(i) is int or isinstance(i, np.integer):
                if axis < self.ndim and not -self.shape[axis] <= i < self.shape[axis]:
                    raise IndexError(f"index {i} is out of bounds for axis {axis} with size {self.shape[axis]}")
                i = np.asarray(i % self.shape[axis] if axis < self.ndim else i, np.int32)
            result.append(i)
            axis += axes if i is Ellipsis else i is not None
        return tuple(result) if isinstance(index, tuple) else result[0]

    def __round__(self, digits: int = 0) -> Any:
        return call_numpy("round", (self, digits), {}, [self])

    sum, prod, mean = _method("sum"), _method("prod"), _method("mean")
    max, min, std, var = _method("max"), _method("min"), _method("std"), _method("var")
    cumsum, trace, dot, ravel = _method("cumsum"), _method("trace"), _method("dot"), _method("ravel")
    flatten, squeeze, swapaxes, repeat = (
        _method("ravel"),
        _method("squeeze"),
        _method("swapaxes"),
        _method("repeat"),
    )
    round, conj, clip, diagonal = _method("round"), _method("conj"), _method("clip"), _method("diagonal")
    conjugate = conj
    any, all, argmax, argmin = _method("any"), _method("all"), _method("argmax"), _method("argmin")

    def copy(self) -> Any:
        """This array itself: it is immutable, so that nobody can tell it from a copy."""
        return self

    def reshape(self, *shape: Any, order: str = "C") -> Any:
        """``numpy.reshape`` of this array, recorded."""
        if order != "C":
            raise ArgumentTypeError(f"reshape knows order='C' alone; got {order!r}.")
        target = shape[0] if len(shape) == 1 else shape
        return call_numpy("reshape", (self, target), {}, [self])

    def transpose(self, *axes: Any) -> Any:
        """``numpy.transpose`` of this array, recorded."""
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else (axes or None)
        return call_numpy("transpose", (self,) if order is None else (self, tuple(order)), {}, [self])

    def astype(self, dtype: Any) -> Any:
        """This array with another dtype, recorded; a complex array does not become real by itself."""
        target = np.dtype(dtype)
        if self.dtype.kind == "c" and target.kind != "c":
            raise ArgumentTypeError(f"astype({target}) would drop the imaginary part. Write numpy.real(x).")
        return call_numpy("astype", (self, np.zeros((), target), target.name), {}, [self])

    T = property(lambda self: self.transpose())
    real = property(lambda self: call_numpy("real", (self,), {}, [self]))
    imag = property(lambda self: call_numpy("imag", (self,), {}, [self]))


def _passes_derivative(name: str, inputs: tuple[Any, ...]) -> bool:
    if any(isinstance(x, ArrayFunctions) for x in inputs):
        return True
    return annotate_tape() and name not in _STEPS


def install_on_adjfloat() -> None:
    """Let AdjFloat have small variables, and yield to arrays in NumPy functions where Pyadjoint strips it to a number.

    ``numpy.multiply(a, x)`` asks AdjFloat first, which would drop its derivative without a word.
    """
    original = AdjFloat.__array_ufunc__
    if getattr(original, "_yields_to_arrays", False):
        return

    @functools.wraps(original)
    def __array_ufunc__(self: Any, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        has_arrays = any(isinstance(x, (ArrayFunctions, np.ndarray)) for x in inputs)
        if method == "__call__" and not kwargs and not has_arrays and ufunc in _ops:
            return original(self, ufunc, method, *[kept_literal(x) for x in inputs])
        if _passes_derivative(ufunc.__name__, inputs):
            return call_ufunc(ufunc, method, inputs, kwargs)
        return getattr(ufunc, method)(*_off_tape(inputs), **kwargs)

    def __array_function__(self: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if annotate_tape():
            return call_function(func, args, kwargs)
        return func(*_off_tape(args), **_off_tape(kwargs))

    __array_ufunc__._yields_to_arrays = True  # type: ignore[attr-defined]
    AdjFloat.__array_function__ = __array_function__
    AdjFloat.__array_ufunc__ = __array_ufunc__
    install_variables()
