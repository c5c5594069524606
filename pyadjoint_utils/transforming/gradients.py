"""Gradients of programs of overloaded functions, whatever engines they span.

By complex variables they are the directions of steepest ascent, the conjugates of JAX's.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from pyadjoint_utils.transforming.calls import Call
from pyadjoint_utils.transforming.leaves import Seeds
from pyadjoint_utils.transforming.linear_maps import inputs_of
from pyadjoint_utils.transforming.sweeps import adjoints

Function = Callable[..., Any]


def grad(
    fun: Function,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Function:
    """Return a function that computes the gradient of a program with a real scalar result.

    Args:
        fun: a program of overloaded functions and NumPy operations. Its arguments at ``argnums`` are arrays of any engine
            or numbers, in nested containers; it returns a scalar of shape ``()``.
        argnums: position, or positions, of the arguments to differentiate by.
        has_aux: whether ``fun`` returns a pair of the scalar and auxiliary data.
        holomorphic: whether ``fun`` is a holomorphic function from complex to complex numbers.
        allow_int: whether integers may stand among these arguments; their gradients are empty, of dtype ``float0``.

    Returns:
        A function with the arguments of ``fun``. It returns the gradient in the containers, engines, shapes and dtypes of
        the argument, or a tuple of gradients where ``argnums`` is a sequence; with ``has_aux`` a pair of that and the
        auxiliary data. By complex variables it is the direction of steepest ascent, the conjugate of JAX's.

    Raises:
        ArgumentTypeError: an argument or a result of a wrong type or dtype.
        ArgumentValueError: ``argnums`` names an argument that was not passed by position.
        NotDifferentiableError: the result is no scalar, or it was computed off the tape.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import grad
        >>> round(float(grad(np.tanh)(0.2)), 6)
        0.961043
    """
    both = _value_and_grad(fun, argnums, has_aux, holomorphic, allow_int, "grad")

    @functools.wraps(fun, updated=())
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, result = both(*args, **kwargs)
        return (result, value[1]) if has_aux else result

    return gradient


def value_and_grad(
    fun: Function,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Function:
    """Return a function that computes the value of a program and its gradient.

    Args:
        fun: a program with a scalar result; this and the others as for :func:`grad`.
        argnums: position, or positions, of the arguments to differentiate by.
        has_aux: whether ``fun`` returns a pair of the scalar and auxiliary data.
        holomorphic: whether ``fun`` is holomorphic.
        allow_int: whether integers may stand among the arguments.

    Returns:
        A function that returns ``(value, gradient)``; with ``has_aux`` it is ``((value, aux), gradient)``.

    Raises:
        ArgumentTypeError: as :func:`grad`, and so are the others.
        ArgumentValueError: see there.
        NotDifferentiableError: see there.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import value_and_grad
        >>> value, gradient = value_and_grad(lambda x: (x**2).sum())(np.array([1.0, 2.0]))
        >>> float(value), gradient.tolist()
        (5.0, [2.0, 4.0])
    """
    return _value_and_grad(fun, argnums, has_aux, holomorphic, allow_int, "value_and_grad")


def _value_and_grad(
    fun: Function, argnums: int | Sequence[int], has_aux: bool, holomorphic: bool, allow_int: bool, name: str
) -> Function:
    @functools.wraps(fun, updated=())
    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        call = Call(fun, args, kwargs, argnums, has_aux=has_aux, name=name)
        program = call.differentiable_program(holomorphic=holomorphic, allow_int=allow_int, scalar=True)
        seeds = Seeds([1.0] * len(program.live), program.outs, program.out_paths, name)
        gradients = call.like_arguments(inputs_of(program, adjoints(program, seeds)))
        value, aux = program.handed()
        return ((value, aux) if has_aux else value), gradients

    return value_and_gradient
