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
from pyadjoint_utils.plan import aval_of
from pyadjoint_utils.rules import Rules

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
    if engine.loops and (own or block.rules.engine.holds == "numpy"):
        indexing = indexing_of(block.rules, engine, (*fixed, *block.constants))
        if indexing is not None:
            return Lowered(indexing[0], (), indexing[1])
    return Lowered(block.rules, block.constants) if own else None


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


@functools.cache
def _ufuncs() -> dict[Any, np.ufunc]:
    """NumPy's function behind what an AdjFloat Block computes with."""
    return {recorded.__wrapped__: ufunc for ufunc, recorded in _ops.items()}
