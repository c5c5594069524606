"""CRIKit's module of that name: the same names, resolved at their first use."""

from typing import Any

import pyadjoint_utils
from pyadjoint_utils.errors import RemovedOptionError

_NAMES = ("array", "asarray", "ndarray", "overload_jax", "to_adjfloat", "to_jax")
_REMOVED = ("set_default_dtype", "get_default_dtype")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(pyadjoint_utils, name)
    if name in _REMOVED:
        raise RemovedOptionError(
            f"{name} does not exist any more: there is no global default. Arrays keep the dtype that they came with; "
            "pass dtype= to array()."
        )
    raise AttributeError(f"module 'pyadjoint_utils.jax_adjoint' has no attribute {name!r}")
