"""The schedule of a tape: which values of a time loop are stored, and which are computed again."""

import copy
import gc
from collections.abc import Iterable, Iterator, Set
from itertools import takewhile
from operator import length_hint
from typing import Any

from checkpoint_schedules import CheckpointSchedule, EndForward, Forward, StorageType
from pyadjoint import Block
from pyadjoint.tape import TimeStepSequence

from pyadjoint_utils.checkpointing.disk import Disk
from pyadjoint_utils.checkpointing.recorder import Recorder
from pyadjoint_utils.errors import ArgumentTypeError, ScheduleError, UnsupportedError
from pyadjoint_utils.progress import watched


class Schedule:
    """What a tape under a schedule knows of its time loop; it stands where Pyadjoint has its checkpoint manager.

    Every sweep follows the schedule from its beginning, on a copy that nobody has started.

    Args:
        schedule: one of checkpoint_schedules.
        directory: where snapshots on disk go; None for a temporary folder.
        gc_timestep_frequency: collect garbage after so many steps; None for never.
        gc_generation: which generation is collected.

    Attributes:
        disk: the snapshots' folder.
        steps: how many time steps were recorded; 0 as long as the loop goes on.
        recorder: what the recording stored, until an evaluation takes it over or lets it go.
        prologue: the Blocks before the loop, which no schedule speaks of: their values stay.
    """

    def __init__(
        self,
        schedule: CheckpointSchedule,
        directory: Any = None,
        gc_timestep_frequency: int | None = None,
        gc_generation: int = 2,
    ) -> None:
        if not isinstance(schedule, CheckpointSchedule):
            raise ArgumentTypeError(
                f"enable_checkpointing takes a schedule of checkpoint_schedules; got {type(schedule).__name__}. Write for "
                "example tape.enable_checkpointing(checkpoint_schedules.Revolve(steps, snapshots))."
            )
        if hasattr(schedule, "iter"):
            raise ScheduleError(
                f"This {type(schedule).__name__} was started before, so that its first actions are gone. Make a new one."
            )
        if gc_timestep_frequency is not None and not isinstance(gc_timestep_frequency, int):
            raise ArgumentTypeError(
                f"gc_timestep_frequency counts time steps; got {type(gc_timestep_frequency).__name__}. Give an int or None."
            )
        self._template = _copied(schedule)
        self._garbage = gc_timestep_frequency, gc_generation
        self.disk = Disk(directory)
        self.steps = 0
        self.prologue: frozenset[Block] = frozenset()
        self._following = _copied(schedule)
        self.recorder: Recorder | None = Recorder(self._following, self.disk)
        self._loop: Any = None
        self._loops = 0
        self._finished_by_hand = False

    def __str__(self) -> str:
        return f"{type(self._template).__name__}, {self.steps or 'a number of'} time steps"

    def actions(self) -> Iterator[Any]:
        """Yield the actions of one execution."""
        schedule = _copied(self._template)
        for action in schedule:
            yield action
            if schedule.max_n is None and isinstance(action, Forward) and action.n1 >= self.steps:
                schedule.finalize(self.steps)

    def states(self) -> int:
        """Return how many steps have something stored in memory when an evaluation is over."""
        kept: set[int] = set()
        for action in takewhile(lambda action: not isinstance(action, EndForward), self.actions()):
            if isinstance(action, Forward) and action.storage in (StorageType.RAM, StorageType.WORK):
                kept.update(range(action.n0, min(action.n1, self.steps)) if action.write_adj_deps else ())
                kept.update([action.n0] if action.write_ics else ())
        return len(kept)

    def collect_garbage(self, step: int) -> None:
        """Collect garbage if it is due after a time step."""
        frequency, generation = self._garbage
        if frequency and step % frequency == 0:
            gc.collect(generation)

    # While the program runs --------------------------------------------------------------------------------------------

    def begin_loop(self, loop: Any, blocks: TimeStepSequence) -> None:
        """Take note that a time loop begins its first step."""
        if self.steps:
            raise ScheduleError(
                "A time loop begins on a tape that was evaluated under its schedule already. Record it on a tape of its "
                "own: set_working_tape(Tape())."
            )
        if self._loop is not None:
            last = len(blocks.steps) - 1
            raise ScheduleError(
                f"A time loop begins while another one is in step {last}, counted from 0. Time loops do not nest: let the "
                f"outer one alone run over tape.timestepper(...). If the other one was left in step {last}, by break, "
                "return or an exception, clear the tape (tape.clear_tape()), enable the schedule again and record anew."
            )
        if not blocks.steps:
            blocks.append_step()
        self._loops += 1
        if len(blocks.steps) == 1:
            self.prologue = frozenset(blocks)
        self._loop = loop

    def end_loop(self) -> None:
        """Take note that the loop came to its end."""
        self._loop = None

    def next_step(self, blocks: TimeStepSequence, *, by_hand: bool) -> None:
        """Close the current step and begin another one."""
        if self.steps:
            raise ScheduleError("A time step ends on a tape that was evaluated under its schedule already.")
        if not blocks.steps:
            blocks.append_step()
        count, planned = len(blocks.steps), self._template.max_n
        if planned is not None and count >= planned:
            if by_hand and not self._finished_by_hand:
                self._finished_by_hand = True
                return
            raise ScheduleError(
                f"{self._planned()}, and the loop goes on to step {count}, counted from 0. Make it for as many steps as "
                "the loop has, or take one that needs no number, such as TwoLevelCheckpointSchedule(period, snapshots)."
            )
        self._record(count - 1, blocks)
        blocks.append_step()

    def finish(self, blocks: TimeStepSequence, keep: Set[Any]) -> None:
        """Take note that the program is over, and check that the schedule fits; nothing the second time.

        Args:
            blocks: the Blocks of the tape.
            keep: variables whose values are not let go.
        """
        if self.steps:
            return
        self._check_loop(len(blocks.steps))
        steps = list(blocks.steps)
        while len(steps) > 1 and not steps[-1] and self._template.max_n is None:
            steps.pop()  # a loop by hand may end its last step, too
        count, planned = len(steps), self._template.max_n
        if planned is not None and planned != count:
            raise ScheduleError(
                f"{self._planned()}, and the tape has {count}: the last step recorded is {count - 1}, counted from 0. Make "
                "the schedule for as many steps as the loop has, and run the loop over tape.timestepper(...)."
                + (
                    f" Of {self._loops} loops, each but the first went on in the last step of the one before."
                    if self._loops > 1
                    else ""
                )
            )
        self._record(count - 1, blocks, keep)
        if planned is None:
            self._following.finalize(count)
        if self.recorder is not None:
            self.recorder.finish(len(blocks))
        self.steps = count

    def record_of(self, blocks: TimeStepSequence) -> Recorder | None:
        """Return what the recording stored if nothing was recorded since; whoever asks becomes the owner."""
        recorder = self.recorder
        if recorder is None or recorder.lost or recorder.length != len(blocks):
            return None
        self.recorder = None
        return recorder

    def forget_record(self) -> None:
        """Let go of what the recording stored."""
        if self.recorder is not None:
            self.recorder.forget()
            self.recorder = None

    def close(self) -> None:
        """Remove everything that is stored."""
        self.forget_record()
        self.disk.close()

    def _record(self, step: int, blocks: TimeStepSequence, keep: Set[Any] = frozenset()) -> None:
        if self.recorder is not None:
            self.recorder.end_step(step, [block for block in blocks.steps[step] if block not in self.prologue], keep)
        self.collect_garbage(step)

    def _check_loop(self, count: int) -> None:
        if self._loop is not None:
            raise ScheduleError(
                f"The time loop was left in step {count - 1}, counted from 0, before it came to its end (by break, return "
                "or an exception, or because this stands in the loop), so that the schedule does not know what was stored "
                "of that step. Let the iterable end first, a generator if need be; or clear the tape (tape.clear_tape()), "
                "enable the schedule again and record anew."
            )

    def _planned(self) -> str:
        return f"The schedule, {type(self._template).__name__}, is for {self._template.max_n} time steps"

    # Where Pyadjoint asks its manager ------------------------------------------------------------------------------------

    def recompute(self, functional: Any = None) -> None:
        """Refuse Pyadjoint's own reduced functionals."""
        raise _not_ours()

    def evaluate_adj(self, last_block: int, markings: bool) -> None:
        """Refuse Pyadjoint's own drivers."""
        raise _not_ours()


class TimeStepper:
    """The iterator that ``tape.timestepper`` makes: it tells the tape where time steps begin.

    Args:
        tape: the tape.
        iterable: what the loop runs over.
    """

    def __init__(self, tape: Any, iterable: Iterable[Any]) -> None:
        self._tape = tape
        self._iterator = iter(watched(tape.progress_bar, "Taping forward", iterable, length_hint(iterable)))
        self._first = True

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        schedule = self._tape._checkpoint_manager
        try:
            item = next(self._iterator)
        except StopIteration:
            if schedule is not None:
                schedule.end_loop()
            raise
        if schedule is None and not self._first:
            self._tape.end_timestep()
        elif schedule is not None and self._first:
            schedule.begin_loop(self, self._tape.get_blocks())
        elif schedule is not None:
            schedule.next_step(self._tape.get_blocks(), by_hand=False)
        self._first = False
        return item


def _copied(schedule: CheckpointSchedule) -> CheckpointSchedule:
    """A schedule that has not been started, with containers of its own; what is in them does not change."""
    other = copy.copy(schedule)
    for name, value in vars(other).items():
        if isinstance(value, (list, dict, set)):
            setattr(other, name, copy.copy(value))
    return other


def _not_ours() -> UnsupportedError:
    return UnsupportedError(
        "This tape has a schedule, which the reduced functionals and drivers of this project follow and those of Pyadjoint "
        "do not. Import ReducedFunctional, Control and compute_gradient from pyadjoint_utils."
    )
