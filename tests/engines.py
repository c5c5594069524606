"""The engines that come with the project: which of them are installed, and their namespaces."""

import importlib.util

import pytest

from pyadjoint_utils.testing import Namespace, namespace_of

# The package that an engine needs.
PACKAGES = {"jax": "jax", "tensorflow": "tensorflow", "torch": "torch", "autograd": "autograd"}
NAMES = tuple(PACKAGES)


def namespace(name: str) -> Namespace:
    """The namespace of an engine; the test is skipped, visibly, where the engine is not installed."""
    pytest.importorskip(PACKAGES[name])
    return namespace_of(name)


def installed(name: str) -> bool:
    """Whether an engine can be used here; nothing is imported."""
    return importlib.util.find_spec(PACKAGES[name]) is not None


def another(name: str) -> str:
    """Name of an installed engine with arrays of another class."""
    order = NAMES[NAMES.index(name) + 1 :] + NAMES[: NAMES.index(name)]
    return next((n for n in order if installed(n)), name)
