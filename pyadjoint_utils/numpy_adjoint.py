"""CRIKit's module of that name: the same names, resolved at their first use."""

from typing import Any

import pyadjoint_utils

_NAMES = ("array", "asarray", "ndarray", "overload_autograd", "point_map", "to_adjfloat", "to_numpy")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(pyadjoint_utils, name)
    raise AttributeError(f"module 'pyadjoint_utils.numpy_adjoint' has no attribute {name!r}")
