"""Derivatives of values on the tape without a reduced function of one's own."""

from typing import Any

import pyadjoint
from pyadjoint.enlisting import Enlist

from pyadjoint_utils.recording import recorded_gradient, recorded_tangent
from pyadjoint_utils.reduced import ReducedFunction


def compute_gradient(
    J: Any,
    m: Any,
    tape: pyadjoint.Tape | None = None,
    adj_value: Any = None,
    *,
    apply_riesz: bool = False,
    record: bool = False,
) -> Any:
    """Return the gradient of a value of the tape at the controls' current values.

    Args:
        J: the value; a scalar, or any shape together with ``adj_value``.
        m: one :class:`Control`, or a list of them.
        tape: the tape; None for the working one.
        adj_value: cotangent of ``J``; None for 1, which only a real scalar takes.
        apply_riesz: apply the controls' Riesz maps (arrays: no difference).
        record: record the gradient itself, at the values that the program recorded, so that it can be used in further
            taped computations and differentiated.

    Returns:
        One gradient per control, unlisted if a single control was given.

    Raises:
        NotDifferentiableError: ``record=True`` through a Block of another package.

    Example:
        >>> from pyadjoint_utils import Control, array, compute_gradient
        >>> x = array([1.0, 2.0])
        >>> compute_gradient((x**3).sum(), Control(x)).tolist()
        [3.0, 12.0]
    """
    if record:
        return recorded_gradient(J, m, tape, adj_value)
    return ReducedFunction(J, m, tape).derivative(adj_value, apply_riesz=apply_riesz)


def compute_jacobian_action(
    J: Any, m: Any, m_dot: Any, tape: pyadjoint.Tape | None = None, *, record: bool = False
) -> Any:
    """Return the derivative of values of the tape in a direction of the controls.

    Args:
        J: one value, or a list of them.
        m: one :class:`Control`, or a list of them.
        m_dot: one direction per control.
        tape: the tape; None for the working one.
        record: record the result, so that it can be differentiated.

    Returns:
        One tangent per value, unlisted if a single value was given.

    Example:
        >>> from pyadjoint_utils import Control, array, compute_jacobian_action
        >>> x = array([1.0, 2.0])
        >>> compute_jacobian_action(x * x, Control(x), array([1.0, 1.0])).tolist()
        [2.0, 4.0]
    """
    if record:
        return recorded_tangent(J, m, m_dot, tape)
    return ReducedFunction(J, m, tape).jac_action(m_dot)


def compute_jacobian_matrix(
    J: Any, m: Any, m_jac: Any = None, tape: pyadjoint.Tape | None = None, *, sparsity: Any = None
) -> Any:
    """Return the Jacobian of values of the tape as dense matrices.

    Args:
        J: one value, or a list of them.
        m: one :class:`Control`, or a list of them.
        m_jac: matrices to multiply it with from the right, one for each control; None for the Jacobian itself.
        tape: the tape; None for the working one.
        sparsity: ``"detect"`` or patterns, for sparse matrices.

    Returns:
        As :meth:`ReducedFunction.jac_matrix`.

    Example:
        >>> from pyadjoint_utils import Control, array, compute_jacobian_matrix
        >>> x = array([1.0, 2.0])
        >>> compute_jacobian_matrix(x * x, Control(x)).tolist()
        [[2.0, 0.0], [0.0, 4.0]]
    """
    return ReducedFunction(J, m, tape).jac_matrix(m_jac, sparsity)


def compute_hessian_action(
    J: Any,
    m: Any,
    m_dot: Any,
    tape: pyadjoint.Tape | None = None,
    hessian_value: Any = None,
    *,
    adj_value: Any = None,
) -> Any:
    """Return the derivative of the gradient of a value in a direction of the controls.

    Args:
        J: the value; a scalar, or any shape together with ``adj_value``.
        m: one :class:`Control`, or a list of them.
        m_dot: one direction per control.
        tape: the tape; None for the working one.
        hessian_value: second cotangent of ``J`` to start from; None for zero.
        adj_value: cotangent of ``J``, held fixed; None for 1, which only a real scalar takes.

    Returns:
        One Hessian action per control, unlisted if a single control was given.

    Example:
        >>> from pyadjoint_utils import Control, array, compute_hessian_action
        >>> x = array([1.0, 2.0])
        >>> compute_hessian_action((x**3).sum(), Control(x), array([1.0, 0.0])).tolist()
        [6.0, 0.0]
    """
    rf = ReducedFunction(J, m, tape)
    adj_value = rf._unit_seed() if adj_value is None else adj_value
    if hessian_value is None:
        return rf.hess_action(m_dot, adj_value)
    directions = rf._checked(m_dot, rf._controls, "directions")
    seeds = rf._checked(adj_value, rf._outputs, "seeds")
    second = rf._checked(hessian_value, rf._outputs, "hessian_input")
    return Enlist(m).delist(rf._hessian(directions, seeds, second))
