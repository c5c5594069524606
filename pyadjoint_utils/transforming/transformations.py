"""Tangents and adjoints of programs of overloaded functions, whatever engines they span.

They follow JAX's signatures. Cotangents follow the tape's convention, in which the adjoint is ``J^H`` under ``Re<a, b>``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pyadjoint import stop_annotating

from pyadjoint_utils import trees
from pyadjoint_utils.black_boxes.differences import precision, random_like
from pyadjoint_utils.errors import ArgumentTypeError, NotLinearError
from pyadjoint_utils.recording import NotRecordableError
from pyadjoint_utils.transforming.calls import Call, check_inputs, check_scalar
from pyadjoint_utils.transforming.gradients import grad
from pyadjoint_utils.transforming.leaves import Seeds, input_of
from pyadjoint_utils.transforming.linear_maps import (
    Cotangent,
    Tangent,
    directions_of,
    in_containers,
    inputs_of,
    outputs_of,
)
from pyadjoint_utils.transforming.sweeps import adjoints, second_adjoints
from pyadjoint_utils.transforming.sweeps import tangents as push
from pyadjoint_utils.transforming.traced import Traced
from pyadjoint_utils.values import ndarray

Function = Callable[..., Any]


def jvp(fun: Function, primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool = False) -> tuple[Any, ...]:
    """Return the value of a program and its derivative in a direction.

    Args:
        fun: a program of overloaded functions and NumPy operations.
        primals: its positional arguments, a tuple or list.
        tangents: a direction for each of them, in the same containers and shapes.
        has_aux: whether ``fun`` returns a pair of its result and auxiliary data.

    Returns:
        ``(value, tangent)``; with ``has_aux`` it is ``(value, tangent, aux)``.

    Raises:
        ArgumentTypeError: the containers of primals and tangents differ.
        ArgumentValueError: their shapes do.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import jvp
        >>> value, tangent = jvp(np.sin, (0.1,), (0.2,))
        >>> round(float(value), 8), round(float(tangent), 8)
        (0.09983342, 0.19900083)
    """
    call, program = _run(fun, primals, tangents, has_aux, "jvp")
    found = outputs_of(program, push(program, directions_of(program, call.structure, tangents)))
    value, aux = program.handed()
    return (value, found, aux) if has_aux else (value, found)


def _run(
    fun: Function, primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool, name: str
) -> tuple[Call, Traced]:
    for what, given in (("primals", primals), ("tangents", tangents)):
        if not isinstance(given, (tuple, list)):
            raise ArgumentTypeError(
                f"{name}: {what} must be a tuple or list with one entry for each argument; got {type(given).__name__}."
            )
    call = Call(fun, primals, {}, None, has_aux=has_aux, name=name)
    in_containers(name, "tangents", tuple(tangents), "primals", call.structure)
    return call, call.program()


def linearize(fun: Function, *primals: Any, has_aux: bool = False) -> tuple[Any, ...]:
    """Return the value of a program and its derivative as a linear function.

    The program is run once, and the function can be applied many times.

    Args:
        fun: a program of overloaded functions and NumPy operations.
        primals: its arguments.
        has_aux: whether ``fun`` returns a pair of its result and auxiliary data.

    Returns:
        ``(value, f_jvp)``; with ``has_aux`` it is ``(value, f_jvp, aux)``. ``f_jvp(*tangents)`` returns the tangent of the
        result for one direction for each argument. ``f_jvp.batched(*tangents)`` takes many directions at once: every array
        of tangents has a leading axis more than the argument, one entry for each direction, and so has every result.

    Raises:
        ArgumentTypeError: an argument of a wrong type; later, tangents in other containers than the arguments.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import linearize
        >>> y, f_jvp = linearize(lambda x: 3.0 * np.sin(x) + np.cos(x / 2.0), 2.0)
        >>> round(float(y), 5), round(float(f_jvp(3.0)), 5), np.round(f_jvp.batched(np.array([3.0, 4.0])).numpy(), 5)
        (3.26819, -5.00753, array([-5.00753, -6.6767 ]))
    """
    call = Call(fun, primals, {}, None, has_aux=has_aux, name="linearize")
    program = call.program()
    value, aux = program.handed()
    return (value, Tangent(call, program), aux) if has_aux else (value, Tangent(call, program))


def vjp(fun: Function, *primals: Any, has_aux: bool = False) -> tuple[Any, ...]:
    """Return the value of a program and the adjoint of its derivative as a function.

    Args:
        fun: a program of overloaded functions and NumPy operations.
        primals: its arguments.
        has_aux: whether ``fun`` returns a pair of its result and auxiliary data.

    Returns:
        ``(value, f_vjp)``; with ``has_aux`` it is ``(value, f_vjp, aux)``. ``f_vjp(cotangent)`` takes a cotangent in the
        containers and shapes of the result and returns ``J^H`` times it under ``Re<a, b>``: a tuple with one entry for each
        argument. ``f_vjp.batched(cotangent)`` takes many at once, along a leading axis.

    Raises:
        ArgumentTypeError: an argument of a wrong type; later, a cotangent in other containers than the result.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import vjp
        >>> value, f_vjp = vjp(lambda x, y: (np.sin(x), np.cos(y)), 0.5, 1.0)
        >>> [round(float(ct), 8) for ct in f_vjp((-0.7, 0.3))]
        [-0.61430779, -0.2524413]
    """
    call = Call(fun, primals, {}, None, has_aux=has_aux, name="vjp")
    program = call.program()
    value, aux = program.handed()
    return (value, Cotangent(call, program), aux) if has_aux else (value, Cotangent(call, program))


def cvjp(fun: Function, *primals: Any, jidx: int | None = None) -> tuple[Any, Function]:
    """Return the value of a program and its product with the conjugate transpose of the Jacobian, as a function.

    Args:
        fun: a program of overloaded functions and NumPy operations.
        primals: its arguments.
        jidx: position of the argument by which the Jacobian is taken; None for all.

    Returns:
        ``(value, conj_vjp)``; ``conj_vjp(v)`` returns ``J^H v``, a tuple with one entry for each argument, or with one
        entry alone where ``jidx`` is given.

    Raises:
        ArgumentValueError: ``jidx`` out of range.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import cvjp
        >>> A = np.array([[1.0, 2.0j], [0.0, 1.0]])
        >>> value, conj_vjp = cvjp(lambda x: A @ x, np.array([1.0 + 0j, 0.0]))
        >>> conj_vjp(np.array([1.0 + 0j, 0.0]))[0].tolist() == [1.0, -2.0j]
        True
    """
    call = Call(fun, primals, {}, jidx, has_aux=False, name="cvjp")
    program = call.program()
    value, _ = program.handed()
    return value, Cotangent(call, program)


def linear_adjoint(fun: Function, *primals: Any) -> Function:
    """Return the conjugate transpose of a linear program.

    The program is run once, at a random point, where it is also checked that it is linear. What is linear around every
    point but not as a whole, such as ``abs(x)``, is not told apart there.

    Args:
        fun: a linear program of overloaded functions and NumPy operations.
        primals: its arguments; only their containers, shapes and dtypes count, so that anything with the attributes
            ``shape`` and ``dtype`` will do.

    Returns:
        A function of a cotangent in the containers and shapes of the result; it returns a tuple with one entry for each
        argument, of the argument's shape and dtype.

    Raises:
        NotLinearError: the program is not linear.

    Example:
        >>> import numpy as np
        >>> from types import SimpleNamespace
        >>> from pyadjoint_utils import linear_adjoint
        >>> scalar = SimpleNamespace(shape=(), dtype=np.dtype(np.float32))
        >>> f_adjoint = linear_adjoint(lambda x, y: 0.5 * x - 0.5 * y, scalar, scalar)
        >>> [float(ct) for ct in f_adjoint(1.0)]
        [0.5, -0.5]
    """
    point = trees.mapped(_somewhere, primals)
    call = Call(fun, point, {}, None, has_aux=False, name="linear_adjoint")
    check_inputs(call, holomorphic=False)
    program = call.program()
    adjoint = Cotangent(call, program)
    _check_linear(program)
    program.handed()
    return adjoint


def _somewhere(leaf: Any) -> Any:
    """A random array like a leaf, in its engine."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype") or isinstance(leaf, np.generic):
        leaf = np.asarray(leaf)
    try:
        like = input_of(leaf, "", "linear_adjoint")
    except ArgumentTypeError:
        like = ndarray(np.zeros(leaf.shape, leaf.dtype))
    (numbers,) = random_like([like.numpy()], sized=False)
    return like._like(numbers)._value


def _check_linear(program: Traced) -> None:
    """For a linear function ``<w, f(x)>`` is ``<J^H w, x>``, and what is constant is zero."""
    outputs = [y.numpy() for y in program.outs]
    w = random_like(outputs, sized=False)
    with stop_annotating():
        found = adjoints(program, Seeds(w, program.outs, program.out_paths, program.name))
    pairs = [*zip(w, outputs, strict=True)], [(g.numpy(), x.numpy()) for g, x in zip(found, program.ins, strict=True)]
    values = [sum([float(np.real(np.vdot(a, b))) for a, b in side]) for side in pairs]
    size = sum([float(np.sum(np.abs(a * b))) for a, b in pairs[0]])
    eps = max([precision(x.dtype) for x in (*program.ins, *program.outs)], default=0.0)
    constant = [y for k, y in enumerate(program.outputs) if k not in program.live]
    if abs(values[0] - values[1]) > eps**0.5 * size or any(
        np.any(np.asarray(getattr(y, "value", y))) for y in constant
    ):
        raise NotLinearError(
            "linear_adjoint takes a linear function, and this one is not: use vjp, which linearizes it at a point."
        )


def hvp(fun: Function, primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool = False) -> Any:
    """Return the Hessian of a program with a real scalar result times a direction.

    Args:
        fun: a program with a scalar result, as for :func:`grad`.
        primals: its positional arguments, a tuple or list.
        tangents: a direction for each of them, in the same containers and shapes.
        has_aux: whether ``fun`` returns a pair of the scalar and auxiliary data.

    Returns:
        The derivative of the gradient by all arguments in that direction: a tuple with one entry for each argument, or the
        entry itself where there is a single argument. With ``has_aux`` a pair of that and the auxiliary data.

    Raises:
        ArgumentTypeError: the containers of primals and tangents differ, or a dtype that has no gradient.
        NotDifferentiableError: the result is no scalar.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import hvp
        >>> hvp(lambda x: (x**3).sum(), (np.array([1.0, 2.0]),), (np.array([1.0, 0.0]),)).tolist()
        [6.0, 0.0]
    """
    everything = tuple(range(len(primals)))
    try:
        _, found, *aux = jvp(grad(fun, everything, has_aux), primals, tangents, has_aux)
    except NotRecordableError:
        found, *aux = _second_order(fun, primals, tangents, has_aux)
    found = found[0] if len(everything) == 1 else found
    return (found, *aux) if has_aux else found


def _second_order(fun: Function, primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool) -> tuple[Any, ...]:
    """The same for a program with arithmetic of AdjFloats, whose derivatives end with the second one."""
    call, program = _run(fun, primals, tangents, has_aux, "hvp")
    check_scalar(program)
    seeds = Seeds([1.0] * len(program.live), program.outs, program.out_paths, "hvp")
    found = second_adjoints(program, directions_of(program, call.structure, tangents), seeds)
    _, aux = program.handed()
    return call.like_arguments(inputs_of(program, found)), *([aux] if has_aux else [])
