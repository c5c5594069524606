"""Several functions of an engine as one: calls over numbered slots."""

import itertools
import operator
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any

from pyadjoint_utils.engine import Arrays, Aval, Engine, Work
from pyadjoint_utils.rules import Rules

_LISTED = 6  # how many names a description lists


class Row:
    """Row ``k`` of an array in which a loop has collected its results."""

    __slots__ = ("k", "stack")

    def __init__(self, stack: Any, k: int) -> None:
        self.stack, self.k = stack, k


class Values(dict[int, Any]):
    """The arrays of a fused function that runs, by slot; what a loop collected is taken apart where rows are needed."""

    def __init__(self, engine: Engine, *args: Any) -> None:
        super().__init__(*args)
        self.engine = engine

    def one(self, slot: int) -> Any:
        """Return the array of a slot."""
        value = self[slot]
        return self.part(value.stack, value.k) if type(value) is Row else value

    def stacked(self, slots: Sequence[int]) -> Any:
        """Return the arrays of several slots along a leading axis; what a loop collected in this order stays as it is."""
        found = [self[slot] for slot in slots]
        first = found[0]
        if type(first) is Row and all(
            type(v) is Row and v.stack is first.stack and v.k == first.k + i for i, v in enumerate(found)
        ):
            whole = first.k == 0 and first.stack.shape[0] == len(found)
            return first.stack if whole else self.part(first.stack, slice(first.k, first.k + len(found)))
        return self._function("stack")([self.one(slot) for slot in slots])

    def part(self, array: Any, index: Any) -> Any:
        """Return ``array[index]``."""
        return self._function("getitem")(array, index)

    def folded(self, array: Any, outer: int, inner: int) -> Any:
        """Return an array with its leading axis split into two."""
        return self.reshaped(array, (outer, inner, *array.shape[1:]))

    def unfolded(self, array: Any, length: int) -> Any:
        """Return an array with its two leading axes made one."""
        return self.reshaped(array, (length, *array.shape[2:]))

    def reshaped(self, array: Any, shape: tuple[int, ...]) -> Any:
        """Return an array in another shape."""
        return self._function("reshape")(array, shape)

    def moved(self, array: Any, axis: int, to: int) -> Any:
        """Return an array with an axis in another place."""
        return self._function("moveaxis")(array, axis, to)

    def joined(self, a: Any, b: Any) -> Any:
        """Return two arrays one after the other along their leading axis."""
        return self._function("concatenate")([a, b])

    def _function(self, name: str) -> Callable[..., Any]:
        return _function(self.engine, name)


class Call:
    """A function's place in a fused function.

    Args:
        rules: the function.
        inputs: slots of its dependencies and its constants.
        outputs: slots of its results.
        stops: positions of inputs through which no derivative passes although there is one.
        casts: positions of inputs that come in another dtype than the function was recorded with.
    """

    def __init__(
        self,
        rules: Rules,
        inputs: Sequence[int],
        outputs: Sequence[int],
        stops: Sequence[int] = (),
        casts: Sequence[int] = (),
    ) -> None:
        self.rules, self.inputs, self.outputs = rules, tuple(inputs), tuple(outputs)
        self.stops, self.casts = tuple(stops), tuple(casts)
        self.key: Hashable = (rules, self.stops, self.casts, len(self.inputs))

    blocks, loops = 1, 0

    @property
    def work(self) -> Work:
        """What there is to compile."""
        return self.rules.work

    @property
    def avals(self) -> tuple[Aval, ...]:
        """Shapes and dtypes of the outputs."""
        return self.rules.outputs

    def members(self) -> list["Call"]:
        """Return itself, as a loop returns the calls of its body."""
        return [self]

    def at(self, inputs: Sequence[int], outputs: Sequence[int]) -> "Call":
        """Return the same call on other slots."""
        return Call(self.rules, inputs, outputs, self.stops, self.casts)

    def run(self, values: Values) -> None:
        """Compute the outputs."""
        arrays = tuple([values.one(slot) for slot in self.inputs])
        values.update(zip(self.outputs, self.function(values.engine)(arrays), strict=True))

    def function(self, engine: Engine) -> Callable[[Arrays], Arrays]:
        """Return it as a flat function of what is in its inputs."""
        rules = self.rules
        inner = engine.inlined(rules.function, (*rules.inputs, *rules.outputs))
        if not self.stops and not self.casts:
            return inner

        def adapted(leaves: Arrays) -> Arrays:
            arrays = list(leaves)
            for i in self.stops:
                arrays[i] = engine.stop(arrays[i])
            for i in self.casts:
                arrays[i] = _function(engine, "astype")(arrays[i], rules.inputs[i].dtype)
            return inner(tuple(arrays))

        return adapted

    def __str__(self) -> str:
        return self.rules.name


class Fused:
    """A function that consists of calls.

    Args:
        calls: the calls, :class:`Call` or a loop, in an order in which they can run.
        arguments: the slots that are given.
        results: the slots that are returned.
    """

    def __init__(self, calls: Sequence[Any], arguments: Sequence[int], results: Sequence[int]) -> None:
        self.calls, self.arguments, self.results = list(calls), tuple(arguments), tuple(results)
        self.key = self._key()

    def _key(self) -> Hashable:
        """What two of them have in common if they are the same function."""
        numbers: dict[int, int] = {}

        def numbered(slots: Sequence[int]) -> tuple[int, ...]:
            return tuple([numbers.setdefault(slot, len(numbers)) for slot in slots])

        arguments = numbered(self.arguments)
        calls = tuple([(call.key, numbered(call.inputs), numbered(call.outputs)) for call in self.calls])
        return arguments, calls, numbered(self.results)

    def function(self, engine: Engine) -> Callable[[Arrays], Arrays]:
        """Return it as a flat function of an engine."""
        if not self.loops:
            return self._straight(engine)

        def composed(leaves: Arrays) -> Arrays:
            values = Values(engine, zip(self.arguments, leaves, strict=True))
            for call in self.calls:
                call.run(values)
            return tuple([values.one(slot) for slot in self.results])

        return composed

    def _straight(self, engine: Engine) -> Callable[[Arrays], Arrays]:
        """The calls one after the other, at the least cost for each; what no other one takes is let go."""
        ending: list[list[int]] = []
        later = set(self.results)
        for call in reversed(self.calls):
            ending.append([slot for slot in {*call.inputs, *call.outputs} if slot not in later])
            later.update(call.inputs)
        steps = [
            (call.function(engine), _getter(call.inputs), call.outputs, over)
            for call, over in zip(self.calls, reversed(ending), strict=True)
        ]

        def composed(leaves: Arrays) -> Arrays:
            values = dict(zip(self.arguments, leaves, strict=True))
            for function, inputs, outputs, over in steps:
                results = function(inputs(values))
                if len(outputs) == 1:
                    (values[outputs[0]],) = results
                else:
                    values.update(zip(outputs, results, strict=True))
                for slot in over:
                    del values[slot]
            return tuple([values[slot] for slot in self.results])

        return composed

    def members(self) -> list[Call]:
        """Return the calls in here and in loops, each once for a loop."""
        return [member for call in self.calls for member in call.members()]

    @property
    def blocks(self) -> int:
        """How many Blocks of the tape it stands for."""
        return sum(call.blocks for call in self.calls)

    @property
    def loops(self) -> int:
        """How many loops there are, those inside of others counted too."""
        return sum(call.loops for call in self.calls)

    @cached_property
    def work(self) -> Work:
        """What there is to compile; operations move entries one after the other only outside or inside of a loop."""
        works = [call.work for call in self.calls]
        straight = sum(call.work.shifts for call in self.calls if isinstance(call, Call))
        return Work(sum(w.operations for w in works), max([straight, *[w.shifts for w in works]]))

    def __str__(self) -> str:
        return _listed(self.calls)


def _getter(slots: Sequence[int]) -> Callable[[dict[int, Any]], Arrays]:
    """What returns the values of slots as a tuple."""
    if len(slots) == 1:
        (slot,) = slots
        return lambda values: (values[slot],)
    return operator.itemgetter(*slots) if slots else lambda values: ()


def _function(engine: Engine, name: str) -> Callable[..., Any]:
    function = engine.function(name)
    if function is None:
        raise NotImplementedError(f"The engine {engine.name!r} merges Blocks, but has no function {name!r}.")
    return function


def _listed(calls: Sequence[Any]) -> str:
    """The names of calls with those that follow each other counted; where it gets long, loops alone from the middle."""
    parts = [(name, list(same)) for name, same in itertools.groupby(calls, key=str)]
    texts = [name if len(same) == 1 else f"{len(same)} x {name}" for name, same in parts]
    first, last = (_LISTED - 1, len(parts) - 1) if len(parts) > _LISTED else (len(parts), len(parts))
    shown = [k < first or k >= last or same[0].loops > 0 for k, (_, same) in enumerate(parts)]
    return ", ".join(
        text if here else "..."
        for k, (text, here) in enumerate(zip(texts, shown, strict=True))
        if here or shown[k - 1]  # one "..." for a gap
    )
