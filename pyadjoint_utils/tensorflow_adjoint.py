"""CRIKit's module of that name: the same names, resolved at their first use."""

from typing import Any

import pyadjoint_utils

_NAMES = ("get_params_feed_dict", "run_tensorflow_graph")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(pyadjoint_utils, name)
    raise AttributeError(f"module 'pyadjoint_utils.tensorflow_adjoint' has no attribute {name!r}")
