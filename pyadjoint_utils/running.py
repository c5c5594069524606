"""Which engines run an overloaded function; eager engines have no tracers that would tell."""

import threading
from typing import Any

from pyadjoint_utils.engine import Engine


class _Running(threading.local):
    """The calls that are under way in this thread."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.names: list[str] = []
        self.structure: Any = None  # of what the last run of a user's function returned


RUNNING = _Running()


def running_engine() -> Engine | None:
    """Return the engine whose overloaded function runs in this thread, or None."""
    return RUNNING.engines[-1] if RUNNING.engines else None


def running_name() -> str:
    """Return the name of the overloaded function that runs in this thread."""
    return RUNNING.names[-1] if RUNNING.names else ""
