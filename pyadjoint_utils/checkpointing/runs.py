"""One execution of a schedule: an evaluation, and the derivative that follows it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from checkpoint_schedules import Copy, EndForward, EndReverse, Forward, Move, Reverse, StorageType
from pyadjoint import Block
from pyadjoint.tape import TimeStepSequence

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.checkpointing.recorder import Recorder
from pyadjoint_utils.checkpointing.schedules import Schedule
from pyadjoint_utils.checkpointing.snapshots import Snapshots
from pyadjoint_utils.errors import ScheduleError
from pyadjoint_utils.variable import drop

Compute = Callable[[Block], None]


class Stop(NamedTuple):
    """A Block on the way through a time step.

    Attributes:
        block: the Block.
        passes: whether a derivative passes it.
        ended: the variables that no later Block needs.
    """

    block: Block
    passes: bool
    ended: tuple[Any, ...]


class Steps:
    """The Blocks of a plan by time step, and which variables are needed how long.

    Args:
        forward: the Blocks that an evaluation runs.
        derivative: those that a derivative passes.
        lasting: variables whose values stay: sources, outputs, and what the plan takes as it was recorded.
        schedule: the schedule of the tape.
        blocks: the Blocks of the tape.
    """

    def __init__(
        self,
        forward: Sequence[Block],
        derivative: Sequence[Block],
        lasting: Iterable[Any],
        schedule: Schedule,
        blocks: TimeStepSequence,
    ) -> None:
        chosen, passing = set(forward), set(derivative)
        self.schedule = schedule
        self.prologue = [block for block in forward if block in schedule.prologue]
        self.lasting = {*lasting, *(bv for block in self.prologue for bv in block.get_outputs())}
        self.passing = passing
        self.stops: list[list[Stop]] = []
        seen = set(self.lasting)
        last = schedule.steps - 1
        # What was recorded after the loop belongs to its last step.
        for step in ([*chain.from_iterable(blocks.steps[last:])], *reversed(blocks.steps[:last])):
            stops = []
            for block in reversed(step):
                if block in chosen and block not in schedule.prologue:
                    ended = {bv: None for bv in (*block.get_outputs(), *block.get_dependencies()) if bv not in seen}
                    seen.update(ended)
                    stops.append(Stop(block, block in passing, tuple(ended)))
            self.stops.append(stops[::-1])
        self.stops.reverse()

    def needed(self, steps: Iterable[int]) -> set[Any]:
        """Return the variables that derivatives of time steps read, but for the lasting ones."""
        needed: set[Any] = set()
        for n in steps:
            for block in (stop.block for stop in self.stops[n] if stop.passes):
                needed.update(block.get_dependencies())
                if not isinstance(block, EngineBlock):  # others may look at what they returned
                    needed.update(block.get_outputs())
        return needed - self.lasting


class Run:
    """One execution of a schedule over the Blocks of a plan.

    Args:
        steps: the Blocks by time step.
        tangents: whether tangents are stored beside the values.

    Attributes:
        ready: whether the values are those that the next derivative starts from.
        computed: how many time steps were evaluated.
    """

    def __init__(self, steps: Steps, *, tangents: bool = False) -> None:
        self.steps, self._schedule, self._tangents = steps, steps.schedule, tangents
        self._actions: Iterator[Any] = self._schedule.actions()
        self._snapshots = Snapshots(self._schedule.disk)
        self._live: dict[Any, None] = {}  # what a later Block needs
        self._held: dict[Any, None] = {}  # what only a derivative needs
        self.ready = False
        self.computed = 0

    @classmethod
    def of_the_record(cls, steps: Steps, recorder: Recorder) -> "Run":
        """Return the run whose evaluation was the program itself."""
        run = cls(steps)
        members = {bv for stops in steps.stops for stop in stops for bv in stop.ended}
        run._actions, run._snapshots = recorder.actions, recorder.snapshots
        run._snapshots.restrict(members)
        for bv in recorder.held:
            if bv in members:
                run._held[bv] = None
            elif bv not in steps.lasting:
                drop(bv)
        run.ready = True
        return run

    def close(self) -> None:
        """Let go of everything that is not to last."""
        self._release(())
        self._snapshots = Snapshots(self._schedule.disk)
        self.ready = False

    def forward(self, compute: Compute) -> Iterator[Block]:
        """Evaluate; yield each Block after it was computed."""
        for block in self.steps.prologue:
            compute(block)
            yield block
        for action in self._actions:
            if isinstance(action, EndForward):
                self.ready = True
                return
            yield from self._followed(action, compute)

    def back(self, compute: Compute) -> Iterator[Block]:
        """Yield the Blocks that a derivative passes, backwards, each with its values in place.

        Raises:
            ScheduleError: the schedule is for evaluations alone.
        """
        self.ready = False
        first = next(self._actions, None)
        if first is None:
            raise ScheduleError(
                f"The schedule ({self._schedule}) stores nothing for derivatives: the last step, "
                f"{len(self.steps.stops) - 1}, is not there to begin with. Record under another one, such as "
                "Revolve(steps, snapshots); evaluations and tangents work under this one."
            )
        for action in chain([first], self._actions):
            if isinstance(action, EndReverse):
                break
            if isinstance(action, Reverse):
                yield from self._reversed(action)
            else:
                for _ in self._followed(action, compute):
                    pass
        yield from (block for block in reversed(self.steps.prologue) if block in self.steps.passing)
        following = next(self._actions, None)
        if following is None:
            self.close()
        else:
            self._actions = chain([following], self._actions)
            self.ready = True

    def _followed(self, action: Any, compute: Compute) -> Iterator[Block]:
        if isinstance(action, Forward):
            yield from self._advanced(action, compute)
        elif isinstance(action, (Copy, Move)):
            self._transfer(action)
        else:
            raise ScheduleError(f"The schedule ({self._schedule}) has an action that nobody knows: {action}.")

    def _advanced(self, action: Forward, compute: Compute) -> Iterator[Block]:
        stored = action.write_adj_deps and action.storage is not StorageType.WORK
        for n in range(action.n0, min(action.n1, len(self.steps.stops))):
            if action.write_ics and n == action.n0:
                self._store(action.storage, n, self._live)
            for block, _, ended in self.steps.stops[n]:
                compute(block)
                yield block
                for bv in block.get_outputs():
                    if bv not in self.steps.lasting:
                        self._live[bv] = None
                for bv in ended:
                    self._live.pop(bv, None)
                    if action.write_adj_deps:
                        self._held[bv] = None
                    else:
                        drop(bv)
            self.computed += 1
            if stored:
                self._store(action.storage, n, self.steps.needed([n]))
                self._let_go(self._held, ())
            self._schedule.collect_garbage(n)

    def _reversed(self, action: Reverse) -> Iterator[Block]:
        # A schedule goes on from something that is stored; what it goes on from now is not needed any more.
        self._release(self.steps.needed(action))
        for n in action:
            yield from (stop.block for stop in reversed(self.steps.stops[n]) if stop.passes)
            self._schedule.collect_garbage(n)
        if action.clear_adj_deps:
            self._release(())

    def _transfer(self, action: Any) -> None:
        if action.to_storage is StorageType.WORK:
            self._release(())
            for bv, value, tangent in self._snapshots.load(action.from_storage, action.n):
                bv._checkpoint, bv.tlm_value = value, tangent
                self._live[bv] = None
        elif action.to_storage is not StorageType.NONE:
            self._snapshots.copy(action.n, action.from_storage, action.to_storage)
        if isinstance(action, Move):
            self._snapshots.delete(action.from_storage, action.n)

    def _store(self, storage: StorageType, step: int, variables: Iterable[Any]) -> None:
        self._snapshots.open(storage, step)
        self._snapshots.add(storage, step, variables, tangents=self._tangents)

    def _release(self, needed: Iterable[Any]) -> None:
        self._let_go(self._live, needed)
        self._let_go(self._held, needed)

    def _let_go(self, variables: dict[Any, None], needed: Iterable[Any]) -> None:
        for bv in [bv for bv in variables if bv not in needed]:
            del variables[bv]
            drop(bv)
