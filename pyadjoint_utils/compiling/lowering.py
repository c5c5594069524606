"""Blocks in the terms of an engine that did not run them: AdjFloat arithmetic and conversions are any engine's."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pyadjoint import Block
from pyadjoint.adjfloat import AdjFloatExprBlock, _ops

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.conversion import ConversionBlock
from pyadjoint_utils.engine import Arrays, Aval, Engine
from pyadjoint_utils.indexing import indexing_of
from pyadjoint_utils.numpy_functions import taped_function
from pyadjoint_utils.plan import aval_of
from pyadjoint_utils.rules import Rules

# NumPy's functions that are the same in all engines, with the same derivatives. Not among them: what an engine
# differentiates in its own way at a kink, a tie or a zero (abs, maximum, clip, hypot, prod), and what it normalises or
# orders in its own way (eigenvectors).
SAME_EVERYWHERE = frozenset(
    """
    negative positive exp exp2 expm1 log log2 log10 log1p sqrt square sin cos tan arcsin arccos arctan sinh cosh tanh
    arcsinh arccosh arctanh deg2rad rad2deg real imag conj add subtract multiply true_divide power
    equal not_equal less less_equal greater greater_equal isnan isinf isfinite logical_and logical_or logical_not
    sum mean var max min cumsum diff trace matmul dot vdot inner outer tensordot einsum
    getitem take where astype reshape ravel transpose matrix_transpose swapaxes moveaxis squeeze expand_dims broadcast_to
    concatenate stack hstack vstack repeat tile flip roll tril triu diag diagonal linalg.solve linalg.inv
    """.split()
)
_FLOAT = Aval((), np.dtype(np.float64))


def rules_of(block: Block, engine: Engine) -> Rules | None:
    """Return a Block's function in the terms of an engine, or None where that is not known to be the same function.

    Args:
        block: a Block of a tape.
        engine: the engine that is to run and differentiate it.

    Returns:
        The rules, with one input for each dependency of the Block.
    """
    if isinstance(block, EngineBlock):
        return block.rules if block.rules.engine is engine else None
    if isinstance(block, ConversionBlock):
        ((source,), (target,)) = block.get_dependencies(), block.get_outputs()
        return _conversion(engine, aval_of(source), aval_of(target))
    if type(block) is AdjFloatExprBlock:
        return _float_rules(engine, block._np_operator, len(block.get_dependencies()))
    return None


class Lowered(NamedTuple):
    """A Block as a part of a program of an engine.

    Attributes:
        rules: its function.
        constants: the arrays of the engine that follow the values on the tape.
        numbers: the numbers of an index, which follow in their place.
    """

    rules: Rules
    constants: Arrays = ()
    numbers: tuple[int, ...] = ()


def lowered(block: Block, engine: Engine, fixed: Sequence[Any]) -> Lowered | None:
    """Return a Block as a part of a program of an engine, or None where that cannot be.

    Args:
        block: a Block of a tape.
        engine: the engine of the program.
        fixed: for each dependency, its value if it never changes, else None.
    """
    if not isinstance(block, EngineBlock):
        rules = rules_of(block, engine)
        return None if rules is None else Lowered(rules)
    own = block.rules.engine is engine
    if not own and block.rules.engine.holds != "numpy":
        return None
    indexing = indexing_of(block.rules, engine, (*fixed, *block.constants)) if engine.loops or not own else None
    if indexing is not None:
        rules, numbers = indexing
        # Numbers that are arguments make turns of a loop alike. Elsewhere they only keep engines from looking at them.
        return Lowered(rules, (), numbers) if engine.loops else Lowered(rules.at_numbers(numbers))
    if own:
        return Lowered(block.rules, block.constants)
    rules = _by_name(block.rules, engine)
    return None if rules is None or _is_odd_power(block) else Lowered(rules, block.constants)


def _is_odd_power(block: EngineBlock) -> bool:
    """Whether a power's derivative at zero depends on the engine: for a varying exponent, and for one of 0 or 1."""
    call, n = block.rules.named, block.rules.dependencies
    if call is None or call.name != "power":
        return False
    (_, exponent), _ = call.arguments(tuple(range(len(block.rules.inputs))))
    if len(block.rules.inputs) == 1:  # a whole number, which is no argument
        return False
    return exponent < n or bool(np.isin(np.asarray(block.constants[exponent - n]), (0, 1)).any())


@functools.cache  # on rules that last
def _by_name(rules: Rules, engine: Engine) -> Rules | None:
    """NumPy's arithmetic in another engine, if that does the same: shapes and dtypes, and derivatives also at kinks."""
    call = rules.named
    if call is None or call.name not in SAME_EVERYWHERE:
        return None
    if any(aval.dtype.kind not in "fcb" for aval in rules.inputs[: rules.dependencies]):
        return None  # engines have integers of other lengths
    function = taped_function(engine, call.name)
    if function is None:
        return None

    def flat(leaves: Arrays) -> Arrays:
        args, kwargs = call.arguments(leaves)
        return tuple(engine.flatten(function(*args, **kwargs))[0])

    inputs = [_in(engine, aval) for aval in rules.inputs]
    found = Rules(engine, flat, inputs, rules.dependencies, rules.active, name=call.name, lasting=True)
    try:
        found.outputs = engine.outputs_of(flat, inputs)
    except Exception:  # it does not take such arguments; each engine says so in its own way
        return None
    return found if found.outputs == rules.outputs else None


def _in(engine: Engine, aval: Aval) -> Aval:
    return aval if aval.dtype.kind in "fcb" else engine.aval(engine.enter(np.zeros(aval.shape, aval.dtype)))


@functools.cache
def _conversion(engine: Engine, source: Aval, target: Aval) -> Rules | None:
    astype, reshape = engine.function("astype"), engine.function("reshape")
    if astype is None or reshape is None or (source.dtype.kind == "c" and target.dtype.kind != "c"):
        return None

    def identity(leaves: Arrays) -> Arrays:
        (x,) = leaves
        x = x if source.dtype == target.dtype else astype(x, target.dtype)
        return (x if source.shape == target.shape else reshape(x, target.shape),)

    return _known(Rules(engine, identity, [source], 1, (0,), name="conversion"), target)


@functools.cache
def _float_rules(engine: Engine, operation: Callable[..., Any] | None, n: int) -> Rules | None:
    ufunc = _ufuncs().get(operation)
    # Python's operators are those of every engine's arrays.
    function = operation if ufunc is None else engine.function(ufunc.__name__)
    if function is None:
        return None
    name = getattr(ufunc or operation, "__name__", "operation")
    return _known(Rules(engine, lambda leaves: (function(*leaves),), [_FLOAT] * n, n, range(n), name=name), _FLOAT)


def _known(rules: Rules, output: Aval) -> Rules:
    rules.outputs, rules.lasting = (output,), True
    return rules


def float_function(block: AdjFloatExprBlock) -> Callable[..., Any] | None:
    """Return what an AdjFloat Block computes, as a function that records; None if that is not known."""
    return _ufuncs().get(block._np_operator, block._np_operator)


@functools.cache
def _ufuncs() -> dict[Any, np.ufunc]:
    """NumPy's function behind what an AdjFloat Block computes with."""
    return {recorded.__wrapped__: ufunc for ufunc, recorded in _ops.items()}
