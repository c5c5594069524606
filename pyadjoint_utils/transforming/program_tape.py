"""The tape of a program that is transformed: closed, so that nothing outside moves what was recorded on it."""

import weakref
from collections.abc import Sequence
from typing import Any

from pyadjoint import AdjFloat

from pyadjoint_utils.tapes import Tape
from pyadjoint_utils.values import ndarray


class ProgramTape(Tape):
    """A tape on which a value from outside, an argument or a captured one, has a stand-in of its own.

    Attributes:
        entries: pairs of a value from outside and its stand-in.
    """

    __slots__ = ("_known", "_made", "_own", "_scanned", "entries")

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, Any]] = []
        self._known: dict[int, Any] = {}
        self._made: list[weakref.ref[Any]] = []
        self._own: set[Any] = set()
        self._scanned = 0

    def enter(self, source: Any) -> Any:
        """Return a new stand-in for a value from outside."""
        stand_in = AdjFloat(float(source)) if isinstance(source, AdjFloat) else ndarray(source._value, source._engine)
        return self.link(source, stand_in)

    def link(self, source: Any, stand_in: Any) -> Any:
        """Take a value for the stand-in of another one."""
        self.entries.append((source, stand_in))
        self._own.add(stand_in.block_variable)
        return stand_in

    def connected(self, sources: Sequence[Any], results: Sequence[Any]) -> list[Any]:
        """Take note of what a Block computes, and return what it computes with as this tape knows it."""
        self._made += [weakref.ref(value) for value in results if isinstance(value, ndarray)]
        return [self.local(value) for value in sources]

    def local(self, value: Any) -> Any:
        """Return a value as this tape knows it."""
        if not isinstance(value, (ndarray, AdjFloat)):
            return value
        variable = value._block_variable()
        if variable is not None and self.owns(variable):
            return value
        key = id(value if variable is None else variable)
        if key not in self._known:
            # Both are kept, so that the id stays theirs.
            self._known[key] = (value, variable, self.enter(value))
        return self._known[key][2]

    def owns(self, variable: Any) -> bool:
        """Whether a variable is a stand-in or computed by a Block of this tape."""
        blocks = self.get_blocks()
        for k in range(self._scanned, len(blocks)):
            self._own.update(blocks[k].get_outputs())
        self._scanned = len(blocks)
        return variable in self._own

    def arrays(self) -> list[ndarray]:
        """The arrays of this tape that somebody still holds."""
        alive = [stand_in for _, stand_in in self.entries if isinstance(stand_in, ndarray)]
        alive += [value for ref in self._made if (value := ref()) is not None]
        return list({id(value): value for value in alive}.values())
