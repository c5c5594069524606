"""The working tape and the annotation flag, one of each for every thread.

Pyadjoint has one of each in a process, and functions for them that everybody imports by name. In one thread, the home, they
stay what they are; in every other thread the same functions speak of that thread's own. AdjFloat and the Blocks of other
packages are recorded at home alone.
"""

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pyadjoint.tape as upstream
from pyadjoint.enlisting import Enlist

from pyadjoint_utils.errors import StaleTapeError, UnsupportedError

_numbers = itertools.count()
_lock = threading.Lock()
_recorders: "weakref.WeakSet[Recorder]" = weakref.WeakSet()


class Recorder:
    """What one thread records on, and whether it does.

    Attributes:
        home: whether these are the globals of Pyadjoint; of one living thread at most.
        number: tells the thread from every other one, also from those that have ended.
        saved: the flags that the ``stop_annotating`` under way will restore.
    """

    __slots__ = ("__weakref__", "_on", "_tape", "home", "ident", "number", "saved")

    def __init__(self, ident: int | None = None) -> None:
        self.home, self.number, self.ident = False, next(_numbers), ident or threading.get_ident()
        self._tape: Any = None  # until somebody asks
        self._on = True
        self.saved: list[bool] = []
        with _lock:
            _recorders.add(self)

    @property
    def tape(self) -> Any:
        if self.home:
            return upstream._working_tape
        if self._tape is None:
            from pyadjoint_utils.tapes import Tape  # it stands on this module

            self._tape = Tape()
        return self._tape

    @tape.setter
    def tape(self, tape: Any) -> None:
        if self.home:
            upstream._working_tape = tape
        else:
            self._tape = tape

    @property
    def on(self) -> bool:
        return upstream._annotation_enabled if self.home else self._on

    @on.setter
    def on(self, on: bool) -> None:
        if self.home:
            upstream._annotation_enabled = on
        else:
            self._on = on

    @property
    def records(self) -> bool:
        """Whether annotation is on, or will be on again after a ``stop_annotating``."""
        return self.on or any(self.saved)

    def restore(self, on: bool, depth: int) -> None:
        """Put the flag back, and forget every ``stop_annotating`` but the first ``depth``."""
        del self.saved[depth:]
        self.on = on

    def move_home(self, what: str) -> None:
        """Take Pyadjoint's globals over from a thread that has ended or does not record."""
        with _lock:
            other = next((r for r in _recorders if r.home), None)
            if other is not None and other.records:
                raise UnsupportedError(
                    f"{what} cannot be recorded or evaluated in thread {_name(self)} while thread {_name(other)} records: "
                    "AdjFloat and Blocks of other packages belong to one thread at a time. Use arrays and overloaded "
                    "functions here, or call pause_annotation() in the other thread first. A Block class of your own whose "
                    "code may run in any thread says so: any_thread = True."
                )
            tape, on = self.tape, self.on
            if other is not None:
                other._tape, other._on, other.home = other.tape, other.on, False
            self.home, self.tape, self.on = True, tape, on

    def holds(self, tape: Any) -> bool:
        """Whether a tape is the working tape."""
        return (upstream._working_tape if self.home else self._tape) is tape

    def take(self, tape: Any) -> None:
        """Make a tape the working tape."""
        with _lock:
            other = next((r for r in _recorders if r is not self and r.holds(tape)), None)
            if other is not None:
                raise StaleTapeError(
                    f"The tape is the working tape of thread {_name(other)}: two threads would mix up what they record. "
                    "Give each thread a tape of its own, with set_working_tape() as tape."
                )
            self.tape = tape


def _name(recorder: Recorder) -> str:
    return next((repr(t.name) for t in threading.enumerate() if t.ident == recorder.ident), str(recorder.ident))


class _Here(threading.local):
    """This thread's recorder; a thread that is new has a fresh tape and annotation on."""

    def __init__(self) -> None:
        here = threading.get_ident()
        self.recorder = _waiting.pop(here) if here in _waiting else Recorder()
        self.number = self.recorder.number


_waiting: dict[int | None, Recorder] = {}  # of threads that have not asked yet
_here = _Here()


def thread_number() -> int:
    """Return a number that no other thread has or had."""
    return _here.number


def claim(what: str) -> None:
    """Raise unless this thread may record and differentiate what Pyadjoint has only one tape for.

    Args:
        what: the value or Block, for the message.

    Raises:
        UnsupportedError: another thread records.
    """
    me = _here.recorder
    if not me.home:
        me.move_home(what)


def is_stopped() -> bool:
    """Whether this thread is inside of a ``stop_annotating``."""
    return bool(_here.recorder.saved)


def without_annotation(call: Callable[[], Any]) -> Any:
    """Return what a call returns that records nothing; Ctrl-C anywhere in it cannot leave the flag off."""
    me = _here.recorder
    on, depth = me.on, len(me.saved)
    try:
        try:
            me.saved.append(on)
            me.on = False
            return call()
        finally:
            me.restore(on, depth)
    except BaseException:
        me.restore(on, depth)
        raise


def annotate_tape(kwargs: dict[str, Any] | None = None) -> bool:
    """Return whether calls with taped values are recorded in this thread.

    Args:
        kwargs: keyword arguments of a call, from which ``annotate`` is removed; False there means no.
    """
    annotate = kwargs is None or kwargs.pop("annotate", True)
    me = _here.recorder
    return (upstream._annotation_enabled if me.home else me._on) and annotate


# What Pyadjoint's functions and context managers do instead ------------------------------------------------------------


def _get_working_tape() -> Any:
    me = _here.recorder
    return upstream._working_tape if me.home else me.tape


def _pause_annotation() -> None:
    _here.recorder.on = False


def _continue_annotation() -> bool:
    _here.recorder.on = True
    return True


def _annotate_tape(kwargs: Any = None) -> Any:
    # AdjFloat and the Blocks of other packages ask here, and record right after.
    annotate = kwargs is None or kwargs.pop("annotate", True)
    me = _here.recorder
    if me.home:
        return upstream._annotation_enabled and annotate
    if me._on and annotate:
        me.move_home("An AdjFloat, or a Block of another package,")
    return me._on and annotate


# Their code runs in Pyadjoint's module, so ``_here`` and ``upstream`` are all that they may name.
_FUNCTIONS = {
    "get_working_tape": _get_working_tape,
    "pause_annotation": _pause_annotation,
    "continue_annotation": _continue_annotation,
    "annotate_tape": _annotate_tape,
}


def _stop(self: Any) -> None:
    me = _here.recorder
    if self.modifies is not None:
        if self._orig_annotation_enabled:
            raise ValueError("stop_annotating(modifies=...) cannot be nested in itself.")
        self._orig_annotation_enabled.append(me.on)
    me.saved.append(me.on)
    me.on = False


def _restore(self: Any, *exception: Any) -> None:
    me = _here.recorder
    # One that was entered before the import of this module has its flag with it.
    me.on = me.saved.pop() if me.saved else self._orig_annotation_enabled[-1]
    if self.modifies is not None:
        self._orig_annotation_enabled.clear()
        for value in Enlist(self.modifies):
            value.clear_block_variable()


def _set_tape(self: Any, tape: Any = None, **tape_kwargs: Any) -> None:
    me = _here.recorder
    self.old_tape, self.tape = me.tape, upstream.Tape(**tape_kwargs) if tape is None else tape
    me.take(self.tape)


def _reset_tape(self: Any, *exception: Any) -> None:
    _here.recorder.tape = self.old_tape


def _install() -> None:
    """Let Pyadjoint's own functions, which everybody has imported by name, speak of the thread that calls them."""
    main = threading.main_thread()
    if upstream._working_tape is not None and threading.current_thread() is not main:
        # Somebody has used Pyadjoint before, in the main thread, which goes on with that tape.
        _waiting[main.ident] = Recorder(main.ident)
        _waiting[main.ident].home = True
    else:
        _here.recorder.home = True
    upstream._here, upstream.upstream = _here, upstream
    for name, ours in _FUNCTIONS.items():
        getattr(upstream, name).__code__ = ours.__code__
    upstream.stop_annotating.__enter__, upstream.stop_annotating.__exit__ = _stop, _restore
    upstream.set_working_tape.__init__, upstream.set_working_tape.__exit__ = _set_tape, _reset_tape


_install()
