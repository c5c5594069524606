"""A reduced function as a function of autograd."""

from collections.abc import Callable, Sequence
from typing import Any

import autograd.builtins
import autograd.numpy as anp
import numpy as np
from autograd.builtins import SequenceBox
from autograd.core import vspace
from autograd.extend import defjvp_argnums, defvjp_argnums, primitive

from bridges.autograd_tracing import aval_of
from pyadjoint_utils.errors import ArgumentTypeError
from pyadjoint_utils.evaluation import Evaluation
from pyadjoint_utils.inside.called import Inside
from pyadjoint_utils.registry import get_engine


def as_autograd(rf: Any) -> Callable[..., Any]:
    """Return a reduced function as a function of NumPy arrays that autograd differentiates, forward, reverse and nested.

    The function is a snapshot: evaluations elsewhere, updates of controls and clearing the tape do not change it, and each
    call is differentiated at its own point. Derivatives follow autograd's convention for complex numbers.

    Args:
        rf: a :class:`ReducedFunction` or :class:`ReducedFunctional`; its callbacks are not called.

    Returns:
        ``f(values, inputs=None)`` with values, inputs and outputs in lists where ``rf`` has lists, unlisted where it has a
        single one. All are NumPy arrays of the recorded shapes and dtypes, or autograd's boxes of them.

    Raises:
        ArgumentTypeError: no reduced function, or values that are no arrays.
        NotDifferentiableError: an output of a dtype without a derivative.
        StaleTapeError: the tape was cleared.

    Example:
        >>> import autograd
        >>> import numpy as np
        >>> from pyadjoint_utils import Control, ReducedFunction, array, as_autograd
        >>> x = array([1.0, 2.0])
        >>> f = as_autograd(ReducedFunction((x * x).sum(), Control(x)))
        >>> autograd.grad(f)(np.array([3.0, 4.0])).tolist()
        [6.0, 8.0]
    """
    inside = Inside(rf, get_engine("autograd"))

    def function(values: Any, inputs: Any = None) -> Any:
        given = inside.values(_opened(values), _opened(inputs))
        for k, value in enumerate(given):
            _check(inside, k, value)
        # Also what was recorded with autograd is called from outside: the tape has rules where autograd's own are wrong.
        outputs = inside.delist(inside.replay(given, lambda f, x: _called(Evaluation(f), x), whole=True))
        # A plain list of boxes has no derivative to autograd.
        return autograd.builtins.list(outputs) if isinstance(outputs, list) else outputs

    return function


def _opened(values: Any) -> Any:
    """A list, where autograd boxed one as a whole."""
    return [values[k] for k in range(len(values))] if isinstance(values, SequenceBox) else values


def _check(inside: Inside, k: int, value: Any) -> None:
    aval = aval_of(value)
    if aval is None:
        raise ArgumentTypeError(
            f"{inside.names[k]} must be a NumPy array or a number like {inside.arguments[k]}; got {type(value).__name__}."
        )
    inside.check(k, *aval)


def _called(at: Evaluation, arrays: Sequence[Any]) -> list[Any]:
    results = _call(at, *arrays)
    return [results[k] for k in range(len(at.function.outputs))]


# One primitive for all functions from outside: the derivative of one is another one ------------------------------------


@primitive
def _call(at: Evaluation, *arrays: Any) -> tuple[Any, ...]:
    return at(arrays)


def _vjp(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Callable[[Any], Any]:
    at = args[0]
    # The caller may write to an array before the derivative is taken.
    x = [a.copy() if type(a) is np.ndarray else a for a in args[1:]]
    ins = tuple([i for i in sorted(k - 1 for k in argnums) if i in at.function.active])
    outs = at.function.differentiable

    def pull_back(yb: Any) -> list[Any]:
        # autograd pairs cotangents without conjugation, the tape under Re<a, b>.
        found = _called(at.adjoint(ins, outs), [*x, *[_conj(yb[k]) for k in outs]]) if ins and outs else []
        cotangents = dict(zip(ins, found, strict=True))
        return [_conj(cotangents[k - 1]) if k - 1 in cotangents else vspace(x[k - 1]).zeros() for k in argnums]

    return pull_back


def _jvp(argnums: Any, dx: Any, ans: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
    at, *x = args
    directions = {k - 1: d for k, d in zip(argnums, dx, strict=True) if k - 1 in at.function.active}
    ins, outs = tuple(sorted(directions)), at.function.differentiable
    found = _called(at.tangent(ins, outs), [*x, *[directions[i] for i in ins]]) if ins and outs else []
    tangents = dict(zip(outs, found, strict=False))
    return tuple([tangents[k] if k in tangents else vspace(ans[k]).zeros() for k in range(len(at.function.outputs))])


def _conj(value: Any) -> Any:
    aval = aval_of(value)
    return anp.conj(value) if aval is not None and aval.dtype.kind == "c" else value


defvjp_argnums(_call, _vjp)
defjvp_argnums(_call, _jvp)
