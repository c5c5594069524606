"""What fits in memory."""

import math
import os

from pyadjoint_utils.errors import ArgumentValueError

# What the directions of one sweep may take; more of them go in several sweeps.
SWEEP = 2**28


def physical() -> int | None:
    """Bytes of memory that this machine has; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def check_matrix(what: str, shapes: list[tuple[int, ...]], size: int, remedy: str) -> None:
    """Raise if matrices are too large, before anything is computed.

    Args:
        what: what they are called, for example ``"Jacobian"``.
        shapes: their shapes.
        size: bytes that all of them take.
        remedy: what to use instead.

    Raises:
        ArgumentValueError: they and what they are put together from do not fit in memory.
    """
    there = physical()
    if there is not None and 2 * size > there:
        largest = max(shapes, key=math.prod)
        raise ArgumentValueError(
            f"This {what} takes {_gigabytes(size)} (its largest block has the shape {largest}), and as much again while it "
            f"is put together; the machine has {_gigabytes(there)} of memory. Use {remedy}."
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size > 1e8 else f"{size / 1e9:.1e} GB"
