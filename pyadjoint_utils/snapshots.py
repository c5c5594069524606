"""What was stored of time steps, by the step and by where it is stored."""

from collections.abc import Iterable, Iterator
from typing import Any

from checkpoint_schedules import StorageType


class Snapshots:
    """Values of variables, and tangents beside them.

    Values that several snapshots share are kept once, since they are immutable.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[StorageType, int], dict[Any, tuple[Any, Any]]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def open(self, storage: StorageType, step: int) -> None:
        """Begin a snapshot, which may stay empty."""
        self._kept.setdefault((storage, step), {})

    def add(self, storage: StorageType, step: int, variables: Iterable[Any], *, tangents: bool = False) -> None:
        """Store the current values of variables that a snapshot does not have yet."""
        kept = self._kept[storage, step]
        for bv in variables:
            if bv not in kept and bv._checkpoint is not None:
                kept[bv] = bv._checkpoint, bv.tlm_value if tangents else None

    def load(self, storage: StorageType, step: int) -> Iterator[tuple[Any, Any, Any]]:
        """Yield the variables of a snapshot with their values and tangents."""
        for bv, (value, tangent) in self._kept[storage, step].items():
            yield bv, value, tangent

    def copy(self, step: int, source: StorageType, target: StorageType) -> None:
        """Store what is stored in one place in another one as well."""
        self._kept[target, step] = dict(self._kept[source, step])

    def delete(self, storage: StorageType, step: int) -> None:
        """Let a snapshot go."""
        del self._kept[storage, step]

    def restrict(self, variables: set[Any]) -> None:
        """Let the values of all other variables go."""
        for key, kept in self._kept.items():
            self._kept[key] = {bv: entry for bv, entry in kept.items() if bv in variables}
