"""Functions that run outside of whoever calls them, and their derivatives, which are such functions again.

An engine that is to call a tape sees each part of it that is not its own as one opaque function of arrays. The derivative
of that function is another one, so that one primitive per engine, applied to itself, is right at any order.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyadjoint_utils.engine import Arrays, Aval, Engine, Map
from pyadjoint_utils.errors import ArgumentValueError
from pyadjoint_utils.registry import FEW, get_engine, on_host, owner_of
from pyadjoint_utils.rules import LocalRules, Rules
from pyadjoint_utils.variable import bare, entered

_log = logging.getLogger(__name__)

Known = dict[int, Any]  # values that a composition has computed, by slot


class HostFunction:
    """A pure function of arrays without a state, safe to call from any thread.

    Positions of arguments and results, ``ins`` and ``outs``, are in ascending order.

    Attributes:
        name: its name for messages.
        inputs: shape and dtype of every argument; None for an object of another package.
        outputs: shape and dtype of every result.
        active: positions of the arguments through which a derivative passes.
        differentiable: positions of the results that pass a derivative.
        lasting: whether what it returned stays as it is, whatever is evaluated later.
    """

    lasting = True

    def __init__(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any], active: Sequence[int]) -> None:
        self.name = name
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.active = tuple(active)
        self.differentiable = tuple([k for k, aval in enumerate(self.outputs) if aval and aval.differentiable])
        self._kept: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<{self.name}: {', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}>"

    def __call__(self, arrays: Sequence[Any], engine: Engine | None = None) -> Arrays:
        """Evaluate.

        Args:
            arrays: one concrete array of any engine per argument; its dtype is cast to the one that is expected.
            engine: whose arrays to return; None for NumPy's.

        Returns:
            The results, with the shapes and dtypes of ``outputs``.
        """
        return self.evaluate(arrays, engine)[0]

    def evaluate(
        self, arrays: Sequence[Any], engine: Engine | None = None, known: Known | None = None
    ) -> tuple[Arrays, Known]:
        """Evaluate, and return also what was computed on the way and derivatives at this point start from.

        Args:
            arrays: as for a call.
            engine: as for a call.
            known: what the function that this one is the derivative of computed on its way, for the same arrays.

        Returns:
            The results, and what to hand to the derivatives of this function.
        """
        holder = get_engine("numpy") if engine is None else engine
        results, known = self.run_from(tuple(arrays), known or {})
        settled = [self._settled(k, value, holder) for k, value in enumerate(results)]
        waiting = [k for k, array in enumerate(settled) if type(array) not in holder.array_types]
        if waiting:
            for k, array in zip(waiting, holder.enter_all([settled[k] for k in waiting]), strict=True):
                settled[k] = array
        return tuple(settled), known

    def _settled(self, k: int, value: Any, engine: Engine) -> Any:
        """A result of the expected dtype, of the engine or, where it is small and from elsewhere, of NumPy."""
        aval = self.outputs[k]
        value, through = np.zeros(aval.shape, aval.dtype) if value is None else bare(value), engine
        if type(value) not in engine.array_types and aval.dtype.kind in "fc" and math.prod(aval.shape) <= FEW:
            through = get_engine("numpy") if on_host(value) else engine
        array = entered(value, aval, through)
        if (found := through.aval(array)).shape != aval.shape:
            raise ArgumentValueError(
                f"{self.name}: result {k} is {found} here and was {aval} when it was recorded. The shapes of a recorded "
                "function's results must not depend on the values of its arguments."
            )
        return array

    def tangent(self, ins: tuple[int, ...], outs: tuple[int, ...] | None = None) -> "HostFunction":
        """Return ``(*x, *dx) -> dy`` with ``dy = J dx``, from directions of the arguments ``ins`` to tangents of ``outs``.

        Without ``outs`` there is a tangent for each of ``differentiable``.
        """
        chosen = self.differentiable if outs is None else outs
        return self.once(("tangent", ins, chosen), lambda: self._tangent(ins, chosen))

    def adjoint(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> "HostFunction":
        """Return ``(*x, *yb) -> xb`` with ``xb = J^H yb`` for ``Re<a, b>``: cotangents of the results ``outs``."""
        return self.once(("adjoint", ins, outs), lambda: self._adjoint(ins, outs))

    def batched(self, marks: tuple[bool, ...], size: int, summed: tuple[bool, ...] | None = None) -> "HostFunction":
        """Return the function over a leading axis of the arguments that are marked, and of all results.

        Results that are marked in ``summed`` are summed over the axis instead.
        """
        return self.once(("batched", marks, size, summed), lambda: Batched(self, marks, size, summed))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what is kept under a key; it is made at the first call. A bridge keeps its own form of the function so."""
        found = self._kept.get(key)
        return self._kept.setdefault(key, make()) if found is None else found

    # What a kind of function says of itself ----------------------------------------------------------------------------

    def run(self, x: Arrays) -> Sequence[Any]:
        """Evaluate on arrays of any engine; the results are in any engine, None for zero."""
        raise NotImplementedError

    def run_from(self, x: Arrays, known: Known) -> tuple[Sequence[Any], Known]:
        """As :meth:`run`, with and for what is known at the point; most functions know nothing on their way."""
        return self.run(x), {}

    def _tangent(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> "HostFunction":
        raise NotImplementedError

    def _adjoint(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> "HostFunction":
        raise NotImplementedError

    def dual(self, ins: tuple[int, ...]) -> "HostFunction | None":
        """Return ``(*x, *dx) -> (*y, *dy)`` if that costs less than the two alone, else None."""
        return None

    def with_adjoint(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> "HostFunction | None":
        """Return ``(*x, *yb) -> (*y, *xb)`` if that costs less than the two alone, else None."""
        return None

    def run_batch(self, x: Arrays, marks: Sequence[bool], size: int) -> Sequence[Any]:
        """Evaluate over a leading axis of the marked arguments, one entry after the other."""
        rows = [
            self([a[k] if marked else a for a, marked in zip(map(as_numpy, x), marks, strict=True)])
            for k in range(size)
        ]
        if not rows:
            return [np.zeros((0, *aval.shape), aval.dtype) for aval in self.outputs]
        return [np.stack(column) for column in zip(*rows, strict=True)]


class RulesFunction(HostFunction):
    """A function of an engine with all its derived maps; right at any order that the engine is.

    Args:
        rules: the function.
        constants: the arrays that follow its dependencies.
        active: positions of the dependencies that pass a derivative.
        order: for each dependency of ``rules``, where it stands among the arguments, or None for zero; without it, where
            it stands already.
        seeds: positions of the arguments in which it is linear. Engines are faster with directions for all of them.
    """

    def __init__(
        self,
        rules: Rules,
        constants: Arrays,
        active: Sequence[int],
        order: Sequence[int | None] | None = None,
        seeds: Sequence[int] = (),
    ) -> None:
        self._rules, self._constants, self._seeds = rules, constants, tuple(seeds)
        self._order = tuple(range(rules.dependencies)) if order is None else tuple(order)
        self._at = {i: j for j, i in enumerate(self._order) if i is not None}
        inputs = [rules.inputs[self._at[i]] for i in range(len(self._at))]
        super().__init__(rules.name, inputs, rules.outputs, active)
        self._loops = type(rules.engine).batch_of is Engine.batch_of
        self._passes: dict[tuple[bool, ...], Map] = {}
        self._one_by_one: set[tuple[bool, ...]] = set()

    def run(self, x: Arrays) -> Sequence[Any]:
        y = self._rules.value((), self._leaves(x))
        self._rules.check(y)
        return y

    def _leaves(self, x: Arrays) -> Arrays:
        given = [
            self._zeros(aval) if i is None else self._argument(x[i], aval)
            for i, aval in zip(self._order, self._rules.inputs, strict=False)
        ]
        return (*given, *self._constants)

    def _zeros(self, aval: Aval) -> Any:
        return self.once(("zeros", aval), lambda: self._rules.engine.zeros(aval))

    def _argument(self, value: Any, aval: Aval) -> Any:
        if isinstance(value, np.ndarray) and self._rules.compiled:
            return self._rules.engine.argument(value, aval.dtype)
        return entered(value, aval, self._rules.engine)

    def _local(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> LocalRules:
        return self._rules.at(tuple([self._at[i] for i in ins]), outs)

    def _derive(
        self, rules: Rules, local: LocalRules, ins: Sequence[int], seeds: Sequence[int | None]
    ) -> "RulesFunction":
        # The arguments are (*x, *seeds), the dependencies (*x of ins, *seeds, *other x).
        order = [*ins, *seeds, *[self._order[j] for j in local.others]]
        given = [i for i in seeds if i is not None]
        return RulesFunction(rules, self._constants, (*self.active, *given), order, given)

    def _directions(self, ins: tuple[int, ...]) -> tuple[tuple[int, ...], list[int | None]]:
        """The arguments that have a direction to the engine, and where it stands: None for zero."""
        places = {i: len(self.inputs) + k for k, i in enumerate(ins)}
        through = tuple(sorted({*ins, *self._seeds}))
        return through, [places.get(i) for i in through]

    def _tangent(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> HostFunction:
        through, directions = self._directions(ins)
        local = self._local(through, outs)
        return self._derive(local.jvp_rules, local, through, directions)

    def _adjoint(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> HostFunction:
        local, n = self._local(ins, outs), len(self.inputs)
        return self._derive(local.vjp_rules, local, ins, range(n, n + len(outs)))

    def dual(self, ins: tuple[int, ...]) -> HostFunction | None:
        if len(self.differentiable) < len(self.outputs):
            return None
        through, directions = self._directions(ins)
        local = self._local(through, self.differentiable)
        return self.once(("dual", ins), lambda: self._derive(local.dual_rules, local, through, directions))

    def with_adjoint(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> HostFunction | None:
        if type(self._rules.engine).value_and_vjp_of is Engine.value_and_vjp_of:
            return None  # it is the two
        local, seeds = self._local(ins, outs), range(len(self.inputs), len(self.inputs) + len(outs))
        return self.once(("with", ins, outs), lambda: self._derive(local.value_and_vjp_rules, local, ins, seeds))

    def run_batch(self, x: Arrays, marks: Sequence[bool], size: int) -> Sequence[Any]:
        key = tuple(marks)
        known = self._passes.get(key)
        if self._loops or key in self._one_by_one:
            return super().run_batch(x, marks, size)
        in_order = [i is not None and key[i] for i in self._order]
        leaves, n = self._batch_leaves(x, in_order), self._rules.dependencies
        if known is not None:
            return known(leaves[:n], leaves[n:])
        results: Sequence[Any]
        try:
            one_pass = self._one_pass(in_order)
            results = one_pass(leaves[:n], leaves[n:])
        except Exception as error:  # whatever an engine that cannot batch this function says
            results = super().run_batch(x, marks, size)
            self._one_by_one.add(key)
            _log.debug("%s goes through a batch one by one: %s", self.name, error)
            return results
        self._passes[key] = one_pass
        return results

    def _one_pass(self, marks: Sequence[bool]) -> Map:
        function = self._rules.function
        return self._rules.prepare(self._rules.engine.batch_of(lambda x, c: function((*x, *c)), marks))

    def _batch_leaves(self, x: Arrays, in_order: Sequence[bool]) -> Arrays:
        engine = self._rules.engine
        given = [
            self._zeros(aval)
            if i is None
            else entered(x[i], Aval(_shape(x[i]) if marked else aval.shape, aval.dtype), engine)
            for i, aval, marked in zip(self._order, self._rules.inputs, in_order, strict=False)
        ]
        return (*given, *self._constants)


class Batched(HostFunction):
    """A function over a leading axis of some arguments.

    Args:
        function: the function of one entry.
        marks: which arguments have the axis.
        size: its length.
        summed: which results are summed over the axis, None for none; the others have it.
    """

    def __init__(
        self, function: HostFunction, marks: Sequence[bool], size: int, summed: Sequence[bool] | None = None
    ) -> None:
        self._function, self._marks, self._size = function, tuple(marks), size
        self._summed = tuple([False] * len(function.outputs) if summed is None else summed)
        super().__init__(
            f"batch of {function.name}",
            [_grown(aval, size, marked) for aval, marked in zip(function.inputs, self._marks, strict=True)],
            [_grown(aval, size, not added) for aval, added in zip(function.outputs, self._summed, strict=True)],
            function.active,
        )

    def run(self, x: Arrays) -> Sequence[Any]:
        return self._sums(self._function.run_batch(x, self._marks, self._size), 0)

    def _sums(self, results: Sequence[Any], axis: int) -> list[Any]:
        return [
            as_numpy(y).sum(axis) if added and y is not None else y
            for y, added in zip(results, self._summed, strict=True)
        ]

    def run_batch(self, x: Arrays, marks: Sequence[bool], size: int) -> Sequence[Any]:
        # Both axes become one.
        both = [outer or inner for outer, inner in zip(marks, self._marks, strict=True)]
        flat = [
            self._flat(as_numpy(a), outer, inner, size) if either else a
            for a, outer, inner, either in zip(x, marks, self._marks, both, strict=True)
        ]
        results = self._function.run_batch(tuple(flat), both, size * self._size)
        rows = [None if y is None else as_numpy(y).reshape(size, self._size, *_shape(y)[1:]) for y in results]
        return self._sums(rows, 1)

    def _flat(self, a: np.ndarray, outer: bool, inner: bool, size: int) -> np.ndarray:
        if not outer:
            a = a[None]
        if not inner:
            a = a[:, None]
        return np.broadcast_to(a, (size, self._size, *a.shape[2:])).reshape(-1, *a.shape[2:])

    def _tangent(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> HostFunction:
        marks = (*self._marks, *[self._marks[i] for i in ins])
        return self._function.tangent(ins, outs).batched(marks, self._size, tuple([self._summed[k] for k in outs]))

    def _adjoint(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> HostFunction:
        # A cotangent of what has no axis is the same for all; the adjoint of what is the same for all is a sum.
        marks = (*self._marks, *[not self._summed[k] for k in outs])
        summed = tuple([not self._marks[i] for i in ins])
        return self._function.adjoint(ins, outs).batched(marks, self._size, summed)


def _grown(aval: Aval, size: int, marked: bool) -> Aval:
    return Aval((size, *aval.shape), aval.dtype) if marked else aval


def as_numpy(value: Any) -> Any:
    """Return an array of any engine, or a number, as a NumPy array."""
    value = bare(value)
    engine = owner_of(value)
    return np.asarray(value) if engine is None else engine.to_numpy(value)


def _shape(value: Any) -> tuple[int, ...]:
    value = bare(value)
    engine = owner_of(value)
    return np.shape(value) if engine is None else engine.aval(value).shape
