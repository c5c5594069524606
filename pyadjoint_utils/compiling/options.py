"""What the user may ask of a compiled function, checked before anything is compiled."""

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from pyadjoint_utils.compiling.loops import MEMORY
from pyadjoint_utils.compiling.repetitions import TURNS
from pyadjoint_utils.engine import Engine
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError
from pyadjoint_utils.registry import get_engine

_ENGINES = "a list of names, or a dict from names to names of compilers or None"


class Options(NamedTuple):
    """The options of :meth:`ReducedFunction.compile`.

    Attributes:
        engines: names of engines, or a dict from names to compilers.
        memory: what loops keep for the derivative, None for what fits to the tape.
        turns: the least number of repetitions that makes a loop.
        budget: seconds that compiling may take.
    """

    engines: Any = ()
    memory: str | None = None
    turns: int = TURNS
    budget: float = 60.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Options":
        """Return the options that were given, checked.

        Raises:
            ArgumentTypeError: there is no such option, or a value has a wrong type.
            ArgumentValueError: a value is not one of those that the option takes.
        """
        for name in given:
            if name not in cls._fields:
                known = ", ".join([*cls._fields, "respecialize"])
                raise ArgumentTypeError(f"compile() has no option {name!r}; it has {known}.")
        options = cls(**given)
        if options.memory is not None and options.memory not in MEMORY:
            raise ArgumentValueError(f"memory must be one of {', '.join(map(repr, MEMORY))}; got {options.memory!r}.")
        _check_turns(options.turns)
        _check_budget(options.budget)
        return options

    def compilers(self) -> dict[Engine, Any]:
        """Return the engines that were asked for, each with what compiles its programs, None for the engine itself."""
        asked = _checked_engines(self.engines)
        found = [(get_engine(name), compiler) for name, compiler in asked.items()]
        return {engine: None if compiler is None else engine.compiler(compiler) for engine, compiler in found}


def _check_turns(turns: Any) -> None:
    if not isinstance(turns, Integral) or isinstance(turns, bool):
        raise ArgumentTypeError(f"turns is the least number of repetitions that makes a loop, an int; got {turns!r}.")
    if turns < 2:
        raise ArgumentValueError(
            f"turns is the least number of repetitions that makes a loop, 2 or more; got {turns}. For a program without "
            "loops write a number that is larger than twice the number of Blocks."
        )


def _check_budget(budget: Any) -> None:
    if not isinstance(budget, Real) or isinstance(budget, bool):
        raise ArgumentTypeError(f"budget is how many seconds compiling may take, a number; got {budget!r}.")
    if math.isnan(budget) or budget < 0:
        raise ArgumentValueError(f"budget is how many seconds compiling may take, 0 or more; got {budget}.")


def _checked_engines(engines: Any) -> Mapping[str, str | None]:
    """The engines with the names of their compilers."""
    if isinstance(engines, str) or not isinstance(engines, Iterable):
        example = f"[{engines!r}]" if isinstance(engines, str) else '["torch"]'
        raise ArgumentTypeError(f"engines is {_ENGINES}; got {engines!r}. Write engines={example}.")
    asked = dict(engines) if isinstance(engines, Mapping) else dict.fromkeys(map(_checked_name, engines))
    for name, compiler in asked.items():
        _checked_name(name)
        if compiler is not None and not isinstance(compiler, str):
            raise ArgumentTypeError(f"engines is {_ENGINES}; got {compiler!r} as the compiler of {name!r}.")
    return asked


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"engines is {_ENGINES}; got the name {name!r}.")
    return name
