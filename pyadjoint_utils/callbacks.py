"""What is told of each iteration of an optimizer, and to whom."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Iteration:
    """One iteration of an optimizer.

    Attributes:
        number: counted from 1.
        value: the functional.
        gradient_norm: Euclidean norm of the last gradient, NaN for methods without one.
        evaluations: evaluations of the functional so far.
        seconds: time since the start.
        controls: values of the controls, unlisted if there is one.
    """

    number: int
    value: float
    gradient_norm: float
    evaluations: int
    seconds: float
    controls: Any


class Callback:
    """Called after each iteration of :func:`minimize`; subclass it, or pass any function of an :class:`Iteration`.

    Example:
        >>> from pyadjoint_utils import Callback
        >>> class Last(Callback):
        ...     def __call__(self, iteration):
        ...         self.value = iteration.value
    """

    def __call__(self, iteration: Iteration) -> Any:
        """Take one iteration; return True to stop."""
        raise NotImplementedError

    def close(self) -> None:
        """Called once at the end."""


class FileLoggerCallback(Callback):
    """Writes one line of comma-separated values per iteration: number, value, gradient norm, evaluations, seconds.

    Args:
        path: the file; it is replaced.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._file = self._path.open("w", encoding="utf-8")
        self._write("iteration,value,gradient_norm,evaluations,seconds")

    def __call__(self, iteration: Iteration) -> None:
        i = iteration
        self._write(f"{i.number},{i.value!r},{i.gradient_norm!r},{i.evaluations},{i.seconds:.6f}")

    def close(self) -> None:
        self._file.close()

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()


class CallbackCombiner(Callback):
    """Calls several callbacks in order; stops if one of them asks for it.

    Args:
        callbacks: callbacks or functions of an :class:`Iteration`.
    """

    def __init__(self, callbacks: Sequence[Callable[[Iteration], Any]]) -> None:
        self._callbacks = list(callbacks)

    def __call__(self, iteration: Iteration) -> bool:
        answers = [callback(iteration) for callback in self._callbacks]  # each is called, whatever the others say
        return any(answers)

    def close(self) -> None:
        for callback in self._callbacks:
            if isinstance(callback, Callback):
                callback.close()
