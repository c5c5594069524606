"""Functions of the controls alone: what optimization loops and Taylor tests call."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyadjoint
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist
from pyadjoint.overloaded_type import OverloadedType
from pyadjoint.reduced_functional import AbstractReducedFunctional

from pyadjoint_utils.control import Control, checked_value
from pyadjoint_utils.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    NotDifferentiableError,
    StaleTapeError,
)
from pyadjoint_utils.plan import Plan
from pyadjoint_utils.tapes import STALE, alone, state_of, working_tape
from pyadjoint_utils.transforming.program_tape import ProgramTape
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import as_float, is_dropped, move

_log = logging.getLogger(__name__)


def _nothing(*args: Any) -> None:
    return None


class ReducedFunction(AbstractReducedFunctional):
    """The map from controls to outputs that a tape holds, with its derivatives to second order.

    It is a pure function: everything that is neither control nor input keeps its recorded value, whatever other reduced
    functions of the same tape evaluate in between. A derivative is taken at the point of this function's own last
    evaluation.

    Args:
        outputs: one value of the tape, or a list of them.
        controls: one :class:`Control`, or a list of them.
        tape: the tape; None for the working one.
        inputs: values of the tape that change from call to call without being differentiated, one or a list.
        eval_cb_pre: called with the control values before an evaluation.
        eval_cb_post: called with ``(outputs, controls' values)`` after it.
        jac_action_cb_pre: called with ``(controls' values, directions)``.
        jac_action_cb_post: called with ``(outputs, derivatives, controls' values)``.
        adj_jac_action_cb_pre: called with ``(controls' values)``.
        adj_jac_action_cb_post: called with ``(outputs, derivatives, controls' values)``.
        hess_action_cb_pre: called with ``(controls' values)``.
        hess_action_cb_post: called with ``(outputs, hessian, controls' values)``.

    Raises:
        ArgumentTypeError: an output or a control is not a value of the tape.

    Example:
        >>> from pyadjoint_utils import Control, ReducedFunction, array
        >>> x = array([1.0, 2.0])
        >>> rf = ReducedFunction(x * x, Control(x))
        >>> rf(array([3.0, 4.0])).tolist()
        [9.0, 16.0]
        >>> rf.jac_action(array([1.0, 0.0])).tolist()
        [6.0, 0.0]
    """

    def __init__(
        self,
        outputs: Any,
        controls: Any,
        tape: pyadjoint.Tape | None = None,
        *,
        inputs: Any = (),
        eval_cb_pre: Callable[..., Any] = _nothing,
        eval_cb_post: Callable[..., Any] = _nothing,
        jac_action_cb_pre: Callable[..., Any] = _nothing,
        jac_action_cb_post: Callable[..., Any] = _nothing,
        adj_jac_action_cb_pre: Callable[..., Any] = _nothing,
        adj_jac_action_cb_post: Callable[..., Any] = _nothing,
        hess_action_cb_pre: Callable[..., Any] = _nothing,
        hess_action_cb_post: Callable[..., Any] = _nothing,
    ) -> None:
        self.tape = working_tape(tape)
        self._outputs = Enlist(outputs)
        self._controls = Enlist(controls)
        self._inputs = Enlist(inputs)
        self._said: set[int] = set()  # controls of which it was said that nothing depends on them
        for k, output in enumerate(self._outputs):
            if not isinstance(output, OverloadedType):
                raise ArgumentTypeError(
                    f"outputs[{k}] must be a value of the tape; got {type(output).__name__}. Compute it from taped values "
                    "(array(x), AdjFloat(x)) while annotation is on."
                )
        for k, control in enumerate(self._controls):
            if not isinstance(control, pyadjoint.Control):
                raise ArgumentTypeError(
                    f"controls[{k}] must be a Control; got {type(control).__name__}. Write Control(x)."
                )
        for k, value in enumerate(self._inputs):
            if not isinstance(getattr(value, "control", value), OverloadedType):
                raise ArgumentTypeError(f"inputs[{k}] must be a value of the tape; got {type(value).__name__}.")
        if not self._controls:
            raise ArgumentValueError("A reduced function needs at least one control.")
        if isinstance(self.tape, ProgramTape):
            self._controls[:] = [Control(self.tape.local(c.control), c.riesz_map) for c in self._controls]
        self._variables = [value.block_variable for value in (*self._controls, *self._inputs)]
        self._output_variables = [y.block_variable for y in self._outputs]
        self._check_recorded()
        if len(set(self._variables)) != len(self._variables):
            raise ArgumentValueError("The same value stands twice among controls and inputs; name it once.")
        self.eval_cb_pre, self.eval_cb_post = eval_cb_pre, eval_cb_post
        self.jac_action_cb_pre, self.jac_action_cb_post = jac_action_cb_pre, jac_action_cb_post
        self.adj_jac_action_cb_pre, self.adj_jac_action_cb_post = (
            adj_jac_action_cb_pre,
            adj_jac_action_cb_post,
        )
        self.hess_action_cb_pre, self.hess_action_cb_post = hess_action_cb_pre, hess_action_cb_post
        self._plans: dict[frozenset[Any], Plan] = {}
        # The values of controls and inputs at the last evaluation; None before the first.
        self._point: list[Any] | None = None
        self._updates: dict[Any, Any] = {}  # Control.update's values where the derivatives are taken
        values = [getattr(value, "control", value) for value in (*self._controls, *self._inputs)]
        self._start = [_current(value, bv) for value, bv in zip(values, self._variables, strict=True)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._outputs)} output(s), controls={list(self._controls)!r})"

    # The function ------------------------------------------------------------------------------------------------------

    @property
    def controls(self) -> list[Control]:
        return self._controls

    @property
    def outputs(self) -> list[Any]:
        return self._outputs

    @alone
    def __call__(self, values: Any, inputs: Any = None) -> Any:
        """Evaluate at control values.

        Args:
            values: one value per control (unlisted if a single control was given), arrays of any engine or numbers of
                the control's shape.
            inputs: one value per input, or None to keep those of the last call.

        Returns:
            The outputs in their engines, unlisted if a single output was given.

        Raises:
            ArgumentValueError: a wrong number of values or a wrong shape.
            ArgumentTypeError: a value of a wrong type, or a complex one for a real control.
        """
        return self._called(self._checked(values, self._controls, "controls"), inputs)

    def _called(self, given: list[Any], inputs: Any) -> Any:
        """Evaluate at control values that have been checked."""
        self.eval_cb_pre(self._controls.delist(given))
        point = [value._ad_create_checkpoint() for value in given]
        point += self._input_point(inputs)
        self._evaluate(point, dict(state_of(self.tape).updates))
        self._point = point
        results = [bv.saved_output for bv in self._output_variables]
        outputs = self._outputs.delist(results)
        self.eval_cb_post(outputs, self._controls.delist(given))
        return outputs

    @alone
    def jac_action(self, m_dot: Any) -> Any:
        """Return ``J m_dot``, the derivative of the outputs in a direction of the controls.

        Args:
            m_dot: one direction per control, of the control's shape.

        Returns:
            One tangent per output, in its engine, shape and dtype.
        """
        directions = self._checked(m_dot, self._controls, "directions")
        values = self._values()
        self.jac_action_cb_pre(values, self._controls.delist(directions))
        self._linearize()
        with self._plan.clean("tlm_value"):
            self._tangent(directions)
            pairs = zip(self._outputs, self._output_variables, strict=True)
            results = [_result(output, bv.tlm_value) for output, bv in pairs]
        result = self._outputs.delist(results)
        self.jac_action_cb_post(self._output_values(), result, values)
        return result

    @alone
    def adj_jac_action(self, adj: Any) -> Any:
        """Return ``J^H adj`` under ``Re<a, b>``, the adjoint of :meth:`jac_action`.

        Args:
            adj: one cotangent per output, of the output's shape; None for outputs that are not seeded.

        Returns:
            One cotangent per control, in its engine, shape and dtype.
        """
        seeds = self._checked(adj, self._outputs, "seeds", optional=True)
        values = self._values()
        self.adj_jac_action_cb_pre(values)
        result = self._controls.delist(self._adjoint(seeds))
        self.adj_jac_action_cb_post(self._output_values(), result, values)
        return result

    @alone
    def hess_action(self, m_dot: Any, adj: Any) -> Any:
        """Return the derivative of ``J^H adj`` in a direction of the controls.

        Args:
            m_dot: one direction per control.
            adj: one cotangent per output, held fixed.

        Returns:
            One second adjoint per control, in its engine, shape and dtype.
        """
        directions = self._checked(m_dot, self._controls, "directions")
        seeds = self._checked(adj, self._outputs, "seeds", optional=True)
        values = self._values()
        self.hess_action_cb_pre(values)
        result = self._controls.delist(self._hessian(directions, seeds))
        self.hess_action_cb_post(self._output_values(), result, values)
        return result

    @alone
    def jac_matrix(self, m_jac: Any = None, sparsity: Any = None) -> Any:
        """Return the Jacobian as matrices, many directions in one sweep.

        Args:
            m_jac: None for the Jacobian itself; or a matrix for each control, of the control's shape followed by axes that
                all of them share, to return the Jacobian times these.
            sparsity: ``"detect"``, or a matrix of :mod:`scipy.sparse` whose entries, zeros included, say where there may be
                derivatives; several in the layout of the result. A few products then give the whole matrix.

        Returns:
            Entry ``[i][j]`` has the shape of output i followed by the shape of control j, in the output's engine; lists are
            unwrapped where a single output or control was given. Where every path from control j to output i is pointwise,
            one of them by a function that was declared so, entry ``[i][j]`` holds the blocks of the points,
            ``(n, *out, *in)``: the shape of output i followed by the shape of control j without its first axis. With
            ``m_jac``, entry ``[i]`` has the shape of output i followed by the shared axes. With ``sparsity``, it is
            a :class:`scipy.sparse.csr_array` with a row for each number of output i and a column for each of control j.

        Raises:
            NotDifferentiableError: a complex function that is not holomorphic has no complex Jacobian.
            ArgumentValueError: a function was declared pointwise and is not; the matrices do not fit in memory; a sparsity
                pattern has another shape than the matrix, or misses an entry.

        Example:
            >>> from pyadjoint_utils import Control, ReducedFunction, array
            >>> x = array([1.0, 2.0])
            >>> ReducedFunction(x * x, Control(x)).jac_matrix().tolist()
            [[2.0, 0.0], [0.0, 4.0]]
        """
        # These stand on what stands on this module.
        if sparsity is None:
            from pyadjoint_utils.jacobians.jacobian import jacobian_matrix

            return jacobian_matrix(self, m_jac)
        from pyadjoint_utils.jacobians.sparse_matrices import sparse_jacobian

        if m_jac is not None:
            raise ArgumentValueError("jac_matrix takes m_jac or sparsity. Multiply the sparse matrix: matrix @ m_jac.")
        return sparse_jacobian(self, sparsity)

    @alone
    def hess_matrix(self, adj: Any = None, sparsity: Any = None) -> Any:
        """Return all second derivatives of ``<adj, self>`` as matrices, many directions in one sweep.

        Args:
            adj: one cotangent per output, held fixed, None for outputs that do not count; None for 1, which only a real
                scalar takes.
            sparsity: as for :meth:`jac_matrix`; a pattern counts as symmetric.

        Returns:
            Entry ``[j][k]`` has the shape of control j followed by the shape of control k, in the engine of control j;
            unwrapped where a single control was given. Where the outputs depend on both controls along pointwise paths, or
            are sums and other linear functions of what does, it holds the blocks of the points, as for :meth:`jac_matrix`.
            With ``sparsity`` it is sparse, also as there.

        Raises:
            NotDifferentiableError: a control is complex, for which there is no such matrix; or there is no ``adj`` for what
                is no real scalar.
            ArgumentValueError: a function was declared pointwise and is not; the matrices do not fit in memory; a sparsity
                pattern has another shape than the matrix, or misses an entry.

        Example:
            >>> from pyadjoint_utils import Control, ReducedFunction, array
            >>> x = array([1.0, 2.0])
            >>> ReducedFunction((x**3).sum(), Control(x)).hess_matrix().tolist()
            [[6.0, 0.0], [0.0, 12.0]]
        """
        # These stand on what stands on this module.
        if sparsity is None:
            from pyadjoint_utils.jacobians.hessian_matrix import hessian_matrix

            return hessian_matrix(self, adj)
        from pyadjoint_utils.jacobians.sparse_matrices import sparse_hessian

        return sparse_hessian(self, adj, sparsity)

    def linear_operator(self, of: str = "jacobian", adj: Any = None) -> Any:
        """Return the Jacobian or the Hessian as a :class:`scipy.sparse.linalg.LinearOperator`, for LSQR, GMRES or eigsh.

        It speaks of flat vectors as :class:`ReducedFunctionNumPy` does, and follows this function: its products are taken
        at the last evaluation's point at the time of the product. The Hessian of complex controls acts on real vectors,
        real and imaginary parts in turn (``z.view(float)``), since it is linear over the real numbers alone.

        Args:
            of: ``"jacobian"``, or ``"hessian"`` for the derivative of ``J^H adj``.
            adj: one cotangent per output, for the Hessian; None for 1, which only a real scalar takes.

        Returns:
            The operator with ``matvec``, ``rmatvec``, ``matmat`` and ``rmatmat``, which take all columns in one sweep. The
            Jacobian's is float64, or complex128 if everything is complex; the Hessian's is float64 and symmetric.

        Raises:
            NotDifferentiableError: a Jacobian with real and complex values, or of a complex function that is not
                holomorphic.
            ArgumentValueError: another name than these two, or ``adj`` for the Jacobian.

        Example:
            >>> import numpy as np
            >>> from pyadjoint_utils import Control, ReducedFunction, array
            >>> x = array([1.0, 2.0])
            >>> operator = ReducedFunction(x * x, Control(x)).linear_operator()
            >>> (operator @ np.ones(2)).tolist()
            [2.0, 4.0]
        """
        from pyadjoint_utils.jacobians.linear_operators import (
            linear_operator,  # it stands on what stands on this module
        )

        return linear_operator(self, of, adj)

    def compile(self, **options: Any) -> Any:
        """Return this function with evaluations and derivatives that run as compiled programs.

        Args:
            **options: ``engines``, names of engines whose Blocks are merged although these compile nothing (PyTorch,
                autograd), or a dict from such names to a compiler, ``{"torch": "inductor"}``; ``memory``, what a loop
                keeps for its derivative: ``"all"`` that happens in it, the state at every ``"step"``, or at ``"sqrt"`` of
                their number, from which the rest is computed again; the default is ``"all"``, on a tape with a schedule
                what comes nearest to that; ``turns=16``, the least number of repetitions that makes a loop,
                half of it where these are many operations;
                ``budget=60.0``, about how many seconds compiling may take: what would take longer runs in smaller
                programs, or Block by Block; ``respecialize=True``: values of other shapes than the recorded ones are taken,
                too, and the program is recorded once more for them.

        Returns:
            A :class:`CompiledFunction`: the same methods, and ``describe()``.

        Raises:
            ArgumentTypeError: there is no such option, or its value has a wrong type.
            ArgumentValueError: an option does not take this value, or there is no such compiler.
            MissingEngineError: there is no such engine.
            UnsupportedError: at the first call, if the compiler that was asked for fails.

        Example:
            >>> import jax.numpy as jnp
            >>> from pyadjoint_utils import Control, ReducedFunction, array, overload_jax
            >>> step = overload_jax(lambda y: y + 0.1 * jnp.sin(y))
            >>> x = y = array([1.0, 2.0])
            >>> for _ in range(100):
            ...     y = step(y)
            >>> fast = ReducedFunction(y, Control(x)).compile()
            >>> fast(array([3.0, 3.1])).shape
            (2,)
        """
        # These stand on this module.
        if options.pop("respecialize", False):
            from pyadjoint_utils.compiling.respecialized import RespecializedFunction

            return RespecializedFunction(self, **options)
        from pyadjoint_utils.compiling.compiled import CompiledFunction

        return CompiledFunction(self, **options)

    # The names that Pyadjoint's solvers use ------------------------------------------------------------------------------

    @alone
    def derivative(self, adj_input: Any = None, apply_riesz: bool = False) -> Any:
        """Return ``J^H adj_input``; the gradient of a single real scalar output where nothing is given.

        Args:
            adj_input: a cotangent of the outputs.
            apply_riesz: ignored for arrays, whose gradient is the derivative; passed to the controls of other types.
        """
        result = Enlist(self.adj_jac_action(self._unit_seed() if adj_input is None else adj_input))
        if apply_riesz:
            result = Enlist([riesz(c, value) for c, value in zip(self._controls, result, strict=True)])
        return self._controls.delist(list(result))

    @alone
    def tlm(self, m_dot: Any) -> Any:
        """Return ``J m_dot``."""
        return self.jac_action(m_dot)

    @alone
    def hessian(
        self, m_dot: Any, hessian_input: Any = None, evaluate_tlm: bool = True, apply_riesz: bool = False
    ) -> Any:
        """Return the Hessian action ``d/dm (J^H 1) m_dot`` of a scalar output.

        Args:
            m_dot: one direction per control.
            hessian_input: a second cotangent to start from, None for zero.
            evaluate_tlm: kept for Pyadjoint; the tangent is always evaluated, so that it belongs to this point.
            apply_riesz: as for :meth:`derivative`.
        """
        directions = self._checked(m_dot, self._controls, "directions")
        seeds = self._seeds(None)
        second = None if hessian_input is None else self._checked(hessian_input, self._outputs, "hessian_input")
        values = self._values()
        self.hess_action_cb_pre(values)
        results = self._hessian(directions, seeds, second)
        if apply_riesz:
            results = [riesz(c, value) for c, value in zip(self._controls, results, strict=True)]
        result = self._controls.delist(results)
        self.hess_action_cb_post(self._output_values(), result, values)
        return result

    @alone
    def value_and_derivative(self, values: Any, inputs: Any = None) -> tuple[Any, Any]:
        """Return ``(self(values), self.derivative())``; SciPy's own solvers take those of :class:`ReducedFunctionNumPy`."""
        return self(values, inputs), self.derivative()

    # Evaluation --------------------------------------------------------------------------------------------------------

    @property
    def _plan(self) -> Plan:
        return self._plan_with(self._updates)

    def _plan_with(self, updates: dict[Any, Any]) -> Plan:
        """The plan on which controls, inputs and the variables that were given other values vary."""
        others: frozenset[Any] = frozenset()
        if updates:
            others = frozenset(updates).difference(self._variables)
        plan = self._plans.get(others)
        if plan is None:
            controls = [c.block_variable for c in self._controls]
            inputs = self._variables[len(controls) :]
            plan = Plan(self.tape, self._output_variables, controls, [*inputs, *others])
            if not plan.forward:
                self._check_recorded()  # or the tape was cleared meanwhile
            self._plans[others] = plan
        return plan

    def _check_recorded(self) -> None:
        known: set[Any] = set()
        for block in self.tape.get_blocks():
            known.update(block.get_outputs(), block.get_dependencies())
        for variable, given in zip(self._variables, (*self._controls, *self._inputs), strict=True):
            value = getattr(given, "control", given)
            if isinstance(value, ndarray) and variable not in known and not known.isdisjoint(value._all_variables()):
                raise StaleTapeError(
                    "A control or an input stands for its value in another thread than the one that recorded the tape, so "
                    "that the derivative would be zero. Make Control(x), and the reduced function, in the thread that "
                    "records; any thread may call it."
                )
        known.update(self._variables[: len(self._controls)])
        for k, bv in enumerate(self._output_variables):
            if bv not in known:
                raise StaleTapeError(
                    f"outputs[{k}] was not recorded on this tape, or the tape was cleared since, so that its derivative "
                    "would be zero. Compute it while annotation is on and this tape is the working tape, or name the tape "
                    "that it was recorded on (tape=)."
                )

    def _last_point(self) -> list[Any]:
        """Values of controls and inputs at the last evaluation; before the first, those that the tape had."""
        if self._point is not None:
            return self._point
        updates = state_of(self.tape).updates
        return [updates.get(bv, value) for bv, value in zip(self._variables, self._start, strict=True)]

    def _input_point(self, inputs: Any) -> list[Any]:
        if inputs is None:
            return self._last_point()[len(self._controls) :]
        values = self._checked(inputs, [getattr(i, "control", i) for i in self._inputs], "inputs")
        return [value._ad_create_checkpoint() for value in values]

    def _evaluate(self, point: list[Any], updates: dict[Any, Any]) -> None:
        """Bring the tape to a point; after an exception it is where it was, and marked stale."""
        state, plan = state_of(self.tape), self._plan_with(updates)
        plan.claim()
        variables = self._variables
        previous = [bv._checkpoint for bv in variables]
        state.owner = STALE
        try:
            self._place(plan, point, updates)
            plan.recompute()
        except BaseException:
            for bv, value in zip(variables, previous, strict=True):
                bv._checkpoint = value
            raise
        self.tape._recompute_count += 1
        self._updates = updates
        state.owner = self

    def _place(self, plan: Plan, point: list[Any], updates: dict[Any, Any]) -> None:
        """Give the sources their values at a point."""
        plan.reset()
        for bv in plan.sources:
            move(bv, keep=True)
        for bv in plan.unaware:
            move(bv)
        for bv in plan.sources[len(self._variables) :]:
            bv._checkpoint = updates[bv]
        for bv, value in zip(self._variables, point, strict=True):
            bv._checkpoint = value

    def _return_to(self, point: list[Any] | None, updates: dict[Any, Any]) -> None:
        """Stand at an earlier point again; the next derivative evaluates there first."""
        self._point, self._updates = point, updates
        state_of(self.tape).owner = STALE

    def _linearize(self) -> None:
        """Make sure that the tape's values are those of this function's last evaluation.

        Under a schedule it is enough that the controls and inputs are; the sweeps compute the rest themselves.
        """
        state = state_of(self.tape)
        self._plan.claim()
        point = self._last_point()
        mine = state.owner is self or (state.owner is None and self._point is None)
        expected = [*zip(self._variables, point, strict=True)]
        if state.owner is self:
            expected += self._plan.boundary
        if mine and all(
            bv._checkpoint is value or (bv._checkpoint is None and not is_dropped(bv)) for bv, value in expected
        ):
            return
        updates = dict(state.updates) if self._point is None else self._updates
        plan = self._plan_with(updates)
        if plan.schedule is None:
            self._evaluate(point, updates)
        else:
            state.owner = STALE
            state.start(None)
            self._place(plan, point, updates)
            self._updates = updates
            state.owner = self

    def _tangent(self, directions: list[Any], *, stored: bool = False) -> None:
        for control, direction in zip(self._controls, directions, strict=True):
            control.block_variable.tlm_value = _seed(direction)
        self._plan.tangent(stored=stored)

    def _adjoint(self, seeds: list[Any]) -> list[Any]:
        self._linearize()
        plan = self._plan
        with plan.clean("adj_value"):
            self._seed(seeds, "adj_value")
            plan.adjoint()
            return [self._derivative(plan, c, c.block_variable.adj_value) for c in self._controls]

    def _hessian(self, directions: list[Any], seeds: list[Any], second: list[Any] | None = None) -> list[Any]:
        self._linearize()
        plan = self._plan
        with plan.clean("tlm_value", "adj_value", "hessian_value"):
            self._tangent(directions, stored=True)
            self._seed(seeds, "adj_value")
            if second is not None:
                self._seed(second, "hessian_value")
            plan.second_adjoint()
            return [self._derivative(plan, c, c.block_variable.hessian_value) for c in self._controls]

    def _seed(self, seeds: list[Any], kind: str) -> None:
        add = "add_adj_output" if kind == "adj_value" else "add_hessian_output"
        for bv, seed in zip(self._output_variables, seeds, strict=True):
            if seed is not None:
                getattr(bv, add)(_seed(seed))

    def _unit_seed(self) -> float | np.ndarray:
        """The seed of a gradient, which only a real scalar has."""
        output = self._outputs[0]
        if len(self._outputs) > 1 or (isinstance(output, ndarray) and (output.size != 1 or output.dtype.kind == "c")):
            shapes = [output.aval if isinstance(output, ndarray) else type(output).__name__ for output in self._outputs]
            raise NotDifferentiableError(
                f"Only a real scalar has a gradient; the output is {', '.join(map(str, shapes))}. Reduce it to one real "
                "number, such as x.sum() or abs(z)**2, or give a cotangent of its shape: derivative(adj_input), "
                "adj_jac_action(adj), hess_action(m_dot, adj)."
            )
        return np.ones(output.shape) if isinstance(output, ndarray) and output.shape else 1.0

    def _derivative(self, plan: Plan, control: Control, value: Any) -> Any:
        k = self._controls.index(control)
        if value is None and k not in self._said and not plan.depends(control.block_variable):
            self._said.add(k)
            _log.warning("The outputs do not depend on controls[%d], %r: its derivative is exactly zero.", k, control)
        return _result(control.control, value)

    # Arguments ---------------------------------------------------------------------------------------------------------

    def _checked(self, values: Any, likes: Sequence[Any], what: str, *, optional: bool = False) -> list[Any]:
        given = list(Enlist(values))
        if len(given) != len(likes):
            raise ArgumentValueError(
                f"{what} must have one entry for each of the {len(likes)} {_OF[what]}; got {len(given)}. "
                + _remedy(what, len(likes))
            )
        return [
            None if optional and value is None else checked_value(getattr(like, "control", like), value, f"{what}[{k}]")
            for k, (like, value) in enumerate(zip(likes, given, strict=True))
        ]

    def _seeds(self, given: Any) -> list[Any]:
        """Cotangents of the outputs; of a real scalar 1 where none are given."""
        return self._checked(self._unit_seed() if given is None else given, self._outputs, "seeds")

    def _values(self) -> Any:
        """The controls' values at the point of the last evaluation, wrapped for callbacks."""
        return self._controls.delist(self._value_list())

    def _value_list(self) -> list[Any]:
        return [
            c.control._ad_restore_at_checkpoint(v) for c, v in zip(self._controls, self._last_point(), strict=False)
        ]

    def _output_checkpoint(self) -> Any:
        """The first output's value as the tape stores it."""
        return self._output_variables[0].checkpoint

    def _output_values(self) -> Any:
        # A value that a schedule let go while the program ran is that of the program.
        values = zip(self._outputs, self._output_variables, strict=True)
        return self._outputs.delist([y if bv._checkpoint is None else bv.saved_output for y, bv in values])


_OF = {
    "controls": "controls",
    "directions": "controls",
    "inputs": "inputs",
    "seeds": "outputs",
    "hessian_input": "outputs",
}


def _remedy(what: str, count: int) -> str:
    """What to write where values are too few or too many."""
    if count == 0:
        return (
            f"This function has no {what}: leave that argument out. The values of all controls are one argument, a list "
            "where there are several: rf([x, y])."
        )
    if count == 1:
        return "Give the value itself; numbers in a list are an array only inside of numpy.array([...])."
    return f"Give one list of {count}" + (": rf([x, y]), not rf(x, y)." if what == "controls" else ".")


def _current(value: Any, bv: Any) -> Any:
    return value._ad_create_checkpoint() if bv._checkpoint is None else bv._checkpoint


def _seed(value: Any) -> Any:
    return value._value if isinstance(value, ndarray) else value


def _result(like: Any, value: Any) -> Any:
    """Return a sweep's value in the type, engine, shape and dtype of a variable; zeros for None."""
    if value is None:
        return like._ad_init_zero()
    if isinstance(like, ndarray):
        return like._like(value)
    return AdjFloat(as_float(value)) if isinstance(like, AdjFloat) else like._ad_init_object(value)


def riesz(control: Control, value: Any) -> Any:
    """Return the gradient that a derivative is by the control's Riesz map."""
    return control.control._ad_convert_riesz(value, riesz_map=control.riesz_map)
