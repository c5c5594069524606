"""Functions composed of others over numbered slots; the tangent and the adjoint of a composition are compositions again."""

import itertools
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pyadjoint_utils.engine import Arrays, Aval
from pyadjoint_utils.inside.host_function import HostFunction, Known, as_numpy
from pyadjoint_utils.variable import accumulated


class Part(NamedTuple):
    """One call within a composition.

    Attributes:
        function: what is called.
        inputs: slots of its arguments.
        outputs: slots of its results; what several parts put into one slot adds up.
    """

    function: HostFunction
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Composition(HostFunction):
    """Several functions as one.

    Args:
        parts: the calls in order. A slot is complete before the first part that reads it.
        sources: slots of the arguments.
        results: slots of the results; one that nothing was put into is zero.
        inputs: shape and dtype of the arguments.
        outputs: shape and dtype of the results.
        active: positions of the arguments through which a derivative passes.
        name: the name for messages.
        fixed: values of further slots, which never change.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        sources: Sequence[int],
        results: Sequence[int],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        active: Sequence[int],
        name: str | None = None,
        fixed: dict[int, Any] | None = None,
    ) -> None:
        super().__init__(name or " then ".join(part.function.name for part in parts), inputs, outputs, active)
        self._parts, self._sources, self._results = _needed(parts, results), tuple(sources), tuple(results)
        self._fixed = fixed or {}
        self._free = 1 + max([*self._sources, *self._results, *(s for p in parts for s in (*p.inputs, *p.outputs))])

    def run(self, x: Arrays) -> Sequence[Any]:
        return self.run_from(x, {})[0]

    def run_from(self, x: Arrays, known: Known) -> tuple[Sequence[Any], Known]:
        # A composition and its derivatives have the same slots. What is known of one is complete, where parts add to an
        # argument (the cotangent of a result that was used further) too.
        values = self._fixed | dict(zip(self._sources, x, strict=True)) | known
        for part in self._parts:
            if not all(slot in known for slot in part.outputs):
                _put(values, part, part.function.run(_given(values, part)), known)
        return [values.get(slot) for slot in self._results], {k: values[k] for k in self._passed_on if k in values}

    @cached_property
    def _passed_on(self) -> set[int]:
        """Slots between parts, whose values derivatives start from."""
        read = {slot for part in self._parts for slot in part.inputs}
        made = {slot for part in self._parts for slot in part.outputs if not read.isdisjoint(part.outputs)}
        return made - {slot for part in self._parts if not part.function.lasting for slot in part.outputs}

    def run_batch(self, x: Arrays, marks: Sequence[bool], size: int) -> Sequence[Any]:
        if any(None in (*part.function.inputs, *part.function.outputs) for part in self._parts):
            return super().run_batch(x, marks, size)  # an object of another package has no axis
        values = self._fixed | dict(zip(self._sources, x, strict=True))
        wide = {slot for slot, marked in zip(self._sources, marks, strict=True) if marked}
        for part in self._parts:
            function, given, which = part.function, _given(values, part), [slot in wide for slot in part.inputs]
            if any(which):
                _put(values, part, function.run_batch(given, which, size))
                wide.update(part.outputs)
            else:
                _put(values, part, function.run(given))
        return [
            _repeated(values[slot], size) if slot in values and slot not in wide else values.get(slot)
            for slot in self._results
        ]

    def _tangent(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> HostFunction:
        return self._pushed(ins, outs, ())

    def dual(self, ins: tuple[int, ...]) -> HostFunction:
        everything = tuple(range(len(self.outputs)))
        return self.once(("dual", ins), lambda: self._pushed(ins, self.differentiable, everything))

    def _pushed(self, ins: tuple[int, ...], outs: tuple[int, ...], values: tuple[int, ...]) -> HostFunction:
        """The function that gives the results ``values`` and the tangents of ``outs``."""
        fresh = itertools.count(self._free)
        tangents = {self._sources[i]: next(fresh) for i in ins}
        sources = [*self._sources, *tangents.values()]
        parts, origins = [], {}
        for part in self._parts:
            parts.append(part)
            function, inputs, outputs = part
            through = tuple([i for i in function.active if inputs[i] in tangents])
            if through:
                given = (*inputs, *[tangents[inputs[i]] for i in through])
                taken = tuple([tangents.setdefault(outputs[k], next(fresh)) for k in function.differentiable])
                parts.append(pushed := Part(function.tangent(through), given, taken))
                origins[pushed] = part, function.dual(through)
        results = [self._results[k] for k in values]
        results += [tangents.get(self._results[k], next(fresh)) for k in outs]
        parts = _fused(_needed(parts, results), origins)
        seeds, avals = [self.inputs[i] for i in ins], [self.outputs[k] for k in (*values, *outs)]
        return self._derived_by(parts, sources, results, seeds, avals, "tangent")

    def _adjoint(self, ins: tuple[int, ...], outs: tuple[int, ...]) -> HostFunction:
        parts, cotangents, results, _ = self._pulled(ins, outs)
        seeds, avals = [self.outputs[k] for k in outs], [self.inputs[i] for i in ins]
        return self._derived_by(parts, [*self._sources, *cotangents], results, seeds, avals, "adjoint")

    def with_gradient(self, ins: tuple[int, ...], out: int) -> HostFunction:
        """Return ``(*x) -> (*y, *g)`` with the gradient ``g`` of a result that is a number."""
        parts, (seed,), gradient, origins = self._pulled(ins, (out,))
        results = [*self._results, *gradient]
        parts = _fused(_needed(parts, results), origins)
        avals = [*self.outputs, *[self.inputs[i] for i in ins]]
        fixed = self._fixed | {seed: np.ones((), self.outputs[out].dtype)}
        name = f"{self.name} with its gradient"
        return Composition(parts, self._sources, results, self.inputs, avals, self.active, name, fixed)

    def _pulled(
        self, ins: tuple[int, ...], outs: tuple[int, ...]
    ) -> tuple[list[Part], list[int], list[int], dict[Part, tuple[Part, HostFunction | None]]]:
        """The parts of function and adjoint, slots of cotangents and of what they become, and which parts can be one."""
        fresh = itertools.count(self._free)
        cotangents = {self._results[k]: next(fresh) for k in outs}
        seeds = list(cotangents.values())
        parts, varied, origins = list(self._parts), self._varied(ins), {}
        for part in reversed(self._parts):
            function, inputs, outputs = part
            seeded = tuple([k for k in function.differentiable if outputs[k] in cotangents])
            through = tuple([i for i in function.active if inputs[i] in varied])
            if seeded and through:
                given = (*inputs, *[cotangents[outputs[k]] for k in seeded])
                taken = tuple([cotangents.setdefault(inputs[i], next(fresh)) for i in through])
                parts.append(pulled := Part(function.adjoint(through, seeded), given, taken))
                origins[pulled] = part, function.with_adjoint(through, seeded)
        return parts, seeds, [cotangents.get(self._sources[i], next(fresh)) for i in ins], origins

    def _varied(self, ins: Sequence[int]) -> set[int]:
        """The slots that depend on some of the arguments."""
        varied = {self._sources[i] for i in ins}
        for function, inputs, outputs in self._parts:
            if any(inputs[i] in varied for i in function.active):
                varied.update([outputs[k] for k in function.differentiable])
        return varied

    def _derived_by(
        self,
        parts: Sequence[Part],
        sources: Sequence[int],
        results: Sequence[int],
        seeds: Sequence[Aval],
        avals: Sequence[Aval],
        kind: str,
    ) -> "Composition":
        n = len(self.inputs)
        active = (*self.active, *range(n, n + len(seeds)))
        inputs = [*self.inputs, *seeds]
        return Composition(parts, sources, results, inputs, avals, active, f"{kind} of {self.name}", self._fixed)


def _given(values: dict[int, Any], part: Part) -> Arrays:
    """The arguments of a part; a slot that nothing was put into is zero."""
    avals = part.function.inputs
    return tuple(
        [
            values.get(slot) if slot in values or aval is None else np.zeros(*aval)
            for slot, aval in zip(part.inputs, avals, strict=True)
        ]
    )


def _put(values: dict[int, Any], part: Part, results: Sequence[Any], known: Collection[int] = ()) -> None:
    for slot, value in zip(part.outputs, results, strict=True):
        if value is not None and slot not in known:
            values[slot] = accumulated(values.get(slot), value)


def _repeated(value: Any, size: int) -> np.ndarray:
    data = as_numpy(value)
    return np.broadcast_to(data, (size, *data.shape))


def _needed(parts: Sequence[Part], results: Sequence[int]) -> list[Part]:
    """The parts that results depend on."""
    needed, kept = set(results), []
    for part in reversed(parts):
        if not needed.isdisjoint(part.outputs):
            needed.update(part.inputs)
            kept.append(part)
    return kept[::-1]


def _fused(parts: Sequence[Part], origins: dict[Part, tuple[Part, HostFunction | None]]) -> list[Part]:
    """Values and derivatives in one call where both are needed, one after the other."""
    fused: list[Part] = []
    for part in parts:
        origin, both = origins.get(part, (None, None))
        if origin is not None and both is not None and fused and fused[-1] is origin:
            fused[-1] = Part(both, part.inputs, (*origin.outputs, *part.outputs))
        else:
            fused.append(part)
    return fused


def with_gradient(function: HostFunction, ins: tuple[int, ...]) -> HostFunction | None:
    """Return ``(*x) -> (*y, *g)``: results, and the gradient of the only one that passes a derivative, a real number.

    Args:
        function: the function.
        ins: positions of the arguments to differentiate by.

    Returns:
        The function of both; None if several results pass a derivative, or one that is no real number.
    """
    avals = [function.outputs[k] for k in function.differentiable]
    if not ins or len(avals) != 1 or avals[0].shape or avals[0].dtype.kind != "f":
        return None
    out = function.differentiable[0]
    return function.once(("gradient", ins), lambda: _composition(function).with_gradient(ins, out))


def _composition(function: HostFunction) -> Composition:
    if isinstance(function, Composition):
        return function
    n, m = len(function.inputs), len(function.outputs)
    part = Part(function, tuple(range(n)), tuple(range(n, n + m)))
    return Composition([part], *part[1:], function.inputs, function.outputs, function.active)
