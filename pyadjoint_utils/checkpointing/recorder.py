"""What is stored while the program runs its time loop for the first time."""

import logging
from collections.abc import Iterator, Sequence, Set
from typing import Any

from checkpoint_schedules import EndForward, Forward, StorageType
from pyadjoint import Block

from pyadjoint_utils.checkpointing.disk import Disk
from pyadjoint_utils.checkpointing.snapshots import Snapshots
from pyadjoint_utils.errors import ScheduleError, SnapshotError
from pyadjoint_utils.variable import drop

_log = logging.getLogger(__name__)


class Recorder:
    """Follows the forward actions of a schedule and lets everything go that they do not store.

    Which variables a later step needs is not known yet; they are stored when that step uses them. Until then the program
    itself holds their values.

    Args:
        actions: the actions of the schedule, from their beginning.
        disk: where snapshots go that are to be stored on disk.

    Attributes:
        snapshots: what was stored.
        held: variables whose values stay where they are, for the derivative that comes next.
        lost: whether something could not be stored, so that the first derivative evaluates before.
        length: how many Blocks the program recorded.
    """

    def __init__(self, actions: Iterator[Any], disk: Disk) -> None:
        self.actions, self._disk = actions, disk
        self.snapshots = Snapshots(disk)
        self.lost = False
        self.held: dict[Any, None] = {}
        self.length = 0
        self._action: Any = None
        self._made: dict[Any, int] = {}
        self._restarts: list[tuple[int, StorageType]] = []

    def end_step(self, step: int, blocks: Sequence[Block], keep: Set[Any]) -> None:
        """Store what the schedule stores of a step, and let the values of its variables go, but for those to keep."""
        action = self._action_of(step)
        if action.write_ics and step == action.n0 and not self.lost:
            self.snapshots.open(action.storage, step)
            self._restarts.append((step, action.storage))
        for block in blocks:
            for bv in block.get_outputs():
                self._made[bv] = bv.creation_timestep = step
        used = {bv: None for block in blocks for bv in (*block.get_dependencies(), *block.get_outputs())}
        mine = [bv for bv in used if bv in self._made]  # what no Block of the loop made stays
        try:
            if not self.lost:
                self._store(action, step, mine)
        except SnapshotError as error:
            self.lost, self.snapshots = True, Snapshots(self._disk)
            _log.warning("%s (The program goes on; the first derivative evaluates before.)", error)
        if action.write_adj_deps and action.storage is StorageType.WORK:
            self.held.update(dict.fromkeys(mine))
        for bv in mine:
            if bv not in self.held and bv not in keep:
                drop(bv)

    def _store(self, action: Forward, step: int, variables: Sequence[Any]) -> None:
        for bv in variables:
            for start, storage in reversed(self._restarts):
                if self._made[bv] >= start:
                    break
                self.snapshots.add(storage, start, [bv])
        if action.write_adj_deps and action.storage is not StorageType.WORK:
            self.snapshots.open(action.storage, step)
            self.snapshots.add(action.storage, step, variables)

    def finish(self, length: int) -> None:
        """Take note that the program is over; the next action is that of a derivative."""
        action = next(self.actions)
        if not isinstance(action, EndForward):
            raise ScheduleError(f"The schedule goes on with {action} where the loop has come to its end.")
        self.length = length
        self._made.clear()

    def forget(self) -> None:
        """Let everything go."""
        for bv in self.held:
            drop(bv)
        self.held, self.snapshots = {}, Snapshots(self._disk)

    def _action_of(self, step: int) -> Forward:
        while not (isinstance(self._action, Forward) and step < self._action.n1):
            self._action = next(self.actions)
        return self._action
