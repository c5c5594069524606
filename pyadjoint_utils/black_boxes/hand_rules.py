"""Rules of derivatives that a user wrote, between the containers that they see and flat lists of arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pyadjoint.overloaded_type import OverloadedType
from pyadjoint.tape import stop_annotating

from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.captures import check_captures
from pyadjoint_utils.engine import Engine
from pyadjoint_utils.errors import ArgumentValueError, NotDifferentiableError

Leaves = Sequence[Any]


class HandRules:
    """Those of ``jvp``, ``vjp`` and ``hvp`` that were given.

    Args:
        engine: the engine that flattens containers.
        rules: the functions by name.
        argnums: positions that pass a derivative, or None for all.
        name: the name of the function that they belong to.
    """

    def __init__(
        self, engine: Engine, rules: dict[str, Callable[..., Any]], argnums: Sequence[int] | None, name: str
    ) -> None:
        self._engine, self._rules, self._argnums, self._name = engine, rules, argnums, name
        self._looked_at: set[str] = set()

    def __contains__(self, kind: str) -> bool:
        return kind in self._rules

    def jvp(self, point: Any, ins: Sequence[int], leaves: Leaves, dx: Leaves) -> list[Any]:
        """Tangents of the differentiable outputs; taped if the leaves or directions are."""
        self._refuse_keywords("jvp", point, ins)
        result = self._call("jvp", point, leaves, self._tangents(point, ins, dx))
        try:
            found = point.signature.structure.flatten_up_to(result)
        except (ValueError, TypeError) as error:
            raise ArgumentValueError(
                f"{self._name}: its jvp returned {self._described(result)}, but the function returns "
                f"{self._engine.unflatten(point.signature.structure, list(map(_Word, point.outputs)))}. Return tangents in "
                "the outputs' containers."
            ) from error
        return [self._fits("jvp", f"output {k}", found[k], point.outputs[k]) for k in point.differentiable]

    def vjp(self, point: Any, ins: Sequence[int], outs: Sequence[int], leaves: Leaves, yb: Leaves) -> list[Any]:
        """Cotangents of the leaves ``ins``; taped if the leaves or cotangents are."""
        self._refuse_keywords("vjp", point, ins)
        return self._of_arguments(
            "vjp", point, ins, self._call("vjp", point, leaves, self._cotangents(point, outs, yb))
        )

    def hvp(
        self, point: Any, ins: Sequence[int], outs: Sequence[int], leaves: Leaves, dx: Leaves, yb: Leaves, dyb: Leaves
    ) -> list[Any]:
        """The derivative of the VJP for the leaves ``ins``."""
        self._refuse_keywords("hvp", point, ins)
        seeds = (self._tangents(point, ins, dx), self._cotangents(point, outs, yb), self._cotangents(point, outs, dyb))
        return self._of_arguments("hvp", point, ins, self._call("hvp", point, leaves, *seeds))

    def _call(self, kind: str, point: Any, leaves: Leaves, *seeds: Any) -> Any:
        if kind not in self._looked_at:
            check_captures(self._rules[kind], f"The {kind} of {self._name}")
            self._looked_at.add(kind)
        primals, keywords = self._engine.unflatten(point.structure, list(map(_handed, leaves)))
        if any(isinstance(leaf, OverloadedType) for leaf in leaves) and annotate_tape():
            return self._rules[kind](primals, *seeds, **keywords)
        with stop_annotating():
            return self._rules[kind](primals, *seeds, **keywords)

    def _tangents(self, point: Any, ins: Sequence[int], dx: Leaves) -> Any:
        tangents = [_zero(leaf) for leaf in point.leaves]
        for i, value in zip(ins, dx, strict=True):
            tangents[i] = _handed(value)
        return self._engine.unflatten(point.structure, tangents)[0]

    def _cotangents(self, point: Any, outs: Sequence[int], yb: Leaves) -> Any:
        found = dict(zip(outs, yb, strict=True))
        cotangents = [
            (_handed(found[k]) if k in found else np.zeros(*aval)) if aval.differentiable else None
            for k, aval in enumerate(point.outputs)
        ]
        return self._engine.unflatten(point.signature.structure, cotangents)

    # What comes back ---------------------------------------------------------------------------------------------------

    def _refuse_keywords(self, kind: str, point: Any, ins: Sequence[int]) -> None:
        primals, _ = self._engine.unflatten(point.structure, point.leaves)
        if any(i >= len(self._engine.flatten(primals)[0]) for i in ins):
            raise NotDifferentiableError(
                f"{self._name}: a keyword-only argument is to pass a derivative, but its {kind} speaks of positional ones. "
                "Make it a positional parameter, or name the others in argnums=."
            )

    def _of_arguments(self, kind: str, point: Any, ins: Sequence[int], result: Any) -> list[Any]:
        """Sort what a rule returned, one entry per argument, by leaves."""
        primals, _ = self._engine.unflatten(point.structure, point.leaves)
        everything = tuple(range(len(primals)))
        chosen = everything if self._argnums is None else tuple([everything[k] for k in self._argnums])
        found = None
        for positions in (everything, chosen):
            if found is None and isinstance(result, tuple) and len(result) == len(positions):
                found = self._sorted(primals, dict(zip(positions, result, strict=True)))
        if found is None and len(chosen) == 1 and isinstance(result, tuple) <= isinstance(primals[chosen[0]], tuple):
            found = self._sorted(primals, {chosen[0]: result})
        if found is None:
            raise ArgumentValueError(
                f"{self._name}: its {kind} returned {self._described(result)}; expected a tuple with one entry for each of "
                f"the {len(chosen)} {'' if self._argnums is None else 'differentiated '}argument(s), in the containers of "
                f"{self._described(tuple([primals[k] for k in chosen]))}."
            )
        return [self._fits(kind, f"leaf {i} of the arguments", found[i], point.leaves[i]) for i in ins]

    def _sorted(self, primals: tuple[Any, ...], entries: dict[int, Any]) -> list[Any] | None:
        leaves: list[Any] = []
        for k, argument in enumerate(primals):
            parts, structure = self._engine.flatten(argument)
            entry = entries.get(k)
            if entry is None:
                leaves += [None] * len(parts)
                continue
            try:
                leaves += structure.flatten_up_to(entry)
            except (ValueError, TypeError):
                return None
        return leaves

    def _fits(self, kind: str, what: str, value: Any, like: Any) -> Any:
        shape = None if value is None else tuple(getattr(value, "shape", np.shape(value)))
        if shape != tuple(like.shape):
            raise ArgumentValueError(
                f"{self._name}: its {kind} returned {self._described(value)} for {what}; expected shape {tuple(like.shape)}"
                f"{' (zeros where there is no dependence)' if value is None else ''}."
            )
        return value

    def _described(self, tree: Any) -> str:
        leaves, structure = self._engine.flatten(tree)
        return str(self._engine.unflatten(structure, [_Word(leaf) for leaf in leaves]))


class _Word:
    """Prints as the dtype and shape of an array."""

    def __init__(self, leaf: Any) -> None:
        self._leaf = leaf

    def __repr__(self) -> str:
        shape = getattr(self._leaf, "shape", None)
        if shape is None:
            return type(self._leaf).__name__
        return f"{self._leaf.dtype}[{','.join(map(str, shape))}]"


def _handed(leaf: Any) -> Any:
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf


def _zero(leaf: Any) -> Any:
    """The tangent of what does not move; None for what cannot."""
    if isinstance(leaf, np.ndarray):
        return np.zeros_like(leaf) if leaf.dtype.kind in "fcV" else None
    return type(leaf)(0) if isinstance(leaf, (float, complex)) else None
