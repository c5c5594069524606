"""Calls of functions that every engine has under the same name."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pyadjoint_utils.engine import Arrays

Arguments = tuple[Sequence[Any], dict[str, Any]]


class NamedCall(NamedTuple):
    """How a function of a NumPy name was called.

    Attributes:
        name: the name, which :meth:`pyadjoint_utils.Engine.function` knows.
        arguments: puts arrays, of whichever engine, where the call had some; returns the call's args and kwargs.
    """

    name: str
    arguments: Callable[[Arrays], Arguments]
