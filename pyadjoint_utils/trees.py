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


def mismatches(given: Any, wanted: Any, name: str) -> list[str]:
    """Return what differs between two structures, such as ``tangents[0]['w'] is missing``.

    Args:
        given: a structure that :func:`flatten` returned.
        wanted: the structure that it should be.
        name: how a message calls the first one.
    """
    if given == wanted:
        return []
    if given.type is not wanted.type:
        return [f"{name} must be {_kind(wanted)} and is {_kind(given)}"]
    theirs, ours = _children(given, name), _children(wanted, name)
    found = [f"{path} is missing" for path in ours if path not in theirs]
    found += [f"{path} has no counterpart" for path in theirs if path not in ours]
    for path, child in ours.items():
        found += mismatches(theirs[path], child, path) if path in theirs else []
    return found or [f"{name} must be {wanted} and is {given}"]


def _kind(structure: Any) -> str:
    return "a value" if structure.is_leaf() else "None" if structure.type is type(None) else structure.type.__name__


def _children(structure: Any, name: str) -> dict[str, Any]:
    level = structure.one_level()
    accessors = [] if level is None else level.accessors()
    return {accessor.codify(name): child for accessor, child in zip(accessors, structure.children(), strict=True)}
