"""The tape, and what this project keeps beside it."""

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyadjoint
from checkpoint_schedules import SingleMemoryStorageSchedule
from pyadjoint import continue_annotation, get_working_tape, pause_annotation
from pyadjoint import tape as upstream_tape
from pyadjoint.tape import TapePackageData

from pyadjoint_utils.annotation import annotate_tape, claim, is_stopped, thread_number, without_annotation
from pyadjoint_utils.checkpointing.schedules import Schedule, TimeStepper
from pyadjoint_utils.constants import KeptConstants
from pyadjoint_utils.errors import ScheduleError, StaleTapeError, UnsupportedError
from pyadjoint_utils.progress import TimedBar
from pyadjoint_utils.variable import FloatVariable

if TYPE_CHECKING:
    from pyadjoint_utils.checkpointing.runs import Run

_KEY = "pyadjoint_utils"


class Tape(pyadjoint.Tape):
    """Pyadjoint's tape; functions of this project take either.

    Example:
        >>> from pyadjoint_utils import Tape, set_working_tape
        >>> with set_working_tape(Tape()) as tape:
        ...     len(tape.get_blocks())
        0
    """

    __slots__ = ()

    def add_block(self, block: pyadjoint.Block) -> int:
        """Add a Block at the end and return its index.

        Raises:
            UnsupportedError: it is a Block of another package while another thread records.
        """
        if not getattr(block, "any_thread", False):
            claim(f"A {type(block).__name__}")
        return super().add_block(block)

    def add_to_checkpointable_state(self, block_var: Any, last_used: int) -> None:
        """Nothing to do: a plan finds out what a time step needs, in linear time and for its own controls."""

    def add_to_adjoint_dependencies(self, block_var: Any, last_used: int) -> None:
        """Nothing to do, as above."""

    def enable_checkpointing(
        self,
        schedule: Any,
        gc_timestep_frequency: int | None = None,
        gc_generation: int = 2,
        *,
        directory: Any = None,
    ) -> None:
        """Store of each time step what a schedule says, and compute the rest again when a derivative needs it.

        Snapshots on disk are one file per array, removed when the tape is cleared or the process ends.

        Args:
            schedule: one of checkpoint_schedules.
            gc_timestep_frequency: collect garbage after so many time steps; None for never.
            gc_generation: which generation is collected.
            directory: an existing folder for the snapshots that the schedule stores on disk; None for a temporary one.

        Raises:
            ArgumentValueError: there is no such folder.
            ScheduleError: Blocks were recorded before, or the schedule was started elsewhere.

        Example:
            >>> from checkpoint_schedules import Revolve
            >>> from pyadjoint_utils import Control, ReducedFunctional, Tape, array, set_working_tape
            >>> with set_working_tape(Tape()) as tape:
            ...     tape.enable_checkpointing(Revolve(20, 3))
            ...     x = y = array(0.5)
            ...     for _ in tape.timestepper(range(20)):
            ...         y = y - 0.1 * y * y
            ...     rf = ReducedFunctional(y, Control(x))
            >>> rf(array(0.0)).item(), rf.derivative().item()
            (0.0, 1.0)
        """
        if self._blocks:
            raise ScheduleError(
                f"A schedule is enabled before the first Block; this tape has {len(self._blocks)} in "
                f"{len(self._blocks.steps)} time step(s). Call enable_checkpointing on a new tape, or after "
                "tape.clear_tape(), and record then."
            )
        # What that schedule says is what a tape does without one.
        if not isinstance(schedule, SingleMemoryStorageSchedule):
            manager = Schedule(schedule, directory, gc_timestep_frequency, gc_generation)
            self._checkpoint_manager = manager  # type: ignore[misc]  # a slot of upstream's

    @property
    def progress_bar(self) -> Any:
        """The class of the bars that sweeps show: True for tqdm's, None or False for none, or one of Pyadjoint's."""
        return self._bar

    @progress_bar.setter
    def progress_bar(self, bar: Any) -> None:
        chosen = TimedBar if bar is True else (bar or upstream_tape._NullProgressBar)
        self._bar = chosen  # type: ignore[misc]  # a slot of upstream's

    def copy(self) -> "Tape":
        """Return a tape of the same Blocks that further ones can be added to, under the same schedule.

        The values of the Blocks belong to both, and each notices what the other one does to them.

        Raises:
            ScheduleError: the tape is under a schedule and nobody knows yet whether its loop is over.
        """
        schedule = schedule_of(self)
        if schedule is not None and not schedule.steps:
            raise ScheduleError(
                f"A tape under a schedule ({schedule}) is copied when its program is over, which the first evaluation or "
                "derivative of a reduced function shows. Call one before tape.copy()."
            )
        other = Tape(self._blocks, {key: data.copy() for key, data in self._package_data.items()})
        if schedule is not None:
            other._checkpoint_manager = schedule  # type: ignore[misc]  # a slot of upstream's
        other.progress_bar = self._bar
        return other

    def clear_tape(self) -> None:
        """Forget all Blocks, values and snapshots."""
        manager = self._checkpoint_manager
        state = self._package_data.pop(_KEY, None)
        if state is not None:
            state.leave()
        super().clear_tape()
        if isinstance(manager, Schedule):
            manager.close()

    def timestepper(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """Return an iterator over what a time loop runs over, which tells the tape where each time step begins.

        Args:
            iterable: an iterable or an iterator.

        Raises:
            ScheduleError: later, by the loop: it has more steps than the schedule.
        """
        return TimeStepper(self, iterable)

    def end_timestep(self) -> None:
        """End a time step; for loops that do not use :meth:`timestepper`."""
        if self._checkpoint_manager is None:
            self._blocks.append_step()
        else:
            self._checkpoint_manager.next_step(self._blocks, by_hand=True)


class _Updates:
    """How many times :meth:`Control.update` has given a variable another value, whatever tape that is on."""

    count = 0


UPDATES = _Updates()


class TapeState(TapePackageData):
    """Whose evaluation the values on a tape belong to.

    Attributes:
        owner: None while the tape is as it was recorded; the object whose evaluation came last; or ``STALE``.
        updates: values that were given to variables with :meth:`Control.update`.
        run: the execution of the tape's schedule that the values belong to.
        lock: held while a Block is evaluated for its values alone, outside of the tape's evaluations.
        turn: the number of the thread that evaluates or differentiates.
        constants: what the Blocks have beside values of the tape.
        literals: the variables of numbers beside AdjFloats, by number and sign.
    """

    def __init__(self) -> None:
        self.owner: Any = None
        self.updates: dict[Any, Any] = {}
        self.run: Run | None = None
        self.lock = threading.RLock()
        self.turn: dict[str, int] = {}  # not a lock, which Ctrl-C could leave locked for ever
        self.constants = KeptConstants()
        self.literals: weakref.WeakValueDictionary[tuple[float, float], FloatVariable] = weakref.WeakValueDictionary()

    def update(self, variable: Any) -> None:
        """Take note that a variable was given another value, which the rest of the tape does not follow yet."""
        self.updates[variable] = variable._checkpoint
        self.owner = STALE

    def start(self, run: "Run | None") -> None:
        """Let go of what the last execution stored, and begin another one."""
        if self.run is not None:
            self.run.close()
        self.run = run

    def leave(self) -> None:
        """Take note that a tape has forgotten its values, which a copy of it may still have."""
        self.start(None)
        self.owner = STALE

    def clear(self) -> None:
        self.owner = None
        self.updates = {}
        self.start(None)

    def reset(self) -> None:
        # Pyadjoint calls this before it re-evaluates the tape by itself.
        self.owner = STALE

    def checkpoint(self) -> Any:
        return self.owner

    def restore_from_checkpoint(self, state: Any) -> None:
        self.owner = state

    def copy(self) -> "TapeState":
        return self  # a copy of a tape has the same variables, and what happens to them concerns both

    def continue_checkpointing(self) -> None:
        """Nothing is kept on disk."""

    def pause_checkpointing(self) -> None:
        """Nothing is kept on disk."""


STALE = object()


def state_of(tape: pyadjoint.Tape) -> TapeState:
    """Return this project's state of any Pyadjoint tape, whose derivatives are right."""
    schedule_of(tape)
    return recording_state(tape)


def recording_state(tape: pyadjoint.Tape) -> TapeState:
    """Return this project's state of any Pyadjoint tape, also of one on which it can only record."""
    state = tape._package_data.get(_KEY)
    if state is None:
        state = tape._package_data.setdefault(_KEY, TapeState())
    return state


def alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of something with a ``tape`` run without annotation, and refuse other threads on it meanwhile."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        turn, here = state_of(self.tape).turn, thread_number()
        mine = turn.get("thread") == here
        if turn.setdefault("thread", here) != here:
            raise StaleTapeError(
                "Another thread evaluates or differentiates on this tape right now: the values on it would be a mixture of "
                "two points. Record a tape in each thread, or let the threads take turns."
            )
        if mine and is_stopped():  # otherwise Ctrl-C came before the turn was given back
            return method(self, *args, **kwargs)
        try:
            return without_annotation(functools.partial(method, self, *args, **kwargs))
        finally:
            turn.clear()

    return run


@contextmanager
def afterwards(cleanup: Callable[[], None]) -> Iterator[None]:
    """Clean up whatever happens, and once more where Ctrl-C interrupts the cleaning."""
    try:
        try:
            yield
        finally:
            cleanup()
    except BaseException:
        cleanup()
        raise


def schedule_of(tape: pyadjoint.Tape) -> Schedule | None:
    """Return the schedule that a tape follows; None where all values are kept."""
    manager = tape._checkpoint_manager
    if manager is None or isinstance(manager, Schedule):
        return manager
    raise UnsupportedError(
        "Under a schedule, Pyadjoint's own tape gives silently wrong derivatives at every point but the recorded one. "
        "Record on a tape of this project: set_working_tape(pyadjoint_utils.Tape())."
    )


def working_tape(tape: pyadjoint.Tape | None) -> pyadjoint.Tape:
    """Return the given tape or the working one."""
    tape = get_working_tape() if tape is None else tape
    if tape is None:
        raise StaleTapeError("There is no working tape. Make one: set_working_tape(Tape()).")
    return tape


def truncate(tape: pyadjoint.Tape, length: int) -> None:
    """Take the Blocks after the first ``length`` off a tape again."""
    blocks = tape.get_blocks()
    extra = len(blocks) - length
    list.__delitem__(blocks, slice(length, None))
    for step in reversed(blocks.steps):
        dropped = min(extra, len(step))
        del step[len(step) - dropped :]
        extra -= dropped


class set_working_tape(pyadjoint.set_working_tape):
    """Make a tape the working tape: as a function for good, as a context manager for a block of code.

    Args:
        tape: the tape; None for a new one.

    Example:
        >>> from pyadjoint_utils import array, get_working_tape, set_working_tape
        >>> with set_working_tape() as tape:
        ...     y = array([1.0]) * 2.0
        ...     len(tape.get_blocks())
        1
    """

    def __init__(self, tape: pyadjoint.Tape | None = None, **tape_kwargs: Any) -> None:
        super().__init__(Tape(**tape_kwargs) if tape is None else tape)


class push_tape:
    """Context manager: record on a tape of its own, and restore the working tape afterwards, also after an exception.

    Args:
        tape: the tape; None for a new one.

    Example:
        >>> from pyadjoint_utils import array, get_working_tape, push_tape
        >>> outer = get_working_tape()
        >>> with push_tape() as tape:
        ...     y = array([1.0]) * 2.0
        >>> get_working_tape() is outer
        True
    """

    def __init__(self, tape: pyadjoint.Tape | None = None) -> None:
        self._tape = tape
        self._entered: list[set_working_tape] = []

    def __enter__(self) -> pyadjoint.Tape:
        context = set_working_tape(self._tape)
        self._entered.append(context)
        return context.tape

    def __exit__(self, *exception: Any) -> None:
        self._entered.pop().__exit__(*exception)


@contextmanager
def recording_on(tape: pyadjoint.Tape) -> Iterator[pyadjoint.Tape]:
    """Record on a tape, also where annotation is off; what a failed program put there is taken off again."""
    length, was_on = len(tape.get_blocks()), annotate_tape()
    with push_tape(tape):
        continue_annotation()
        try:
            yield tape
        except BaseException:
            truncate(tape, length)
            raise
        finally:
            if not was_on:
                pause_annotation()
