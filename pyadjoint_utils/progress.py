"""Bars that show how far a sweep is: one for each sweep, with the time that is left."""

from collections.abc import Iterable, Iterator
from typing import Any


class TimedBar:
    """tqdm's bar, in a notebook its widget; it speaks all three protocols of Pyadjoint's bar classes.

    Args:
        title: what is going on.
        max: how many items there are, where they cannot say so themselves.
    """

    def __init__(self, title: str, max: int | None = None) -> None:
        self._title, self._total = title, max
        self._bar: Any = None

    def iter(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items and show how many have passed."""
        with self._made(items) as bar:
            yield from bar

    def __enter__(self) -> "TimedBar":
        self._bar = self._made(None)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.close()

    def next(self) -> None:
        """Show that another item has passed."""
        self._bar.update()

    def _made(self, items: Iterable[Any] | None) -> Any:
        from tqdm.auto import tqdm  # it takes a tenth of a second to import

        return tqdm(items, desc=self._title, total=self._total)


class Counted:
    """Items that come one by one, of which it is known how many there are.

    Args:
        items: the items.
        length: how many.
    """

    def __init__(self, items: Iterable[Any], length: int) -> None:
        self._items, self._length = items, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


def watched(bar: Any, title: str, items: Iterable[Any], length: int) -> Iterable[Any]:
    """Return items under a bar of any class that Pyadjoint takes.

    Args:
        bar: the class.
        title: what is going on.
        items: the items.
        length: how many; 0 where nobody knows.
    """
    if hasattr(bar, "iter"):
        return bar(title).iter(items if hasattr(items, "__len__") or not length else Counted(items, length))
    return _counted_off(bar(title, max=length), items)


def _counted_off(bar: Any, items: Iterable[Any]) -> Iterator[Any]:
    with bar:
        for item in items:
            yield item
            bar.next()
