"""What was stored of time steps, by the step and by where it is stored."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from checkpoint_schedules import StorageType

from pyadjoint_utils.checkpointing.disk import Disk, Stored
from pyadjoint_utils.variable import Variable, bare


class Snapshots:
    """Values of variables, and tangents beside them.

    Values that several snapshots share are kept once, since they are immutable. Numbers and values of other packages stay
    in memory.

    Args:
        disk: where arrays go that are to be stored on disk.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._kept: dict[tuple[StorageType, int], dict[Any, tuple[Any, Any]]] = {}
        self._files: weakref.WeakValueDictionary[tuple[Any, str], Stored] = weakref.WeakValueDictionary()

    def open(self, storage: StorageType, step: int) -> None:
        """Begin a snapshot, which may stay empty."""
        self._kept.setdefault((storage, step), {})

    def add(self, storage: StorageType, step: int, variables: Iterable[Any], *, tangents: bool = False) -> None:
        """Store the current values of variables that a snapshot does not have yet.

        Raises:
            SnapshotError: a file cannot be written.
        """
        kept = self._kept[storage, step]
        for bv in variables:
            if bv not in kept and bv._checkpoint is not None:
                tangent = bv.tlm_value if tangents else None
                kept[bv] = self._put(storage, bv, "value", bv._checkpoint), self._put(storage, bv, "tangent", tangent)

    def load(self, storage: StorageType, step: int) -> Iterator[tuple[Any, Any, Any]]:
        """Yield the variables of a snapshot with their values and tangents.

        Raises:
            SnapshotError: a file cannot be read.
        """
        for bv, (value, tangent) in self._kept[storage, step].items():
            yield bv, _taken(value), _taken(tangent)

    def copy(self, step: int, source: StorageType, target: StorageType) -> None:
        """Store what is stored in one place in another one as well."""
        self._kept[target, step] = {
            bv: (self._put(target, bv, "value", value), self._put(target, bv, "tangent", tangent))
            for bv, value, tangent in self.load(source, step)
        }

    def delete(self, storage: StorageType, step: int) -> None:
        """Let a snapshot go."""
        del self._kept[storage, step]

    def restrict(self, variables: set[Any]) -> None:
        """Let the values of all other variables go."""
        for key, kept in self._kept.items():
            self._kept[key] = {bv: entry for bv, entry in kept.items() if bv in variables}

    def _put(self, storage: StorageType, bv: Any, kind: str, value: Any) -> Any:
        if storage is not StorageType.DISK or type(bv) is not Variable or value is None:
            return value
        stored = self._files.get((bv, kind))
        if stored is None:
            stored = self._disk.store(bare(value), bv.engine)
            if isinstance(stored, Stored):
                self._files[bv, kind] = stored
        return stored


def _taken(value: Any) -> Any:
    return value.read() if isinstance(value, Stored) else value
