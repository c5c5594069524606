"""Pyadjoint's reduced functional, with its defects mended."""

from collections.abc import Callable
from typing import Any

import pyadjoint
from pyadjoint.enlisting import Enlist
from pyadjoint.tape import stop_annotating

from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError
from pyadjoint_utils.reduced import ReducedFunction, riesz
from pyadjoint_utils.tapes import alone


class ReducedFunctional(pyadjoint.ReducedFunctional):
    """Pyadjoint's reduced functional over a :class:`ReducedFunction`, so that every Pyadjoint solver takes it.

    Args:
        functional: the value of the tape to reduce, usually a scalar.
        controls: one :class:`Control`, or a list of them.
        derivative_components: indices of the controls that are differentiated; the others get zeros.
        scale: a factor on the functional and its derivatives.
        tape: the tape; None for the working one.
        inputs: values that change from call to call without being differentiated.
        **callbacks: Pyadjoint's ``eval_cb_pre, eval_cb_post, derivative_cb_pre, derivative_cb_post, hessian_cb_pre,
            hessian_cb_post, tlm_cb_pre, tlm_cb_post``.

    Raises:
        ArgumentTypeError: the functional or a control is not a value of the tape.

    Example:
        >>> from pyadjoint_utils import Control, ReducedFunctional, array
        >>> x = array([1.0, 2.0])
        >>> rf = ReducedFunctional((x * x).sum(), Control(x))
        >>> float(rf(array([3.0, 4.0])))
        25.0
        >>> rf.hessian(array([1.0, 0.0])).tolist()
        [2.0, 0.0]
    """

    def __init__(
        self,
        functional: Any,
        controls: Any,
        derivative_components: Any = None,
        scale: float = 1.0,
        tape: pyadjoint.Tape | None = None,
        *,
        inputs: Any = (),
        **callbacks: Callable[..., Any],
    ) -> None:
        if isinstance(functional, (list, tuple)):
            raise ArgumentTypeError("A ReducedFunctional has one output; use ReducedFunction for several.")
        self._function = ReducedFunction(functional, controls, tape, inputs=inputs)
        super().__init__(
            functional,
            Enlist(controls),
            derivative_components=derivative_components,
            scale=scale,
            tape=self._function.tape,
            **callbacks,
        )
        self._controls = self._function._controls

    def __repr__(self) -> str:
        return f"ReducedFunctional({self.functional!r}, controls={list(self.controls)!r})"

    @alone
    def __call__(self, values: Any, inputs: Any = None) -> Any:
        """Evaluate at control values; as :meth:`ReducedFunction.__call__`, times ``scale``."""
        given = self._function._checked(values, self._function._controls, "controls")
        self.eval_cb_pre(self.controls.delist(given))
        value = self._scaled(self._function._called(given, inputs))
        self.eval_cb_post(value, self.controls.delist(given))
        return value

    @alone
    def derivative(self, adj_input: Any = None, apply_riesz: bool = False) -> Any:
        """Return the derivative at the last evaluation's point; as :meth:`ReducedFunction.derivative`, times ``scale``."""
        function = self._function
        values = function._value_list()
        controls = self.derivative_cb_pre(self.controls)
        if not controls:
            raise ArgumentValueError("derivative_cb_pre must return the list of controls to differentiate by.")
        (seed,) = function._seeds(adj_input)
        results = {id(c): v for c, v in zip(self.controls, function._adjoint([self._scaled(seed)]), strict=True)}
        derivatives = [results[id(c)] for c in controls]
        if apply_riesz:
            derivatives = [riesz(c, v) for c, v in zip(controls, derivatives, strict=True)]
        derivatives = self.derivative_cb_post(function._output_checkpoint(), derivatives, values)
        if not derivatives:
            raise ArgumentValueError("derivative_cb_post must return the list of derivatives.")
        return self.controls.delist(list(derivatives))

    @alone
    def hessian(
        self, m_dot: Any, hessian_input: Any = None, evaluate_tlm: bool = True, apply_riesz: bool = False
    ) -> Any:
        """Return the Hessian action at the last evaluation's point; as :meth:`ReducedFunction.hessian`, times ``scale``."""
        function = self._function
        values = function._values()
        self.hessian_cb_pre(values)
        directions = function._checked(m_dot, function._controls, "directions")
        (seed,) = function._seeds(None)
        second = None
        if hessian_input is not None:
            second = [self._scaled(*function._checked(hessian_input, function._outputs, "hessian_input"))]
        results = function._hessian(directions, [self._scaled(seed)], second)
        if apply_riesz:
            results = [riesz(c, value) for c, value in zip(self.controls, results, strict=True)]
        result = self.controls.delist(results)
        self.hessian_cb_post(self._function._output_checkpoint(), result, values)
        return result

    @alone
    def tlm(self, m_dot: Any) -> Any:
        """Return the derivative in a direction; as :meth:`ReducedFunction.tlm`, times ``scale``."""
        values = self._function._values()
        self.tlm_cb_pre(values)
        result = self._scaled(self._function.jac_action(m_dot))
        self.tlm_cb_post(self._function._output_checkpoint(), result, values)
        return result

    @alone
    def jac_action(self, m_dot: Any) -> Any:
        """Return the derivative in a direction."""
        return self.tlm(m_dot)

    @alone
    def adj_jac_action(self, adj: Any) -> Any:
        """Return the derivative times a cotangent."""
        return self.derivative(adj)

    @alone
    def hess_action(self, m_dot: Any, adj: Any) -> Any:
        """Return the Hessian action times a cotangent."""
        return self._function.hess_action(m_dot, self._scaled_seed(adj))

    @alone
    def jac_matrix(self, m_jac: Any = None, sparsity: Any = None) -> Any:
        """Return the derivative as matrices; as :meth:`ReducedFunction.jac_matrix`, times ``scale``."""
        result = self._function.jac_matrix(m_jac, sparsity)
        if m_jac is not None:
            return self._scaled(result)
        if sparsity is not None:
            return self.controls.delist([(block * self.scale).astype(block.dtype) for block in Enlist(result)])
        return self.controls.delist([self._scaled(block) for block in Enlist(result)])

    @alone
    def hess_matrix(self, adj: Any = None, sparsity: Any = None) -> Any:
        """Return the second derivatives as matrices; as :meth:`ReducedFunction.hess_matrix`, times ``scale``."""
        return self._function.hess_matrix(self._scaled_seed(adj), sparsity)

    def linear_operator(self, of: str = "jacobian", adj: Any = None) -> Any:
        """Return an operator of SciPy; as :meth:`ReducedFunction.linear_operator`, times ``scale``."""
        if of == "hessian":
            return self._function.linear_operator(of, self._scaled_seed(adj))
        operator = self._function.linear_operator(of, adj)
        return operator if self.scale == 1.0 else self.scale * operator

    def _scaled_seed(self, adj: Any) -> Any:
        return self._scaled(*self._function._seeds(adj))

    @alone
    def value_and_derivative(self, values: Any, inputs: Any = None) -> tuple[Any, Any]:
        """Return ``(self(values), self.derivative())``; as :meth:`ReducedFunction.value_and_derivative`."""
        return self(values, inputs), self.derivative()

    def compile(self, **options: Any) -> Any:
        """Return this functional with evaluations that run as compiled programs; see :meth:`ReducedFunction.compile`."""
        # These stand on this module.
        if options.pop("respecialize", False):
            from pyadjoint_utils.compiling.respecialized import RespecializedFunctional

            return RespecializedFunctional(self, **options)
        from pyadjoint_utils.compiling.compiled import CompiledFunctional

        return CompiledFunctional(self, **options)

    def _scaled(self, value: Any) -> Any:
        if self.scale == 1.0:
            return value
        with stop_annotating():
            return value._ad_mul(self.scale)
