"""A custom rule, or a Block of another package, as a function outside of its caller: two derivatives and no third."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pyadjoint_utils.engine import Arrays, Aval
from pyadjoint_utils.errors import NotDifferentiableError
from pyadjoint_utils.inside.host_function import HostFunction, as_numpy
from pyadjoint_utils.transforming.rule_block import RuleBlock

Values = Sequence[Any]
Seeds = dict[int, Any]  # by position
Where = tuple[int, ...]


class OpaqueFunction(HostFunction):
    """A step of a program that is known by its value, tangent, adjoint and second adjoint alone.

    Args:
        step: the step.
        inputs: shape and dtype of its arguments.
        outputs: shape and dtype of its results.
    """

    lasting = False  # other packages write into their objects

    def __init__(self, step: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        block = step.block
        name = f"The custom rule of {block.rules}" if isinstance(block, RuleBlock) else type(block).__name__
        super().__init__(name, inputs, outputs, step.active)
        self.differentiable = tuple(step.differentiable)
        self._step = step
        self._last: Arrays = ()

    def _point(self, x: Values) -> Arrays:
        """The arguments in memory of their own; the very same objects as before if the numbers are the same.

        The step evaluates only where it does not stand yet, and may keep what it is given.
        """
        last = self._last
        if len(last) == len(x) and all(a is b or _same(a, b) for a, b in zip(x, last, strict=True)):
            return last
        self._last = point = tuple([np.array(a) if isinstance(a, np.ndarray) else a for a in x])
        return point

    def run(self, x: Arrays) -> Values:
        return self._step.value(self._point(x))

    def push(self, x: Values, dx: Seeds, outs: Where) -> list[Any]:
        """Tangents of the results ``outs`` for those of some arguments."""
        tangents = self._step.jvp(self._point(x), _spread(dx, len(self.inputs)))
        return [tangents[k] for k in outs]

    def pull(self, x: Values, yb: Seeds, ins: Where) -> list[Any]:
        """Cotangents of the arguments ``ins`` for those of some results."""
        cotangents = self._step.vjp(self._point(x), _spread(yb, len(self.outputs)), ins)
        return [cotangents[i] for i in ins]

    def bend(self, x: Values, yb: Seeds, dx: Seeds, dyb: Seeds, ins: Where) -> list[Any]:
        """Derivative of :meth:`pull` along ``dx`` and ``dyb``."""
        n, m = len(self.inputs), len(self.outputs)
        _, second = self._step.hvp(self._point(x), _spread(yb, m), _spread(dx, n), _spread(dyb, m), ins)
        return [second[i] for i in ins]

    def _tangent(self, ins: Where, outs: Where) -> HostFunction:
        return _Tangent(self, ins, outs)

    def _adjoint(self, ins: Where, outs: Where) -> HostFunction:
        return _Adjoint(self, ins, outs)


class _First(HostFunction):
    """A first derivative of an opaque function, between some arguments and some results of it."""

    lasting = False

    def __init__(self, base: OpaqueFunction, ins: Where, outs: Where, kind: str) -> None:
        directions, tangents = [base.inputs[i] for i in ins], [base.outputs[k] for k in outs]
        seeds, results = (tangents, directions) if kind == "adjoint" else (directions, tangents)
        self.n = n = len(base.inputs)
        active = [*base.active, *range(n, n + len(seeds))]
        super().__init__(f"{kind} of {base.name}", [*base.inputs, *seeds], results, active)
        self.base, self.ins, self.outs = base, ins, outs
        self.seeded, self.taken = (outs, ins) if kind == "adjoint" else (ins, outs)

    def split(self, x: Values) -> tuple[Values, Seeds]:
        """The point, and the seeds by the position of what they belong to."""
        return x[: self.n], dict(zip(self.seeded, x[self.n :], strict=True))

    def sorted_by(self, ins: Where) -> tuple[Where, Where, Where]:
        """Positions that are part of the point, positions among the seeds, and what these belong to."""
        seeds = tuple([i for i in ins if i >= self.n])
        return tuple([i for i in ins if i < self.n]), seeds, tuple([self.seeded[i - self.n] for i in seeds])

    def push(self, x: Values, dx: Seeds, ins: Where, outs: Where) -> list[Any]:
        """Tangents of the results ``outs`` along the arguments ``ins``."""
        raise NotImplementedError

    def pull(self, x: Values, yb: Seeds, ins: Where, outs: Where) -> list[Any]:
        """Cotangents of the arguments ``ins``."""
        raise NotImplementedError

    def _tangent(self, ins: Where, outs: Where) -> HostFunction:
        return _Second(self, ins, outs, "tangent")

    def _adjoint(self, ins: Where, outs: Where) -> HostFunction:
        return _Second(self, ins, outs, "adjoint")


class _Tangent(_First):
    """``(*x, *dx) -> dy``."""

    def __init__(self, base: OpaqueFunction, ins: Where, outs: Where) -> None:
        super().__init__(base, ins, outs, "tangent")

    def run(self, x: Arrays) -> Values:
        point, dx = self.split(x)
        return self.base.push(point, dx, self.outs)

    def push(self, x: Values, dx: Seeds, ins: Where, outs: Where) -> list[Any]:
        point, directions = self.split(x)
        moved, seeds, owners = self.sorted_by(ins)
        wanted = tuple([self.outs[k] for k in outs])
        results: list[Any] = [None] * len(wanted)
        if seeds:
            results = self.base.push(point, dict(zip(owners, [dx[i] for i in seeds], strict=True)), wanted)
        if moved:
            along = {i: dx[i] for i in moved}
            results = [_sum(y, self._second(point, k, directions, along)) for y, k in zip(results, wanted, strict=True)]
        return results

    def _second(self, x: Values, k: int, directions: Seeds, along: Seeds) -> np.ndarray:
        """``D^2 y_k [directions, along]``, entry by entry: ``<e, D^2 y [a, b]> = <b, d/da J^H e>``."""
        aval = self.base.outputs[k]
        result = np.zeros(*aval)
        for index, unit in _basis(aval):
            seed = np.zeros(*aval)
            seed[index] = unit
            bent = self.base.bend(x, {k: seed}, directions, {}, tuple(along))
            result[index] += unit * sum(
                [_inner(b, direction) for b, direction in zip(bent, along.values(), strict=True) if b is not None]
            )
        return result

    def pull(self, x: Values, yb: Seeds, ins: Where, outs: Where) -> list[Any]:
        point, directions = self.split(x)
        moved, seeds, owners = self.sorted_by(ins)
        given = {self.outs[k]: value for k, value in yb.items()}
        bent = self.base.bend(point, given, directions, {}, moved) if moved else []
        return [*bent, *(self.base.pull(point, given, owners) if seeds else [])]


class _Adjoint(_First):
    """``(*x, *yb) -> xb``."""

    def __init__(self, base: OpaqueFunction, ins: Where, outs: Where) -> None:
        super().__init__(base, ins, outs, "adjoint")

    def run(self, x: Arrays) -> Values:
        point, yb = self.split(x)
        return self.base.pull(point, yb, self.ins)

    def push(self, x: Values, dx: Seeds, ins: Where, outs: Where) -> list[Any]:
        point, yb = self.split(x)
        moved, seeds, owners = self.sorted_by(ins)
        dyb = dict(zip(owners, [dx[i] for i in seeds], strict=True))
        wanted = tuple([self.ins[k] for k in outs])
        if not moved:
            return self.base.pull(point, dyb, wanted)
        return self.base.bend(point, yb, {i: dx[i] for i in moved}, dyb, wanted)

    def pull(self, x: Values, yb: Seeds, ins: Where, outs: Where) -> list[Any]:
        # With w in the place of xb: Re<w, J^H yb> = Re<J w, yb>, whose gradient in x is the symmetric Hessian times w.
        point, seeds_of_outputs = self.split(x)
        moved, seeds, owners = self.sorted_by(ins)
        w = {self.ins[k]: value for k, value in yb.items()}
        bent = self.base.bend(point, seeds_of_outputs, w, {}, moved) if moved else []
        return [*bent, *(self.base.push(point, w, owners) if seeds else [])]


class _Second(HostFunction):
    """The derivative of a first derivative, between some arguments and some results of it; there is no further one."""

    lasting = False

    def __init__(self, first: _First, ins: Where, outs: Where, kind: str) -> None:
        directions, tangents = [first.inputs[i] for i in ins], [first.outputs[k] for k in outs]
        transposed = kind == "adjoint"
        seeds, results = (tangents, directions) if transposed else (directions, tangents)
        self._n = n = len(first.inputs)
        active = [*first.active, *range(n, n + len(seeds))]
        super().__init__(f"{kind} of the {first.name}", [*first.inputs, *seeds], results, active)
        self._first, self._ins, self._outs = first, ins, outs
        self._evaluate: Any
        self._evaluate, self._seeded = (first.pull, outs) if transposed else (first.push, ins)

    def run(self, x: Arrays) -> Values:
        seeds = dict(zip(self._seeded, x[self._n :], strict=True))
        return self._evaluate(x[: self._n], seeds, self._ins, self._outs)

    def _tangent(self, ins: Where, outs: Where) -> HostFunction:
        raise self._third()

    def _adjoint(self, ins: Where, outs: Where) -> HostFunction:
        raise self._third()

    def _third(self) -> NotDifferentiableError:
        return NotDifferentiableError(
            f"{self._first.base.name} has first and second derivatives, and a third one was asked for (the gradient of a "
            "function of its Hessian, or the Hessian of a function of its gradient). Custom rules and Blocks of other "
            "packages have none inside of an engine; write it for one (overload_jax, overload_torch, ...) to go further."
        )


def _spread(values: Seeds, n: int) -> list[Any]:
    return [values.get(k) for k in range(n)]


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)


def _sum(a: Any, b: Any) -> Any:
    return b if a is None else as_numpy(a) + b


def _inner(a: Any, b: Any) -> float:
    return float(np.vdot(as_numpy(a), as_numpy(b)).real)


def _basis(aval: Aval) -> Iterator[tuple[Any, complex]]:
    units = (1.0, 1.0j) if aval.dtype.kind == "c" else (1.0,)
    return ((index, unit) for index in np.ndindex(aval.shape) for unit in units)
