"""Values that pass no derivative."""

import functools
from typing import Any

from pyadjoint import AdjFloat

from pyadjoint_utils import trees
from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.conversion import to_adjfloat
from pyadjoint_utils.engine import Engine
from pyadjoint_utils.errors import ArgumentTypeError
from pyadjoint_utils.numpy_functions import differentiator
from pyadjoint_utils.overloading import Overloaded
from pyadjoint_utils.registry import get_engine, tracing_engine
from pyadjoint_utils.values import ndarray


def stop_gradient(x: Any) -> Any:
    """Return a value that is replayed like the given one and passes no derivative, in programs and on any tape.

    Args:
        x: an array of any engine, a number, or nested containers of them; what is not taped is returned as it is.

    Returns:
        The value, in the same containers.

    Raises:
        ArgumentTypeError: a value of an engine's own differentiation, which has its own function for that.

    Example:
        >>> from pyadjoint_utils import grad, stop_gradient
        >>> float(grad(lambda x: x * stop_gradient(x))(3.0))
        3.0
    """
    return trees.mapped(_stopped, x)


def _stopped(leaf: Any) -> Any:
    if isinstance(leaf, ndarray):
        return _constant(differentiator(leaf))(leaf)
    if isinstance(leaf, AdjFloat) and annotate_tape():
        return to_adjfloat(_constant(get_engine("autograd"))(leaf))
    if (engine := tracing_engine(leaf)) is not None:
        raise ArgumentTypeError(
            f"stop_gradient got a value of {engine.name}'s own differentiation; got {type(leaf).__name__}. Use "
            f"{engine.name}'s own function there, such as jax.lax.stop_gradient or tensor.detach()."
        )
    return leaf


@functools.cache
def _constant(engine: Engine) -> Any:
    return Overloaded(lambda x: x, engine, argnums=(), name="stop_gradient")
