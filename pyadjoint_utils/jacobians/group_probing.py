"""Which entries of a matrix are not zero, found from a few products: groups of columns, split again and again.

Where a row meets a group of columns, a random combination of its columns is not zero there, but for a chance of rounding.
Groups that no row meets together share a product. What is found holds where the products are taken, and no
further: the caller compares a product of the matrix along another direction.
"""

from collections.abc import Callable

import numpy as np

from pyadjoint_utils.jacobians.colouring import coloured
from pyadjoint_utils.jacobians.patterns import Pattern, entries, full

# Into how many parts a group is split; fewer mean more rounds, more mean products for nothing.
PARTS = 4


def probed(multiply: Callable[[np.ndarray], np.ndarray], rows: int, columns: int, most: int) -> Pattern | None:
    """Find where a matrix has entries.

    Args:
        multiply: takes directions ``(k, columns)``, returns the matrix times each, ``(k, rows)``.
        rows: of the matrix.
        columns: of the matrix.
        most: how many products are worth it.

    Returns:
        The pattern; None if it takes more products.
    """
    length, taken = PARTS, 0
    while length < columns:
        length *= PARTS
    pattern = full(rows, 1)
    while length > 1:
        colours = coloured(pattern)
        count = 0 if colours is None else PARTS * (int(colours.max(initial=-1)) + 1)
        taken += count
        if colours is None or taken > most:
            return None
        length //= PARTS
        seeds = _seeds(count, np.arange(columns) // length, colours)
        pattern = _split(pattern, colours, ~(multiply(seeds) == 0.0), -(-columns // length))  # what is no number, too
    return pattern


def _seeds(count: int, parts: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """For each colour and part, random numbers on the columns of that part of all groups of that colour.

    Args:
        count: of directions.
        parts: the part that each column belongs to; there are ``PARTS`` in a group.
        colours: of the groups, -1 for those without entries.
    """
    rng = np.random.default_rng(0)
    seeds, colour = np.zeros((count, len(parts))), colours[parts // PARTS]
    (used,) = np.nonzero(colour >= 0)
    numbers = rng.uniform(0.5, 1.5, len(used)) * rng.choice([-1.0, 1.0], len(used))
    seeds[(colour * PARTS + parts % PARTS)[used], used] = numbers
    return seeds


def _split(pattern: Pattern, colours: np.ndarray, met: np.ndarray, count: int) -> Pattern:
    """The pattern of rows and parts, given that of rows and groups and where the products are not zero."""
    row = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))[:, None]
    k = np.arange(PARTS)
    part, first = pattern.indices[:, None] * PARTS + k, colours[pattern.indices][:, None] * PARTS
    hit = met[first + k, row] & (part < count)
    return entries(np.broadcast_to(row, hit.shape)[hit], part[hit], (pattern.shape[0], count))
