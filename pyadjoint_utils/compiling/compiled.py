"""A reduced function whose evaluations run as compiled programs."""

from collections.abc import Callable, Sequence
from typing import Any

from pyadjoint import AdjFloat

from pyadjoint_utils.compiling.description import description
from pyadjoint_utils.compiling.options import Options
from pyadjoint_utils.compiling.policy import Memory, Policy
from pyadjoint_utils.compiling.program import Program
from pyadjoint_utils.compiling.segments import Budget
from pyadjoint_utils.compiling.standing import Standing
from pyadjoint_utils.control import checked_value
from pyadjoint_utils.engine import Aval, Engine
from pyadjoint_utils.functional import ReducedFunctional
from pyadjoint_utils.plan import Plan
from pyadjoint_utils.reduced import ReducedFunction, _result
from pyadjoint_utils.registry import owner_of
from pyadjoint_utils.tapes import alone, state_of
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import bare


class CompiledFunction(ReducedFunction):
    """A reduced function whose evaluations run as compiled programs, made by :meth:`ReducedFunction.compile`.

    Runs of Blocks of one engine become one program each, repetitions of Blocks become loops, and other Blocks run as they
    are in between. Programs are compiled at the first call that needs them, and kept for all tapes of the same functions.
    Once a gradient has been asked for, an evaluation computes it together with the value.

    It has a point of its own and leaves the tape alone. Matrices are computed on the tape, at the same point.

    Args:
        function: the function to compile.
        **options: as for :meth:`ReducedFunction.compile`, but for ``respecialize``.

    Raises:
        ArgumentTypeError: there is no such option, or its value has a wrong type.
        ArgumentValueError: an option does not take this value, or there is no such compiler.
    """

    def __init__(self, function: ReducedFunction, **options: Any) -> None:
        asked = Options.of(options)
        compilers = asked.compilers()
        self.__dict__.update(function.__dict__)
        self._start = list(function._last_point())
        self._point, self._updates = None, {}
        self._plans = dict(function._plans)
        self._asked = compilers
        self._memory, self._turns, self._budget = asked.memory, asked.turns, Budget(asked.budget)
        self._policies: dict[Any, Policy] = {}
        self._standing: Standing | None = None
        self._given: tuple[Any, ...] | None = None  # the controls' values at the last evaluation, as they were given
        self._known: dict[str, list[tuple[Engine, Aval] | None]] = {}  # what values must be in order to fit
        self._has_gradient = len(self._outputs) == 1 and _is_real_scalar(self._outputs[0])
        self._seed: Any = None  # of that gradient
        self._scaled_seed: tuple[Any, Any] | None = None  # a scale, and that seed times it
        self._expected: list[Any] | None = None  # seeds of the derivative that follows an evaluation

    def describe(self) -> str:
        """Return what the function consists of: programs, loops, single Blocks and why, crossings, memory, time."""
        inputs, outputs = ([_said(v) for v in values] for values in (self._controls, self._outputs))
        return description(self._current().policy, inputs, outputs)

    def _called(self, given: list[Any], inputs: Any) -> Any:
        self.eval_cb_pre(self._controls.delist(given))
        point = [bare(value) for value in given] + self._input_point(inputs)
        updates = dict(state_of(self.tape).updates)
        standing = self._at(point, updates)
        if self._expected is not None:
            if self._standing is not None:
                self._standing.let_go()
            standing.linearize(self._expected)
        outputs = self._wrapped(standing)
        self._point, self._updates, self._standing, self._given = point, updates, standing, tuple(given)
        self.eval_cb_post(outputs, self._controls.delist(given))
        return outputs

    def value_and_derivative(self, values: Any, inputs: Any = None) -> tuple[Any, Any]:
        seeds = [bare(seed) for seed in self._seeds(None)]
        return self._expecting(seeds, lambda: super(CompiledFunction, self).value_and_derivative(values, inputs))

    @alone
    def jac_action(self, m_dot: Any) -> Any:
        directions = self._checked(m_dot, self._controls, "directions")
        values = self._values()
        self.jac_action_cb_pre(values, self._controls.delist(directions))
        tangents = self._current().tangents([bare(d) for d in directions])
        result = self._outputs.delist([_result(y, dy) for y, dy in zip(self._outputs, tangents, strict=True)])
        self.jac_action_cb_post(self._output_values(), result, values)
        return result

    # What the sweeps of the tape are for the function itself -------------------------------------------------------------

    def _checked(self, values: Any, likes: Sequence[Any], what: str, *, optional: bool = False) -> list[Any]:
        # What fits needs no second look: beside a small program that would be most of a call.
        known = self._known.get(what)
        if known is None:
            known = self._known[what] = [_kind(getattr(like, "control", like)) for like in likes]
        given = [values] if type(values) is ndarray else values
        if type(given) is list and len(given) == len(known) and _all_fit(given, known):
            return given
        return super()._checked(values, likes, what, optional=optional)

    def _at(self, point: Sequence[Any], updates: dict[Any, Any]) -> Standing:
        plan = self._plan_with(updates)
        plan.claim()
        others = plan.sources[len(self._variables) :]
        policy = self._policies.get(frozenset(others))
        if policy is None:
            policy = self._policies[frozenset(others)] = self._policy(plan)
        return Standing(policy, [*point, *[updates[bv] for bv in others]])

    def _policy(self, plan: Plan) -> Policy:
        program, memory = Program(plan), Memory.chosen(self._memory, plan.schedule)
        engines = dict.fromkeys(step.engine for step in program.steps if step.engine is not None)
        merging = {engine: self._asked.get(engine) for engine in engines if engine.merges or engine in self._asked}
        return Policy(program, merging, memory=memory, turns=self._turns, budget=self._budget)

    def _current(self) -> Standing:
        if self._point is None:
            self._follow(state_of(self.tape).updates)
        if self._standing is None:
            self._standing = self._at(self._last_point(), self._updates)
        return self._standing

    def _follow(self, updates: dict[Any, Any]) -> None:
        """Before the first evaluation, a derivative is taken where Control.update puts the program."""
        known = self._updates
        if updates.keys() != known.keys() or any(value is not known[bv] for bv, value in updates.items()):
            self._updates, self._standing = dict(updates), None

    def _return_to(self, point: list[Any] | None, updates: dict[Any, Any]) -> None:
        self._point, self._updates, self._standing, self._given = point, updates, None, None

    def _adjoint(self, seeds: list[Any]) -> list[Any]:
        bare_seeds = [bare(seed) for seed in seeds]
        adjoints = self._expecting(bare_seeds, lambda: self._current().adjoints(bare_seeds))
        return self._cotangents(adjoints)

    def _cotangents(self, values: Sequence[Any]) -> list[Any]:
        """Results in the controls' types; what is zero may be said."""
        return [
            self._derivative(self._plan, c, None) if value is None else _wrapped(c.control, value)
            for c, value in zip(self._controls, values, strict=True)
        ]

    def _expecting(self, seeds: list[Any], compute: Callable[[], Any]) -> Any:
        """Compute a gradient, and take note of its seed if that succeeds: later evaluations compute it with the value."""
        before = self._expected
        if before is not None and seeds[0] is before[0]:
            return compute()
        if self._has_gradient and seeds[0] is not None:
            self._expected = seeds if self._is_own(seeds[0]) else [_copied(seeds[0])]
        try:
            return compute()
        except BaseException:
            self._expected = before
            raise

    def _hessian(self, directions: list[Any], seeds: list[Any], second: list[Any] | None = None) -> list[Any]:
        second = None if second is None else [bare(a) for a in second]
        results = self._current().second_adjoints([bare(d) for d in directions], [bare(s) for s in seeds], second)
        return self._cotangents(results)

    def _unit_seed(self) -> Any:
        if self._seed is None:
            self._seed = checked_value(self._outputs[0], super()._unit_seed(), "seeds")
        return self._seed

    def _seeds(self, given: Any) -> list[Any]:
        return super()._seeds(given) if given is not None else [self._unit_seed()]

    def _scaled_unit_seed(self, scale: Any, scaled: Callable[[Any], Any]) -> Any:
        """The unit seed times a scale: the same array each time, so that it is known again without a look at it."""
        if self._scaled_seed is None or self._scaled_seed[0] is not scale:
            self._scaled_seed = scale, scaled(self._unit_seed())
        return self._scaled_seed[1]

    def _is_own(self, seed: Any) -> bool:
        """Whether nobody else can write to a seed, as a user can to theirs."""
        own = self._seed, self._scaled_seed and self._scaled_seed[1]
        return any(seed is bare(value) for value in own)

    def _value_list(self) -> list[Any]:
        given, point = self._given, self._point
        # Pyadjoint's operations in place give the user's object another value.
        if given is None or point is None:
            return super()._value_list()
        for value, at in zip(given, point, strict=False):
            if bare(value) is not at:
                return super()._value_list()
        return list(given)

    def _output_checkpoint(self) -> Any:
        return self._current().outputs()[0]

    def _output_values(self) -> Any:
        return self._wrapped(self._current())

    def _wrapped(self, standing: Standing) -> Any:
        """The outputs in their types and engines."""
        return self._outputs.delist([_restored(y, v) for y, v in zip(self._outputs, standing.outputs(), strict=True)])


class CompiledFunctional(ReducedFunctional):
    """A reduced functional over a :class:`CompiledFunction`, made by :meth:`ReducedFunctional.compile`.

    Args:
        functional: the functional to compile.
        **options: of :class:`CompiledFunction`.
    """

    _function: CompiledFunction

    def __init__(self, functional: ReducedFunctional, **options: Any) -> None:
        self.__dict__.update(functional.__dict__)
        self._function = CompiledFunction(functional._function, **options)

    def describe(self) -> str:
        """Return what the functional consists of; see :meth:`CompiledFunction.describe`."""
        return self._function.describe()

    def _scaled(self, value: Any) -> Any:
        function, scaled = self._function, super()._scaled
        return function._scaled_unit_seed(self.scale, scaled) if value is function._seed else scaled(value)

    def value_and_derivative(self, values: Any, inputs: Any = None) -> tuple[Any, Any]:
        function = self._function
        seeds = [bare(self._scaled(*function._seeds(None)))]
        return function._expecting(seeds, lambda: super(CompiledFunctional, self).value_and_derivative(values, inputs))


def _copied(seed: Any) -> Any:
    engine = owner_of(seed)
    return seed if engine is None else engine.copy(seed)


def _kind(like: Any) -> tuple[Engine, Aval] | None:
    return (like._engine, like.aval) if type(like) is ndarray else None


def _all_fit(values: Sequence[Any], known: Sequence[tuple[Engine, Aval] | None]) -> bool:
    """Whether values are arrays of these engines, shapes and dtypes."""
    for value, kind in zip(values, known, strict=True):
        if kind is None or type(value) is not ndarray or value._engine is not kind[0] or value.aval != kind[1]:
            return False
    return True


def _wrapped(like: Any, value: Any) -> Any:
    """A result in the type of a variable; nearly always it comes in its engine and dtype."""
    if type(like) is ndarray:
        engine = like._engine
        if type(value) in engine.array_types and value.dtype == like.aval.dtype:
            return ndarray(value, engine)
    return _result(like, value)


def _restored(like: Any, value: Any) -> Any:
    has_array = isinstance(like, (ndarray, AdjFloat))
    return _wrapped(like, value) if has_array else like._ad_restore_at_checkpoint(value)


def _said(value: Any) -> str:
    value = getattr(value, "control", value)
    return str(value.aval) if isinstance(value, ndarray) else type(value).__name__


def _is_real_scalar(output: Any) -> bool:
    return isinstance(output, AdjFloat) or (
        isinstance(output, ndarray) and output.size == 1 and output.dtype.kind != "c"
    )
