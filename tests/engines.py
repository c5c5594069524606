"""The engines under one tiny namespace each, so that a scenario is written once for all of them."""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pyadjoint_utils import get_engine, overload

# The package that an engine needs, and the engine that owns the arrays it computes on.
PACKAGES = {"jax": "jax", "tensorflow": "tensorflow", "torch": "torch", "autograd": "autograd"}
NAMES = tuple(PACKAGES)


@dataclass(frozen=True)
class Namespace:
    """What scenarios need of an engine."""

    name: str
    sin: Callable[..., Any]
    exp: Callable[..., Any]
    tanh: Callable[..., Any]
    sum: Callable[..., Any]
    matmul: Callable[..., Any]
    conj: Callable[..., Any]
    abs: Callable[..., Any]
    real: Callable[..., Any]
    imag: Callable[..., Any]
    stack: Callable[..., Any]
    flip: Callable[..., Any]
    take: Callable[..., Any]
    argmax: Callable[..., Any]
    complex: Callable[..., Any]  # a real array as a complex one

    @property
    def holds(self) -> str:
        """Name of the engine that owns the arrays."""
        return get_engine(self.name).holds

    def own(self, data: np.ndarray) -> Any:
        """A NumPy array as a concrete array of the engine."""
        return get_engine(self.holds).enter(data)

    def overload(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """The function overloaded for the engine."""
        return overload(function, self.name, **options)


def _jax() -> Namespace:
    import jax.numpy as jnp

    return Namespace(
        name="jax",
        **{n: getattr(jnp, n) for n in "sin exp tanh sum matmul conj abs real imag stack argmax".split()},
        flip=jnp.flip,
        take=jnp.take,
        complex=lambda x: x + 0j,
    )


def _torch() -> Namespace:
    import torch

    return Namespace(
        name="torch",
        **{n: getattr(torch, n) for n in "sin exp tanh sum matmul conj abs real imag stack argmax".split()},
        flip=lambda x: torch.flip(x, (0,)),
        take=lambda x, i: torch.index_select(x, 0, torch.as_tensor(i)),
        complex=lambda x: x + 0j,
    )


def _tensorflow() -> Namespace:
    import tensorflow as tf

    return Namespace(
        name="tensorflow",
        **{n: getattr(tf, n) for n in "sin exp tanh matmul abs stack argmax".split()},
        **{n: getattr(tf.math, n) for n in "conj real imag".split()},
        sum=tf.reduce_sum,
        flip=lambda x: tf.reverse(x, [0]),
        take=tf.gather,
        complex=lambda x: tf.complex(x, tf.zeros_like(x)),
    )


def _autograd() -> Namespace:
    import autograd.numpy as anp

    return Namespace(
        name="autograd",
        **{n: getattr(anp, n) for n in "sin exp tanh sum matmul conj abs real imag stack argmax".split()},
        flip=anp.flipud,
        take=lambda x, i: x[i],
        complex=lambda x: x + 0j,
    )


_MAKERS = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch, "autograd": _autograd}


@functools.cache
def _namespace(name: str) -> Namespace:
    return _MAKERS[name]()


def namespace(name: str) -> Namespace:
    """The namespace of an engine; the test is skipped, visibly, where the engine is not installed."""
    pytest.importorskip(PACKAGES[name])
    return _namespace(name)


def installed(name: str) -> bool:
    """Whether an engine can be used here; nothing is imported."""
    return importlib.util.find_spec(PACKAGES[name]) is not None


def another(name: str) -> str:
    """Name of an installed engine with arrays of another class."""
    order = NAMES[NAMES.index(name) + 1 :] + NAMES[: NAMES.index(name)]
    return next((n for n in order if installed(n)), name)
