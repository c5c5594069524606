"""The value on the tape: one overloaded type that holds the array of whichever engine made it."""

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from pyadjoint import AdjFloat
from pyadjoint.overloaded_type import OverloadedType, register_overloaded_type

from pyadjoint_utils import registry
from pyadjoint_utils.annotation import annotate_tape, thread_number
from pyadjoint_utils.engine import Aval, Engine
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, ImmutableError, StaleTapeError
from pyadjoint_utils.numpy_functions import ArrayFunctions
from pyadjoint_utils.registry import convert, get_engine, owner_of
from pyadjoint_utils.variable import WRAPPERS, Variable, entered

_log = logging.getLogger(__name__)
_left_tape: set[str] = set()
_making = threading.RLock()


class ndarray(ArrayFunctions, OverloadedType):
    """An immutable array of any engine that can be recorded on the tape.

    Make one with :func:`array` or :func:`asarray`. Arithmetic, indexing, reductions and NumPy functions on it record
    through the engine that owns the buffer. ``float(x)`` and ``numpy.asarray(x)`` leave the tape.

    Attributes:
        value: the bare array of the engine.
        engine: the name of the engine that owns it, for example ``"jax"``; ``"numpy"`` for NumPy buffers.

    Example:
        >>> from pyadjoint_utils import array
        >>> x = array([1.0, 2.0])
        >>> float((x * x).sum())
        5.0
    """

    _deferred: Callable[[], Variable] | None = None
    # The nodes of other threads' tapes, by the threads' numbers; never changed in place.
    _elsewhere: dict[int, weakref.ref[Variable]] = {}  # noqa: RUF012
    _computed_in: int | None = None  # the number of the thread that recorded the computation of this value

    def __init__(self, value: Any, engine: Engine | None = None) -> None:
        owner = engine or owner_of(value)
        if owner is None:
            raise ArgumentTypeError(
                f"ndarray wraps a concrete array of an engine; got {type(value).__name__}. Use pyadjoint_utils.array()."
            )
        # Not upstream's initializer: its weak reference costs as much as all the rest of a recording.
        self._variable: weakref.ref[Variable] | None = None
        self._value = value
        self._engine = owner
        self._aval: Aval | None = None

    # What it holds -----------------------------------------------------------------------------------------------------

    @property
    def value(self) -> Any:
        return self._value

    @property
    def engine(self) -> str:
        return self._engine.name

    @property
    def aval(self) -> Aval:
        """Shape and NumPy dtype."""
        if self._aval is None:
            self._aval = self._engine.aval(self._value)
        return self._aval

    @property
    def shape(self) -> tuple[int, ...]:
        return self.aval.shape

    @property
    def dtype(self) -> np.dtype:
        return self.aval.dtype

    @property
    def ndim(self) -> int:
        return len(self.aval.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.aval.shape, dtype=int))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d array")
        return self.shape[0]

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        text = np.array2string(self.numpy(), separator=", ", threshold=20)
        return f"ndarray({text}, dtype={self.dtype}, engine={self.engine!r})"

    _ad_str = property(__repr__)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec and self.size == 1 else format(repr(self), spec)

    # Leaving the tape --------------------------------------------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """Return the data as a read-only NumPy array, a view where memory allows; it is not recorded."""
        view = self._engine.to_numpy(self._value).view()
        view.flags.writeable = False
        return view

    def item(self) -> Any:
        """Return the only number of a one-element array as a Python number; it is not recorded."""
        return self.numpy().item()

    def tolist(self) -> Any:
        """Return the data as nested lists; it is not recorded."""
        return self.numpy().tolist()

    def _leave(self, how: str) -> np.ndarray:
        if how not in _left_tape and annotate_tape() and self._block_variable() is not None:
            _left_tape.add(how)
            _log.warning(
                "%s takes the data of a taped array off the tape: what is computed from it passes no derivative. "
                "(Said once.)",
                how,
            )
        return self.numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        data = self._leave("numpy.asarray(x)")
        if dtype is not None and data.dtype != dtype:
            return data.astype(dtype)
        return data.copy() if copy else data

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> Any:
        # TensorFlow would convert through __array__ and drop the tape; with this it yields to our arithmetic instead.
        raise TypeError("Pass a pyadjoint_utils.ndarray to TensorFlow through overload_tensorflow, or pass x.value.")

    def _scalar(self, how: str, convert_to: Any) -> Any:
        if self.size != 1:
            raise ArgumentTypeError(f"{how} needs an array with one element; got {self.aval}.")
        return convert_to(self._leave(how).item())

    def __float__(self) -> float:
        return self._scalar("float(x)", float)

    def __complex__(self) -> complex:
        return self._scalar("complex(x)", complex)

    def __int__(self) -> int:
        return self._scalar("int(x)", int)

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise ArgumentTypeError(f"Only an integer array with one element is an index; got {self.aval}.")
        return self._scalar("index", int)

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ArgumentValueError(
                f"The truth value of an array with {self.size} elements is ambiguous. Write x.numpy().any() or .all()."
            )
        return bool(self.numpy().item())

    def __copy__(self) -> "ndarray":
        return self  # it is immutable

    def __deepcopy__(self, memo: Any) -> "ndarray":
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        raise ImmutableError(
            f"Values on the tape are immutable; got x[{index!r}] = ... on {self.aval} ({self.engine}). "
            "Write a function that returns the changed array, for example with numpy.where(mask, value, x)."
        )

    # Pyadjoint's contract ----------------------------------------------------------------------------------------------

    @property
    def block_variable(self) -> Variable:
        """The node of this thread's tapes that stands for the value; made when it is first asked for."""
        variable = self._block_variable()
        if variable is not None and (variable.thread == thread_number() or self._computed_in is not None):
            if variable._checkpoint is None and annotate_tape():
                # A schedule let the data go after a time step, and the program uses them in a later one.
                variable._checkpoint = self._value
            return variable
        if self._deferred is not None:
            return self.create_block_variable()
        with _making:  # two threads may ask for the first time at once
            return self._own_variable()

    @block_variable.setter
    def block_variable(self, variable: Variable) -> None:
        self._variable = weakref.ref(variable)

    def _own_variable(self) -> Variable:
        here, others = thread_number(), self._elsewhere
        own = others[here]() if here in others else None
        variable = self._block_variable() if own is None else own
        if variable is None:
            variable = self._new_variable()
            if self._computed_in is not None:  # on a tape that is gone; to other threads it is no constant still
                variable.thread = self._computed_in
        elif variable.thread != here and self._computed_in is None:
            # A value that no Block computed may be a constant or a control of several threads, on a tape of each.
            variable = Variable(self._value, self._engine)
            self._elsewhere = {**others, here: weakref.ref(variable)}
        return variable

    def _all_variables(self) -> list[Variable]:
        """The nodes that stand for the value in any thread."""
        found = [ref() for ref in (self._variable, *self._elsewhere.values()) if ref is not None]
        return [variable for variable in found if variable is not None]

    def _block_variable(self) -> Variable | None:
        return None if self._variable is None else self._variable()

    def defer(self, recording: Callable[[], Variable]) -> None:
        """Stay off the tape until a recording needs this value; ``recording`` puts it there and returns its variable."""
        self._variable, self._deferred = None, recording

    def clear_block_variable(self) -> None:
        self._variable, self._deferred, self._elsewhere, self._computed_in = None, None, {}, None

    def create_block_variable(self) -> Variable:
        """Make the node that stands for the value as the output of a Block."""
        self._computed_in = thread_number()
        return self._new_variable()

    def _new_variable(self) -> Variable:
        variable = Variable(self._value, self._engine) if self._deferred is None else self._deferred()
        self._deferred = None
        self._variable = weakref.ref(variable)
        return variable

    def __reduce__(self) -> Any:
        # The data travel, the tape does not.
        return _rebuilt, (np.array(self.numpy()), self.engine)

    @classmethod
    def _ad_init_object(cls, obj: Any) -> "ndarray":
        return asarray(obj)

    def _ad_init_zero(self, dual: bool = False) -> "ndarray":
        return ndarray(self._engine.zeros(self.aval), self._engine)

    def _ad_convert_riesz(self, value: Any, riesz_map: Any = None) -> "ndarray":
        if riesz_map not in (None, "l2"):
            raise ArgumentValueError(f"The only Riesz map of an array is 'l2' (or None); got {riesz_map!r}.")
        return self._like(value)

    def _ad_create_checkpoint(self) -> Any:
        return self._value

    def _ad_restore_at_checkpoint(self, checkpoint: Any) -> "ndarray":
        return checkpoint if isinstance(checkpoint, ndarray) else ndarray(checkpoint)

    def _like(self, value: Any) -> "ndarray":
        """Return a value as an ndarray of this one's engine and dtype."""
        return ndarray(entered(value, self.aval, self._engine), self._engine)

    def _ad_mul(self, other: Any) -> "ndarray":
        if annotate_tape() or not isinstance(other, (int, float, complex)):
            return self * other
        return ndarray(self._engine.scale(self._value, other), self._engine)

    def _ad_add(self, other: Any) -> "ndarray":
        if annotate_tape():
            return self + other
        return ndarray(self._engine.add(self._value, entered(other, self.aval, self._engine)), self._engine)

    def _ad_dot(self, other: Any) -> float:
        a, b = np.asarray(self.numpy()), np.asarray(_off_tape(other))
        return float(np.real(np.vdot(a, b)))

    def _ad_imul(self, other: Any) -> "ndarray":
        return self._rebind(self._like(np.multiply(self.numpy(), _off_tape(other)))._value)

    def _ad_iadd(self, other: Any) -> "ndarray":
        return self._rebind(self._engine.add(self._value, entered(other, self.aval, self._engine)))

    def _rebind(self, value: Any) -> "ndarray":
        """Hold another array; on the tape that is another value, and what was recorded stays as it is."""
        self._value = value
        self.clear_block_variable()
        return self

    def _ad_copy(self) -> "ndarray":
        return ndarray(self._engine.copy(self._value), self._engine)

    def _ad_dim(self) -> int:
        return self.size * (2 if self.dtype.kind == "c" else 1)

    @staticmethod
    def _ad_assign_numpy(dst: Any, src: np.ndarray, offset: int) -> tuple[Any, int]:
        like = asarray(dst)
        end = offset + like._ad_dim()
        return ndarray(unflattened(np.asarray(src)[offset:end], like.aval, like._engine), like._engine), end

    @staticmethod
    def _ad_to_list(m: Any) -> list[float]:
        return flattened(asarray(m)).tolist()

    def _ad_to_petsc(self, vec: Any = None) -> Any:
        data = flattened(self)
        if vec is None:
            from petsc4py import PETSc  # only PETSc's own solvers ask for this

            return PETSc.Vec().createWithArray(data.copy())
        vec.setArray(data)
        return vec

    def _ad_from_petsc(self, vec: Any) -> "ndarray":
        return self._rebind(unflattened(np.array(vec.getArray(readonly=True)), self.aval, self._engine))


def _rebuilt(data: np.ndarray, engine: str) -> ndarray:
    owner = get_engine(engine)
    return ndarray(convert(data, owner), owner)


def _off_tape(value: Any) -> Any:
    return value.numpy() if isinstance(value, ndarray) else value


class Shell(ndarray):
    """Shape, dtype and engine of a variable of the tape, without its data."""

    def __init__(self, variable: Variable) -> None:
        self._variable = weakref.ref(variable)
        self._engine, self._aval = variable.engine, variable.aval

    @property
    def _value(self) -> Any:
        raise StaleTapeError(
            f"block_variable.output knows shape and dtype, {self.aval}, and holds no data. Read "
            "block_variable.saved_output, the value where the tape stands, or keep the value that the program computed."
        )

    def __repr__(self) -> str:
        return f"{self.aval} ({self.engine})"

    _ad_str = property(__repr__)


def flattened(value: ndarray) -> np.ndarray:
    """Return an array as a flat float64 vector; complex numbers as pairs of real and imaginary part."""
    data = np.ascontiguousarray(value.numpy()).reshape(-1)
    return data.astype(np.complex128).view(np.float64) if data.dtype.kind == "c" else data.astype(np.float64)


def unflattened(data: np.ndarray, aval: Aval, engine: Engine) -> Any:
    """Undo :func:`flattened`: a bare array of the engine that shares no memory with ``data``."""
    data = np.array(data, dtype=np.float64)
    if aval.dtype.kind == "c":
        data = data.view(np.complex128)
    return entered(data.reshape(aval.shape).astype(aval.dtype, copy=False), aval, engine)


def array(obj: Any, dtype: Any = None) -> ndarray:
    """Return a value that can be recorded, with a copy of any buffer that somebody else could change.

    Args:
        obj: an array of any installed engine, a NumPy array or scalar, a number, nested lists of numbers, or an
            :class:`ndarray`.
        dtype: the NumPy dtype to have, or None to keep the object's.

    Returns:
        The value; it stays in the engine of ``obj`` (NumPy for numbers and lists).

    Raises:
        ArgumentTypeError: the object is no array of numbers.

    Example:
        >>> from pyadjoint_utils import array
        >>> array([[1.0, 2.0]]).shape
        (1, 2)
    """
    return _make(obj, dtype, copy=True)


def asarray(obj: Any, dtype: Any = None) -> ndarray:
    """Return a value that can be recorded and that shares its buffer with ``obj``; who changes the one changes the other.

    Args:
        obj: as for :func:`array`; an :class:`ndarray` is returned as it is.
        dtype: the NumPy dtype to have, or None to keep the object's.

    Returns:
        The value.

    Raises:
        ArgumentTypeError: the object is no array of numbers.

    Example:
        >>> import numpy
        >>> from pyadjoint_utils import asarray
        >>> asarray(numpy.ones(3)).engine
        'numpy'
    """
    return _make(obj, dtype, copy=False)


def _make(obj: Any, dtype: Any, *, copy: bool) -> ndarray:
    if annotate_tape() and (isinstance(obj, AdjFloat) or (copy and isinstance(obj, ndarray))):
        return _linked(obj, dtype)
    if isinstance(obj, ndarray):
        result = obj if not copy else ndarray(obj._engine.copy(obj._value), obj._engine)
        return result if dtype is None or result.dtype == np.dtype(dtype) else result.astype(dtype)
    engine = owner_of(obj)
    if engine is None:
        data = _numbers(obj)
        return ndarray(data if dtype is None else data.astype(dtype, copy=False))
    value = np.asarray(obj) if engine.name == "numpy" else obj
    if engine.name == "numpy":
        _check_numbers(value, obj)
    value = engine.copy(value) if copy else value
    if dtype is not None and engine.aval(value).dtype != np.dtype(dtype):
        value = engine.cast(value, np.dtype(dtype))
    return ndarray(convert(value, engine), engine)


def _linked(obj: Any, dtype: Any) -> ndarray:
    """A copy of a value that is on the tape stays on the tape."""
    from pyadjoint_utils.conversion import copied

    result = copied(obj)
    return result if dtype is None or result.dtype == np.dtype(dtype) else result.astype(dtype)


def _numbers(obj: Any) -> np.ndarray:
    def has_taped(item: Any) -> bool:
        if isinstance(item, (list, tuple)):
            return any(has_taped(i) for i in item)
        return isinstance(item, OverloadedType)

    if isinstance(obj, (list, tuple)) and annotate_tape() and has_taped(obj):
        raise ArgumentTypeError(
            "array() of a list that holds taped values would drop their derivatives. "
            "Write numpy.stack(list_of_arrays), which records, or take the numbers off the tape with float(x)."
        )
    try:
        data = np.array(obj)
    except (ValueError, TypeError) as error:
        raise ArgumentTypeError(f"array() takes an array of numbers; got {type(obj).__name__}: {error}") from error
    _check_numbers(data, obj)
    return data


def _check_numbers(data: np.ndarray, obj: Any) -> None:
    if data.dtype.kind not in "biufcV":
        raise ArgumentTypeError(
            f"array() takes an array of numbers; got {type(obj).__name__} with dtype {data.dtype}. "
            "Strings, objects and None stay ordinary arguments."
        )


NUMPY_CLASSES = (np.ndarray, np.float64, np.float32, np.float16, np.complex128, np.complex64)
register_overloaded_type(ndarray, NUMPY_CLASSES)
WRAPPERS.update((ndarray, Shell))


def _register_array_classes(engine: Engine) -> None:
    if engine.holds == engine.name:
        register_overloaded_type(ndarray, engine.array_types)


registry._on_register.append(_register_array_classes)
