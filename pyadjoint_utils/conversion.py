"""Recorded conversions of a value between engines, and between 0-d arrays and Pyadjoint's AdjFloat."""

from typing import Any

import numpy as np
from pyadjoint import AdjFloat, Block, get_working_tape
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.annotation import annotate_tape, claim, thread_number
from pyadjoint_utils.block import add_adjoint, add_hessian
from pyadjoint_utils.engine import Aval, Engine
from pyadjoint_utils.errors import ArgumentTypeError
from pyadjoint_utils.registry import convert, get_engine
from pyadjoint_utils.transforming.program_tape import ProgramTape
from pyadjoint_utils.values import array, ndarray
from pyadjoint_utils.variable import Variable, as_float, checkpoint_of, entered


class ConversionBlock(Block):
    """The identity, from one owner of the data to another."""

    any_thread = True

    def __init__(self, source: OverloadedType) -> None:
        super().__init__()
        self.add_dependency(source)

    def _across(self, value: Any) -> Any:
        target = self._outputs[0]
        if type(target) is Variable:
            return entered(value, target.aval, target.engine)
        return AdjFloat(as_float(value))

    def recompute(self, markings: bool = False) -> None:
        self._outputs[0].checkpoint = self._across(checkpoint_of(self._dependencies[0]))

    def evaluate_tlm(self, markings: bool = False) -> None:
        tangent = self._dependencies[0].tlm_value
        if tangent is not None:
            self._outputs[0].add_tlm_output(self._across(tangent))

    def evaluate_adj(self, markings: bool = False) -> None:
        if self._outputs[0].adj_value is not None:
            add_adjoint(self._dependencies[0], self._back(self._outputs[0].adj_value))

    def evaluate_hessian(self, markings: bool = False) -> None:
        if self._outputs[0].hessian_value is not None:
            add_hessian(self._dependencies[0], self._back(self._outputs[0].hessian_value))

    def _back(self, value: Any) -> Any:
        dependency = self._dependencies[0]
        if type(dependency) is Variable:
            aval = dependency.aval
            if type(self._outputs[0]) is not Variable:
                value = np.full(aval.shape, as_float(value))
            return entered(value, aval, dependency.engine)
        return as_float(value)

    def __str__(self) -> str:
        target = self._outputs[0]
        return f"to {target.engine.name if type(target) is Variable else type(target.output).__name__}"


def converted_like(value: Any, like: Any) -> Any:
    """Return a value of the tape in the type, engine and dtype of another one, recorded."""
    if isinstance(like, ndarray):
        return converted_to(value, like.aval, like._engine)
    return _record(value, AdjFloat(as_float(value)))


def converted_to(value: Any, aval: Aval, engine: Engine) -> ndarray:
    """Return a value of the tape as an array of an engine, shape and dtype, recorded; itself if it is one."""
    if isinstance(value, ndarray) and value._engine is engine and value.aval == aval:
        return value
    same = _record(value, ndarray(entered(value, aval, engine), engine))
    return same if same.shape == aval.shape else same.reshape(aval.shape)


def _record(source: Any, target: OverloadedType) -> Any:
    if isinstance(source, OverloadedType) and annotate_tape():
        if isinstance(source, AdjFloat) or isinstance(target, AdjFloat):
            claim("An AdjFloat")
        target.create_block_variable()
        connect(source, target)
    return target


def connect(source: Any, target: Any) -> None:
    """Record that a value, whose variable nothing has computed so far, is another one."""
    tape = get_working_tape()
    if isinstance(tape, ProgramTape):
        (source,) = tape.connected([source], [target])
    block = ConversionBlock(source)
    block.add_output(target.block_variable)
    if isinstance(target, ndarray):
        target._computed_in = thread_number()
    tape.add_block(block)


def copied(x: Any) -> ndarray:
    """Return a recorded copy of an array or an AdjFloat as an array."""
    if isinstance(x, ndarray):
        return _record(x, ndarray(x._engine.copy(x._value), x._engine))
    return _record(x, ndarray(np.asarray(float(x))))


def _to_engine(x: Any, name: str) -> ndarray:
    engine = get_engine(name)
    source = x if isinstance(x, (ndarray, AdjFloat)) else array(x)
    if isinstance(source, ndarray) and source._engine is engine:
        return source
    value = array(float(source)) if isinstance(source, AdjFloat) else source
    return _record(x, ndarray(convert(value._value, engine), engine))


def to_jax(x: Any) -> ndarray:
    """Return a value held by JAX, recorded; no copy is made where memory allows.

    Args:
        x: an array of any engine, an AdjFloat or a number.

    Returns:
        The value; ``x`` itself if JAX already holds it.

    Raises:
        MissingEngineError: JAX is not installed.

    Example:
        >>> from pyadjoint_utils import array, to_jax
        >>> to_jax(array([1.0, 2.0])).engine
        'jax'
    """
    return _to_engine(x, "jax")


def to_torch(x: Any) -> ndarray:
    """Return a value held by PyTorch, recorded; as :func:`to_jax`.

    Args:
        x: an array of any engine, an AdjFloat or a number.

    Returns:
        The value; ``x`` itself if PyTorch already holds it.

    Raises:
        MissingEngineError: PyTorch is not installed.

    Example:
        >>> from pyadjoint_utils import array, to_torch
        >>> to_torch(array([1.0, 2.0])).engine
        'torch'
    """
    return _to_engine(x, "torch")


def to_tensorflow(x: Any) -> ndarray:
    """Return a value held by TensorFlow, recorded; as :func:`to_jax`.

    Args:
        x: an array of any engine, an AdjFloat or a number.

    Returns:
        The value; ``x`` itself if TensorFlow already holds it.

    Raises:
        MissingEngineError: TensorFlow is not installed.

    Example:
        >>> from pyadjoint_utils import array, to_tensorflow
        >>> to_tensorflow(array([1.0, 2.0])).engine
        'tensorflow'
    """
    return _to_engine(x, "tensorflow")


def to_numpy(x: Any) -> ndarray:
    """Return a value held by NumPy, recorded; for the bare NumPy array, off the tape, write ``x.numpy()``.

    Args:
        x: an array of any engine, an AdjFloat or a number.

    Returns:
        The value; ``x`` itself if NumPy already holds it.

    Example:
        >>> from pyadjoint_utils import array, to_numpy
        >>> to_numpy(array([1.0, 2.0])).engine
        'numpy'
    """
    return _to_engine(x, "numpy")


def to_adjfloat(x: Any) -> AdjFloat:
    """Return a real one-element value as Pyadjoint's float, recorded.

    Args:
        x: an array of shape ``()`` or with one element, an AdjFloat or a number.

    Returns:
        The number.

    Raises:
        ArgumentTypeError: more than one element, or a complex number.

    Example:
        >>> from pyadjoint_utils import array, to_adjfloat
        >>> to_adjfloat(array(2.0)) + 1.0
        3.0
    """
    if isinstance(x, AdjFloat):
        return x
    source = x if isinstance(x, ndarray) else array(x)
    if source.size != 1 or source.dtype.kind == "c":
        raise ArgumentTypeError(f"to_adjfloat takes one real number; got {source.aval}. Reduce or take .real first.")
    return _record(x, AdjFloat(source.numpy().item()))
