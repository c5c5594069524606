"""A reduced function as a function of JAX."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.jax_primitives import call, narrowed, traced
from pyadjoint_utils.errors import ArgumentTypeError
from pyadjoint_utils.inside.called import Inside
from pyadjoint_utils.inside.host_function import HostFunction
from pyadjoint_utils.registry import get_engine

_log = logging.getLogger(__name__)
_NUMBERS = (int, float, complex)


def as_jax(rf: Any) -> Callable[..., Any]:
    """Return a reduced function as a function of JAX arrays, to be used in JAX programs and under JAX's transformations.

    What the tape computes with JAX becomes a part of the JAX program that calls it; the rest is called back. The function
    is a snapshot: evaluations elsewhere, updates of controls and clearing the tape do not change it, and each call is
    differentiated at its own point. Derivatives follow JAX's convention for complex numbers.

    Args:
        rf: a :class:`ReducedFunction` or :class:`ReducedFunctional`; its callbacks are not called.

    Returns:
        ``f(values, inputs=None)`` with values, inputs and outputs in lists where ``rf`` has lists, unlisted where it has a
        single one. All are arrays of JAX of the recorded shapes and dtypes (32-bit ones while JAX has no 64-bit types).

    Raises:
        ArgumentTypeError: no reduced function, or values that are no arrays.
        NotDifferentiableError: an output of a dtype without a derivative.
        StaleTapeError: the tape was cleared.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from pyadjoint_utils import Control, ReducedFunction, array, as_jax
        >>> x = array(np.array([1.0, 2.0], np.float32))
        >>> f = as_jax(ReducedFunction((x * x).sum(), Control(x)))
        >>> jax.jit(jax.grad(lambda x: f(jnp.sin(x))))(jnp.zeros(2)).tolist()
        [0.0, 0.0]
    """
    inside = Inside(rf, get_engine("jax"), "jax.vmap")
    wide = any(narrowed(aval.dtype) != aval.dtype for aval in (*inside.arguments, *inside.outputs))
    said = not wide

    def function(values: Any, inputs: Any = None) -> Any:
        nonlocal said
        narrow = not jax.config.read("jax_enable_x64")
        if narrow and not said:
            said = True
            _log.warning(
                "A tape of 64-bit numbers is cast to 32 bits and back where JAX calls it: JAX's 64-bit types are off. "
                'Turn them on with jax.config.update("jax_enable_x64", True). (Said once.)'
            )
        given = [_entered(inside, k, value, narrow) for k, value in enumerate(inside.values(values, inputs))]

        def foreign(host: HostFunction, x: Sequence[Any]) -> Sequence[Any]:
            return call(host, x, narrow)

        def constant(array: Any) -> Any:
            dtype = narrowed(array.dtype)
            return jnp.asarray(np.asarray(array).astype(dtype)) if narrow and dtype != array.dtype else array

        # Eagerly, the tape's own prepared programs are faster than a trace of them.
        whole = not any(traced(value) for value in given)
        return inside.delist(inside.replay(given, foreign, constant, whole=whole))

    return function


def _entered(inside: Inside, k: int, value: Any, narrow: bool) -> Any:
    wanted = inside.arguments[k]
    dtype = narrowed(wanted.dtype) if narrow else wanted.dtype
    if type(value) in _NUMBERS and wanted.shape == () and not (isinstance(value, complex) and dtype.kind != "c"):
        return jnp.asarray(value, dtype)
    if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
        raise ArgumentTypeError(
            f"{inside.names[k]} must be an array of JAX or NumPy like {wanted}; got {type(value).__name__}."
        )
    if narrow and value.dtype == dtype:
        inside.check(k, value.shape, wanted.dtype)
    else:
        inside.check(k, value.shape, value.dtype)
    return value if isinstance(value, jax.Array) and value.dtype == dtype else jnp.asarray(value, dtype)
