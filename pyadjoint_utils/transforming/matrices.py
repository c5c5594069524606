"""Jacobians and Hessians of programs as dense arrays, in the tree product of the containers of results and arguments."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pyadjoint import OverloadedType, get_working_tape

from pyadjoint_utils import trees
from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import NotDifferentiableError
from pyadjoint_utils.recording import NotRecordableError
from pyadjoint_utils.transforming.calls import Call, check_inputs, check_outputs
from pyadjoint_utils.transforming.leaves import FLOAT0
from pyadjoint_utils.transforming.program_tape import ProgramTape
from pyadjoint_utils.transforming.traced import Traced
from pyadjoint_utils.transforming.unit_sweeps import columns, hessians, rows
from pyadjoint_utils.values import ndarray

Function = Callable[..., Any]
Blocks = list[list[Any]]


def jacfwd(
    fun: Function, argnums: int | Sequence[int] = 0, has_aux: bool = False, holomorphic: bool = False
) -> Function:
    """Return a function that computes the Jacobian of a program column by column, in forward mode.

    Args:
        fun: a program of overloaded functions and NumPy operations; arguments and results in nested containers.
        argnums: position, or positions, of the arguments to differentiate by; they are real unless ``holomorphic``.
        has_aux: whether ``fun`` returns a pair of its result and auxiliary data.
        holomorphic: whether ``fun`` is holomorphic; arguments and results are complex then.

    Returns:
        A function with the arguments of ``fun``. It returns the containers of the result, with those of the argument, or of
        the tuple of arguments for a sequence ``argnums``, in the place of each leaf. An array in there has the shape of the
        leaf of the result followed by that of the leaf of the argument. With ``has_aux`` it is a pair with that data.

    Raises:
        ArgumentTypeError: an argument or a result of a wrong type or dtype.
        ArgumentValueError: ``argnums`` names an argument that was not passed by position.
        NotDifferentiableError: a complex function that is not holomorphic has no complex Jacobian.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import jacfwd
        >>> jacfwd(lambda x: x**2 * x[::-1])(np.array([1.0, 2.0])).tolist()
        [[4.0, 1.0], [4.0, 4.0]]
    """

    return _jacobian(fun, argnums, has_aux, holomorphic, forward=True)


def jacrev(
    fun: Function,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Function:
    """Return a function that computes the Jacobian of a program row by row, in reverse mode.

    Args:
        fun: a program of overloaded functions and NumPy operations; arguments and results in nested containers. The results
            are real unless ``holomorphic``.
        argnums: position, or positions, of the arguments to differentiate by.
        has_aux: whether ``fun`` returns a pair of its result and auxiliary data.
        holomorphic: whether ``fun`` is holomorphic; arguments and results are complex then.
        allow_int: whether integers may stand among these arguments; their blocks are empty, of dtype ``float0``.

    Returns:
        A function as that of :func:`jacfwd`. By complex arguments its rows are gradients, the conjugate of JAX's ``jacrev``
        and of :func:`jacfwd`.

    Raises:
        ArgumentTypeError: an argument or a result of a wrong type or dtype.
        ArgumentValueError: ``argnums`` names an argument that was not passed by position.
        NotDifferentiableError: a function that was said to be holomorphic is not.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import jacrev
        >>> jacrev(lambda x: x**2 * x[::-1])(np.array([1.0, 2.0])).tolist()
        [[4.0, 1.0], [4.0, 4.0]]
    """

    return _jacobian(fun, argnums, has_aux, holomorphic, allow_int, forward=False)


def hessian(
    fun: Function, argnums: int | Sequence[int] = 0, has_aux: bool = False, holomorphic: bool = False
) -> Function:
    """Return a function that computes all second derivatives of a program.

    Args:
        fun: a program of overloaded functions and NumPy operations; arguments and results in nested containers.
        argnums: position, or positions, of the arguments to differentiate by; they are real unless ``holomorphic``.
        has_aux: whether ``fun`` returns a pair of its result and auxiliary data.
        holomorphic: whether ``fun`` is holomorphic; arguments and results are complex then, and so is the Hessian
            ``d^2 f / dz^2``, JAX's own.

    Returns:
        A function with the arguments of ``fun``. It returns the containers of the result, with those of the argument, and
        once more those of the argument, in the place of each leaf. An array in there has the shapes of these three leaves
        one after the other. With ``has_aux`` it is a pair with that data.

    Raises:
        ArgumentTypeError: an argument or a result of a wrong type or dtype.
        ArgumentValueError: ``argnums`` names an argument that was not passed by position.
        NotDifferentiableError: a complex function that is not holomorphic has no complex Hessian.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import hessian
        >>> hessian(lambda x: x[0] ** 3 - 2 * x[0] * x[1] - x[1] ** 6)(np.array([1.0, 2.0])).tolist()
        [[6.0, -2.0], [-2.0, -480.0]]
    """
    inner = jacfwd if holomorphic else jacrev
    composed = jacfwd(inner(fun, argnums, has_aux, holomorphic), argnums, has_aux, holomorphic)

    @functools.wraps(fun, updated=())
    def second_derivatives(*args: Any, **kwargs: Any) -> Any:
        found = None if holomorphic or _is_recorded(args) else _in_one_sweep(fun, args, kwargs, argnums, has_aux)
        if found is not None:
            return found[0]
        try:
            return composed(*args, **kwargs)
        except NotRecordableError:
            call = Call(fun, args, kwargs, argnums, has_aux=has_aux, name="hessian")
            return _direction_by_direction(call, call.program(), has_aux)

    return second_derivatives


def _jacobian(
    fun: Function,
    argnums: int | Sequence[int],
    has_aux: bool,
    holomorphic: bool,
    allow_int: bool = False,
    *,
    forward: bool,
) -> Function:
    name, sweep = ("jacfwd", columns) if forward else ("jacrev", rows)

    @functools.wraps(fun, updated=())
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        call = Call(fun, args, kwargs, argnums, has_aux=has_aux, name=name)
        program = call.differentiable_program(holomorphic=holomorphic, allow_int=allow_int, forward=forward)
        return _handed(call, program, sweep(program), has_aux)

    return jacobian


def _handed(call: Call, program: Traced, found: Blocks, has_aux: bool) -> Any:
    blocks = _all_blocks(program, found)
    result = trees.unflatten(program.structure, [call.like_arguments(row) for row in blocks])
    _, aux = program.handed()
    return (result, aux) if has_aux else result


def _all_blocks(program: Traced, found: Blocks) -> Blocks:
    """Blocks for all outputs and inputs from those for the live and active ones."""
    known = {
        (i, j): block
        for i, row in zip(program.live, found, strict=True)
        for j, block in zip(program.active, row, strict=True)
    }
    return [
        [known[i, j] if (i, j) in known else _zeros(y, x.aval) for j, x in enumerate(program.inputs)]
        for i, y in enumerate(program.avals)
    ]


def _zeros(y: Aval, x: Aval) -> Any:
    shape = (*y.shape, *x.shape)
    return ndarray(np.zeros(shape, y.dtype)) if x.differentiable else np.zeros(shape, FLOAT0)


def _is_recorded(args: Sequence[Any]) -> bool:
    """Whether a Hessian at these arguments is going to be recorded, as a derivative of a derivative can be."""
    if not annotate_tape():
        return False
    return isinstance(get_working_tape(), ProgramTape) or any(
        isinstance(leaf, OverloadedType) for leaf in trees.flatten(tuple(args))[0]
    )


def _in_one_sweep(
    fun: Function, args: Any, kwargs: Any, argnums: int | Sequence[int], has_aux: bool
) -> tuple[Any] | None:
    """The Hessian of a program with one scalar result by a sweep for second adjoints; None if it has to be composed."""
    call = Call(fun, args, kwargs, argnums, has_aux=has_aux, name="hessian")
    check_inputs(call, holomorphic=False, forward=True)
    program = call.program()
    if program.involved or [aval.shape for aval in program.avals] != [()]:
        return None
    check_outputs(program, holomorphic=False)
    try:
        return (_direction_by_direction(call, program, has_aux),)
    except NotDifferentiableError:
        return None


def _direction_by_direction(call: Call, program: Traced, has_aux: bool) -> Any:
    """The Hessian by sweeps that nobody differentiates further, one for each entry of the result."""
    found = dict(zip(program.live, hessians(program), strict=True))
    result = trees.unflatten(
        program.structure,
        [
            call.like_arguments([call.like_arguments(row) for row in found.get(i) or _zero_rows(y, program)])
            for i, y in enumerate(program.avals)
        ],
    )
    _, aux = program.handed()
    return (result, aux) if has_aux else result


def _zero_rows(y: Aval, program: Traced) -> Blocks:
    return [[ndarray(np.zeros((*y.shape, *x.shape, *z.shape), y.dtype)) for z in program.ins] for x in program.ins]
