"""The leaves of a transformed program's arguments and results, and the seeds that belong to them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pyadjoint import AdjFloat, stop_annotating
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.black_boxes.differences import random_like
from pyadjoint_utils.control import checked_value
from pyadjoint_utils.conversion import converted_to
from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError
from pyadjoint_utils.registry import owner_of, tracing_engine
from pyadjoint_utils.values import array, ndarray
from pyadjoint_utils.variable import entered

# The dtype of derivatives by integers, of which there are none; JAX calls it so.
FLOAT0 = np.dtype([("float0", np.void, 0)])


def input_of(leaf: Any, path: str, name: str) -> ndarray:
    """Return a leaf of the arguments as an array that nothing has recorded."""
    if isinstance(leaf, ndarray):
        return ndarray(leaf._value, leaf._engine)
    if isinstance(leaf, AdjFloat):
        return ndarray(np.asarray(float(leaf)))
    if (engine := tracing_engine(leaf)) is not None:
        raise ArgumentTypeError(
            f"{name}: {path} belongs to {engine.name}'s own differentiation ({type(leaf).__name__}), which would be cut "
            f"off. Use {engine.name}'s own transformations there, or detach it first."
        )
    try:
        with stop_annotating():
            return array(leaf)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{name}: {path} must be an array or a number; got {type(leaf).__name__}.") from error


def aval_of_output(leaf: Any, path: str, name: str) -> Aval:
    """Return shape and dtype of a leaf of the result."""
    if isinstance(leaf, ndarray):
        return leaf.aval
    if isinstance(leaf, (int, float, complex, np.generic)):
        return Aval(np.shape(leaf), np.asarray(leaf).dtype)
    engine = owner_of(leaf)
    if engine is None or isinstance(leaf, OverloadedType):
        raise ArgumentTypeError(
            f"{name}: {path} is no array and no number; got {type(leaf).__name__}. A program returns arrays in nested "
            "containers; what else it has to say it returns as auxiliary data, with has_aux=True."
        )
    return engine.aval(leaf)


def array_of(leaf: Any) -> ndarray:
    """Return a leaf of the result as an array; a constant as one that nothing has recorded."""
    if isinstance(leaf, ndarray):
        return leaf
    with stop_annotating():
        return array(leaf)


def changed(before: Any, after: Any) -> bool:
    """Whether two leaves of results are different."""
    a, b = (array_of(leaf).numpy() for leaf in (before, after))
    return a.shape != b.shape or not np.array_equal(a, b, equal_nan=True)


def nearby(x: ndarray) -> ndarray:
    """Return an array that differs in every entry by about a percent."""
    value = np.asarray(x.numpy())
    (step,) = random_like([value])
    return x._like(value + np.asarray(0.01 * step, value.dtype))


class Seeds:
    """Directions or cotangents, checked against the arrays that they belong to.

    Args:
        values: one for each array, of any engine, taped or not.
        likes: the arrays.
        paths: how messages call the values.
        name: the transformation, for messages.
        many: whether the values have a leading axis more, one entry for each of many directions.

    Attributes:
        size: length of that axis, or None.
        bare: the values as arrays of the engines and dtypes that they belong to.
    """

    def __init__(
        self, values: Sequence[Any], likes: Sequence[ndarray], paths: Sequence[str], name: str, *, many: bool = False
    ) -> None:
        self.size: int | None = None
        self._values = values
        with stop_annotating():
            if many:
                checked = self._rows(values, likes, paths, name)
            else:
                triples = zip(likes, values, paths, strict=True)
                checked = [checked_value(like, value, f"{name}: {path}") for like, value, path in triples]
        self._avals, self._engines = [c.aval for c in checked], [c._engine for c in checked]
        self.bare = [c._value for c in checked]

    def _rows(self, values: Any, likes: Any, paths: Any, name: str) -> list[ndarray]:
        arrays = [value if isinstance(value, ndarray) else array(value) for value in values]
        for x, like, path in zip(arrays, likes, paths, strict=True):
            self.size = x.shape[0] if self.size is None and x.ndim else self.size
            if x.shape != (self.size, *like.shape):
                raise ArgumentValueError(
                    f"{name}: {path} must have the shape {like.shape} with one leading axis more, as long as that of the "
                    f"others; got {x.shape}."
                )
            if x.dtype.kind == "c" and like.dtype.kind != "c":
                raise ArgumentTypeError(f"{name}: {path} must be real as {like.aval}; got {x.aval}. Take x.real.")
        pairs = zip(arrays, likes, strict=True)
        return [ndarray(entered(x, Aval(x.shape, like.dtype), like._engine), like._engine) for x, like in pairs]

    @property
    def taped(self) -> bool:
        """Whether one of them is a value that can be on a tape."""
        return any(isinstance(value, OverloadedType) for value in self._values)

    def recordable(self) -> list[ndarray]:
        """Return them for a recorded sweep; conversions are recorded."""
        return [
            converted_to(value, aval, engine) if isinstance(value, OverloadedType) else ndarray(bare, engine)
            for value, bare, aval, engine in zip(self._values, self.bare, self._avals, self._engines, strict=True)
        ]


def result_like(like: ndarray, value: Any, size: int | None) -> ndarray:
    """Return a sweep's result in the engine and dtype of an array, zeros for None; ``size`` as in :class:`Seeds`."""
    aval = like.aval if size is None else Aval((size, *like.shape), like.dtype)
    engine = like._engine
    return ndarray(engine.zeros(aval, like._value) if value is None else entered(value, aval, engine), engine)


def without_derivative(x: Any, size: int | None = None) -> np.ndarray:
    """Return what stands for the derivative by an integer, or of one."""
    return np.zeros(x.shape if size is None else (size, *x.shape), FLOAT0)
