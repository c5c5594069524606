"""Nested containers of a program's arguments and results: tuples, lists, dicts and what else Python has of them."""

from collections.abc import Callable, Sequence
from typing import Any

import optree

# A namespace of our own: PyTorch changes, for the whole process, the order of dicts in the namespace "torch".
_NAMESPACE = "pyadjoint_utils"


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """Return the leaves of nested containers and their structure, to which None belongs."""
    return optree.tree_flatten(tree, namespace=_NAMESPACE)


def unflatten(structure: Any, leaves: Sequence[Any]) -> Any:
    """Undo :func:`flatten`."""
    return optree.tree_unflatten(structure, leaves)


def mapped(f: Callable[[Any], Any], tree: Any) -> Any:
    """Return the containers with ``f`` applied to each leaf."""
    return optree.tree_map(f, tree, namespace=_NAMESPACE)


def paths(tree: Any, name: str) -> list[str]:
    """Return how a message calls each leaf, such as ``args[0]['w'][1]`` for the name ``args``."""
    return [accessor.codify(name) for accessor in optree.tree_accessors(tree, namespace=_NAMESPACE)]
