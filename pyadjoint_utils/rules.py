"""The maps of one function at one signature, each prepared once."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from pyadjoint_utils.engine import Arrays, Aval, Engine, Map, Work
from pyadjoint_utils.errors import NotDifferentiableError
from pyadjoint_utils.jacobians.points import UNKNOWN, Points
from pyadjoint_utils.named_calls import NamedCall

PullBack = Callable[[Sequence[Any]], list[Any]]

_NO_DTYPE = object()  # NumPy takes None for float64


class Rules:
    """A flat function of an engine, and what is derived from it, prepared at the first use and kept.

    Args:
        engine: the engine that runs and differentiates the function.
        function: takes a tuple of arrays, returns a tuple of arrays.
        inputs: shape and dtype of every array that it takes; the first ``dependencies`` of them are values on the
            tape, the others constants.
        dependencies: how many inputs are values on the tape.
        active: positions of the dependencies that pass a derivative.
        compiled: whether the engine's ``compile`` is applied.
        name: the function's name for messages.
        lasting: whether the function lives as long as the process, as arithmetic does.
    """

    def __init__(
        self,
        engine: Engine,
        function: Callable[[Arrays], Arrays],
        inputs: Sequence[Aval],
        dependencies: int,
        active: Sequence[int],
        *,
        compiled: bool = True,
        name: str = "function",
        lasting: bool = False,
    ) -> None:
        self.engine = engine
        self.function = function
        self.inputs = tuple(inputs)
        self.dependencies = dependencies
        self.active = tuple(active)
        self.compiled = compiled or not engine.traces
        self.steady = self.compiled and engine.traces  # a program returns the same dtypes each time
        self.splits = self.compiled  # what an engine would trace, but runs as it is, may take another way each time
        self.name = name
        self.outputs: tuple[Aval, ...] = ()  # known after the first run
        self.points: Points | None = None  # likewise
        self.nature = UNKNOWN
        self.named: NamedCall | None = None  # if other engines have the same function
        self.lasting = lasting
        self.programs: dict[Any, Any] = {}  # programs that this function is a part of
        self._dtypes: list[Any] | None = None  # of the outputs of a run that was checked
        self._local: dict[tuple[tuple[int, ...], tuple[int, ...]], LocalRules] = {}

    @cached_property
    def differentiable(self) -> tuple[int, ...]:
        """Positions of the outputs that pass a derivative."""
        return tuple([k for k, aval in enumerate(self.outputs) if aval.differentiable])

    @cached_property
    def passes_everywhere(self) -> bool:
        """Whether a derivative passes from every dependency to every output."""
        return len(self.active) == self.dependencies and len(self.differentiable) == len(self.outputs)

    def resized(self, dependencies: Sequence[Aval]) -> "Rules":
        """Return the rules of the same function for dependencies of other shapes, the same ones each time."""
        inputs = (*dependencies, *self.inputs[self.dependencies :])
        if inputs == self.inputs:
            return self
        found = self.programs.get(("resized", inputs))
        if found is None:
            found = self.programs["resized", inputs] = Rules(
                self.engine,
                self.function,
                inputs,
                self.dependencies,
                self.active,
                compiled=self.compiled,
                name=self.name,
                lasting=self.lasting,
            )
            found.named, found.nature = self.named, self.nature
        return found

    def check(self, outputs: Arrays) -> None:
        """Raise if an eager function returned other dtypes than before: what is differentiable would be wrong."""
        if self.steady:
            return
        # In the engine's own terms, where its arrays have a dtype: NumPy's would have to be looked up.
        dtypes = [getattr(y, "dtype", _NO_DTYPE) for y in outputs]
        if dtypes == self._dtypes:
            return
        for k, (y, known) in enumerate(zip(outputs, self.outputs, strict=True)):
            if (found := self.engine.aval(y)).dtype != known.dtype:
                raise NotDifferentiableError(
                    f"{self.name}: output {k} is {found} now and was {known} before, for arguments of the same shapes and "
                    "dtypes. Return the same dtype on every path, for example 0.0 * x.sum() for 0."
                )
        self._dtypes = None if any(d is _NO_DTYPE for d in dtypes) else dtypes

    def prepare(self, f: Map, *, derivative: bool = True) -> Map:
        """Return a map of this function's arrays ready for repeated calls, compiled if this function is."""
        compiled = self.compiled or (derivative and self.engine.traces_derivatives)
        return (self.engine.compile if compiled else self.engine.run)(f, self.inputs)

    @cached_property
    def work(self) -> Work:
        """What there is to compile."""
        return self.engine.work(self.function, self.inputs)

    @cached_property
    def value(self) -> Map:
        """The function itself, as a map without differentiated inputs: ``value((), (*dependencies, *constants))``."""
        function = self.function
        return self.prepare(lambda x, c: function(c), derivative=False)

    def at(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> "LocalRules":
        """Return the rules between some of the dependencies and some of the outputs."""
        local = self._local.get((ins, outs))
        if local is None:
            local = self._local[ins, outs] = LocalRules(self, ins, outs)
        return local

    def tangents(
        self, primals: Arrays, constants: Arrays, tangents: Sequence[Any], *, batched: bool = False
    ) -> list[Any]:
        """Return one tangent per output for arrays of the engine; None stands for zero, among both.

        Args:
            primals: the dependencies' values.
            constants: the constants.
            tangents: one for each dependency; with a leading axis of directions if ``batched``.
            batched: whether there is that axis.
        """
        ins, outs, n = _given(tangents, self.active), self.differentiable, len(self.outputs)
        if not ins or not outs:
            return [None] * n
        local = self.at(ins, outs)
        x, c = local.split(primals, constants)
        push = local.batched_jvp if batched else local.jvp
        return _placed(push((*x, *[tangents[i] for i in ins]), c), outs, n)

    def adjoints(
        self, primals: Arrays, constants: Arrays, seeds: Sequence[Any], ins: Sequence[int], *, batched: bool = False
    ) -> list[Any]:
        """Return one cotangent for each dependency that ``ins`` names, the counterpart of :meth:`tangents`."""
        outs = _given(seeds, self.differentiable)
        if not ins or not outs:
            return [None] * self.dependencies
        local = self.at(tuple(ins), outs)
        x, c = local.split(primals, constants)
        pull = local.batched_vjp if batched else local.vjp
        return _placed(pull((*x, *[seeds[k] for k in outs]), c), ins, self.dependencies)

    def value_and_adjoints(
        self, primals: Arrays, constants: Arrays, seeds: Sequence[Any], ins: Sequence[int]
    ) -> tuple[Arrays, list[Any]]:
        """Return all outputs, and what :meth:`adjoints` returns, in one call of the engine."""
        outs, n = _given(seeds, self.differentiable), len(self.outputs)
        if not ins or not outs:
            return self.value((), (*primals, *constants)), [None] * self.dependencies
        local = self.at(tuple(ins), outs)
        x, c = local.split(primals, constants)
        both = local.value_and_vjp((*x, *[seeds[k] for k in outs]), c)
        return both[:n], _placed(both[n:], ins, self.dependencies)

    def value_and_pull_back(
        self, primals: Arrays, constants: Arrays, ins: Sequence[int], outs: Sequence[int]
    ) -> tuple[Arrays, PullBack] | None:
        """Return all outputs, and what :meth:`adjoints` will return for seeds of some of them; None if no engine can.

        Args:
            primals: the dependencies' values.
            constants: the constants.
            ins: positions of the dependencies whose cotangents are wanted.
            outs: positions of the outputs that may have a seed.
        """
        if not ins or not outs:
            return None
        local = self.at(tuple(ins), tuple(outs))
        if local.split_vjp is None:
            return None
        forward, back = local.split_vjp
        x, c = local.split(primals, constants)
        n = len(self.outputs)
        results = forward(x, c)
        kept = (*results[n:], *x, *c)

        def pull_back(seeds: Sequence[Any]) -> list[Any]:
            given = tuple(self._filled(seeds, outs, self.outputs, x))
            return _placed(back(given, kept), ins, self.dependencies)

        return results[:n], pull_back

    def second_adjoints(
        self,
        primals: Arrays,
        constants: Arrays,
        seeds: Sequence[Any],
        tangents: Sequence[Any],
        second_seeds: Sequence[Any],
        ins: Sequence[int],
    ) -> tuple[list[Any], list[Any]]:
        """Return ``xb`` and ``dxb``, one for each dependency that ``ins`` names; None stands for zero."""
        outs = tuple([k for k in self.differentiable if seeds[k] is not None or second_seeds[k] is not None])
        n = self.dependencies
        if not ins or not outs:
            return [None] * n, [None] * n
        local = self.at(tuple(ins), outs)
        x, c = local.split(primals, constants)
        yb, dyb = (self._filled(v, outs, self.outputs, x) for v in (seeds, second_seeds))
        both = local.hvp((*x, *yb, *self._filled(tangents, ins, self.inputs, x), *dyb), c)
        return _placed(both[: local.n], ins, n), _placed(both[local.n :], ins, n)

    def adjoint_tangents(
        self, primals: Arrays, constants: Arrays, seeds: Sequence[Any], tangents: Sequence[Any], ins: Sequence[int]
    ) -> list[Any]:
        """Return ``dxb`` alone, where the seeds have no derivative."""
        outs = _given(seeds, self.differentiable)
        if not ins or not outs:
            return [None] * self.dependencies
        local = self.at(tuple(ins), outs)
        x, c = local.split(primals, constants)
        dx = self._filled(tangents, ins, self.inputs, x)
        return _placed(local.vjp_tangent((*x, *dx), (*[seeds[k] for k in outs], *c)), ins, self.dependencies)

    def _filled(self, values: Sequence[Any], where: Sequence[int], avals: Sequence[Aval], x: Arrays) -> list[Any]:
        return [self.engine.zeros(avals[k], x[0]) if values[k] is None else values[k] for k in where]


def _given(values: Sequence[Any], where: Sequence[int]) -> tuple[int, ...]:
    """The positions among some at which there is a value."""
    return tuple([k for k in where if values[k] is not None])


def _placed(values: Sequence[Any], where: Sequence[int], length: int) -> list[Any]:
    """Values at their positions, None elsewhere."""
    results: list[Any] = [None] * length
    for k, value in zip(where, values, strict=True):
        results[k] = value
    return results


class LocalRules:
    """JVP, VJP and the derivative of the VJP between chosen inputs and outputs of one function."""

    def __init__(self, rules: Rules, ins: tuple[int, ...], outs: tuple[int, ...]) -> None:
        self.rules, self.ins, self.outs = rules, ins, outs
        self.others = tuple(i for i in range(rules.dependencies) if i not in ins)
        # Where each dependency stands in (*x, *c): the constants follow the dependencies that are not differentiated.
        order = {dep: k for k, dep in enumerate(ins + self.others)}
        permutation = [order[dep] for dep in range(rules.dependencies)]
        in_order = permutation == list(range(rules.dependencies))
        function, n = rules.function, rules.dependencies
        all_outputs = outs == tuple(range(len(rules.outputs)))

        def whole(x: Arrays, c: Arrays) -> Arrays:
            leaves = (*x, *c)
            if not in_order:
                leaves = (*[leaves[k] for k in permutation], *leaves[n:])
            return function(leaves)

        self.whole: Map = whole
        self.map: Map = whole if all_outputs else lambda x, c: tuple([y[k] for y in [whole(x, c)] for k in outs])
        self.n, self.m = len(ins), len(outs)
        self.in_avals = tuple([rules.inputs[i] for i in ins])
        self.out_avals = tuple([rules.outputs[k] for k in outs])
        self.patterns: dict[Any, Any] = {}  # of these maps' sparsity, by constants
        self._of_size: dict[tuple[str, int], Rules] = {}

    def split(self, primals: Arrays, constants: Arrays) -> tuple[Arrays, Arrays]:
        """Sort the function's arrays into the differentiated ones and the constant ones."""
        if not self.others:
            return primals, constants
        return tuple([primals[i] for i in self.ins]), (*[primals[i] for i in self.others], *constants)

    @cached_property
    def vjp_map(self) -> Map:
        return self.rules.engine.vjp_of(self.map, self.n)

    @cached_property
    def jvp_map(self) -> Map:
        """Tangents alone: ``((*x, *dx), c) -> dy``."""
        both, m = self.dual_map, self.m
        return lambda x, c: both(x, c)[m:]

    @cached_property
    def dual_map(self) -> Map:
        """Values and tangents: ``((*x, *dx), c) -> (*y, *dy)``."""
        return self.rules.engine.jvp_of(self.map, self.n)

    @cached_property
    def value_and_vjp_map(self) -> Map:
        return self.rules.engine.value_and_vjp_of(self.whole, self.n, self.outs)

    @cached_property
    def second_map(self) -> Map:
        """The derivative of the adjoint alone: ``((*x, *yb, *dx, *dyb), c) -> dxb``."""
        both, n = self.rules.engine.jvp_of(self.vjp_map, self.n + self.m), self.n
        return lambda x, c: both(x, c)[n:]

    @cached_property
    def vjp(self) -> Map:
        """The adjoint, ``((*x, *yb), c) -> xb``."""
        return self.rules.prepare(self.vjp_map)

    @cached_property
    def value_and_vjp(self) -> Map:
        """All outputs and the adjoint, ``((*x, *yb), c) -> (*y, *xb)``."""
        return self.rules.prepare(self.value_and_vjp_map)

    @cached_property
    def split_vjp(self) -> tuple[Map, Map] | None:
        """``(x, c) -> (*y, *kept)`` and ``(yb, (*kept, *x, *c)) -> xb``; None where the engine cannot split a VJP."""
        rules = self.rules
        if not rules.splits:
            return None
        halves = rules.engine.split_vjp_of(self.whole, self.n, self.outs)
        return None if halves is None else (rules.prepare(halves[0]), rules.prepare(halves[1]))

    @cached_property
    def jvp(self) -> Map:
        """The tangent, ``((*x, *dx), c) -> dy``."""
        return self.rules.prepare(self.jvp_map)

    @cached_property
    def hvp(self) -> Map:
        """``((*x, *yb, *dx, *dyb), c) -> (*xb, *dxb)``: the VJP and its derivative, in one call.

        ``dxb = d/de [J(x + e dx)^H (yb + e dyb)]`` holds both terms that second order needs, the curvature of the
        function and the propagated second adjoint.
        """
        return self.rules.prepare(self.rules.engine.hvp_of(self.map, self.n, self.m))

    @cached_property
    def batched_jvp_map(self) -> Map:
        return self.rules.engine.batch_of(self.jvp_map, [False] * self.n + [True] * self.n)

    @cached_property
    def batched_vjp_map(self) -> Map:
        return self.rules.engine.batch_of(self.vjp_map, [False] * self.n + [True] * self.m)

    @cached_property
    def vjp_tangent(self) -> Map:
        """The derivative of the VJP along ``dx`` alone, ``((*x, *dx), (*yb, *c)) -> dxb``."""
        return self.rules.prepare(self.rules.engine.vjp_tangent_of(self.map, self.n, self.m))

    @cached_property
    def batched_jvp(self) -> Map:
        """The tangent over a leading axis of ``dx``."""
        return self.rules.prepare(self.batched_jvp_map)

    @cached_property
    def batched_vjp(self) -> Map:
        """The adjoint over a leading axis of ``yb``."""
        return self.rules.prepare(self.batched_vjp_map)

    @cached_property
    def batched_hvp(self) -> Map:
        """The derivative of the adjoint over a leading axis of its directions: ``((*x, *yb, *dx, *dyb), c) -> dxb``."""
        both, n, m = self.rules.engine.hvp_of(self.map, self.n, self.m), self.n, self.m
        marks = [False] * (n + m) + [True] * (n + m)
        return self.rules.prepare(self.rules.engine.batch_of(lambda x, c: both(x, c)[n:], marks))

    @cached_property
    def vjp_rules(self) -> Rules:
        """The VJP as a function that can itself go on the tape; dependencies ``(*x, *yb, *others)``."""
        return DerivedRules(self, "vjp", self.vjp_map, self.vjp, self.out_avals, self.in_avals)

    @cached_property
    def value_and_vjp_rules(self) -> Rules:
        """Values and adjoint ``(*y, *xb)`` as one function; dependencies ``(*x, *yb, *others)``."""
        results = (*self.rules.outputs, *self.in_avals)
        return DerivedRules(self, "value and vjp", self.value_and_vjp_map, self.value_and_vjp, self.out_avals, results)

    @cached_property
    def jvp_rules(self) -> Rules:
        """The JVP as a function that can itself go on the tape; dependencies ``(*x, *dx, *others)``."""
        return DerivedRules(self, "jvp", self.jvp_map, self.jvp, self.in_avals, self.out_avals)

    @cached_property
    def dual_rules(self) -> Rules:
        """Values and tangents ``(*y, *dy)`` as one function; dependencies ``(*x, *dx, *others)``."""
        return DerivedRules(self, "dual", self.dual_map, None, self.in_avals, 2 * self.out_avals)

    def batched_vjp_rules(self, size: int) -> Rules:
        """As :attr:`vjp_rules`, over a leading axis of ``yb``."""
        return self._batched_rules("vjp", self.batched_vjp_map, self.batched_vjp, self.out_avals, self.in_avals, size)

    def batched_jvp_rules(self, size: int) -> Rules:
        """As :attr:`jvp_rules`, over a leading axis of ``dx``."""
        return self._batched_rules("jvp", self.batched_jvp_map, self.batched_jvp, self.in_avals, self.out_avals, size)

    def _batched_rules(
        self, kind: str, f: Map, prepared: Map, seeds: Sequence[Aval], results: Sequence[Aval], size: int
    ) -> Rules:
        found = self._of_size.get((kind, size))
        if found is None:
            seeds, results = ([Aval((size, *a.shape), a.dtype) for a in avals] for avals in (seeds, results))
            found = self._of_size[kind, size] = DerivedRules(self, f"batched {kind}", f, prepared, seeds, results)
        return found


class DerivedRules(Rules):
    """A derivative between chosen inputs and outputs as a function of its own, which has derivatives in turn.

    Args:
        local: where it comes from.
        kind: ``"vjp"`` or ``"jvp"``, perhaps over a leading axis of its seeds; ``"value and vjp"`` or ``"dual"``.
        f: the derivative, ``((*x, *seeds), c) -> results``.
        prepared: the same, ready for calls, where sweeps over the original function have it; else None.
        seeds: shape and dtype of the seeds.
        results: shape and dtype of the results.
    """

    def __init__(
        self,
        local: LocalRules,
        kind: str,
        f: Map,
        prepared: Map | None,
        seeds: Sequence[Aval],
        results: Sequence[Aval],
    ) -> None:
        rules, k = local.rules, local.n + len(seeds)
        others = [rules.inputs[i] for i in local.others]
        super().__init__(
            rules.engine,
            lambda leaves: f(leaves[:k], leaves[k:]),
            (*local.in_avals, *seeds, *others, *rules.inputs[rules.dependencies :]),
            k + len(others),
            (*range(k), *[k + j for j, i in enumerate(local.others) if i in rules.active]),
            compiled=rules.compiled,
            name=f"{kind}({rules.name})",
        )
        self.outputs = tuple(results)
        if prepared is not None:
            self.value = lambda x, c: prepared(c[:k], c[k:])
        if rules.points is not None and kind in ("vjp", "jvp"):
            rest = (*local.others, *range(rules.dependencies, len(rules.inputs)))
            derived = rules.points.adjoint if kind == "vjp" else rules.points.tangent
            self.points = derived(local.ins, local.outs, rest)
