"""The function sinc, whose quotient and the derivatives of it lose all digits around 0."""

from collections.abc import Callable
from typing import Any

import numpy as np


def sinc_of(sin: Callable[[Any], Any], where: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return ``numpy.sinc`` for an engine's arrays, with derivatives of all orders as exact as the value.

    Args:
        sin: the engine's sine.
        where: the engine's choice between two arrays, of which the second may be a Python number.
    """

    def sinc(x: Any) -> Any:
        z = np.pi * x
        near = abs(z) < 0.5
        small = where(near, z, 0.0)
        large = where(near, 0.0 * small + 1.0, z)
        squared, series = small * small, 1.0
        for n in range(16, 0, -2):  # the next term is below a rounding of the first
            series = 1.0 - squared / (n * (n + 1)) * series
        return where(near, series, sin(large) / large)

    return sinc
