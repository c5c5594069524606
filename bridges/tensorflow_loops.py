"""Loops in TensorFlow's graphs: one operation for many turns, whose derivatives are such loops again.

    y[k + 1] = turn(y[k])            from the first turn to the last; the states y[k] are kept if somebody differentiates
    yb[k] = J(y[k])^H yb[k + 1]      from the last turn to the first; each turn is computed again from its state

The second line is made with the function that makes the first, so that it can be differentiated in turn. TensorFlow's own
gradient of a loop keeps every intermediate value, and takes time that grows with the square of the number of turns where
rows are read or results collected.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from pyadjoint_utils.engine import Arrays

Turn = Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]]

# A turn of a loop costs about as much as ten small operations, so that several turns are done at once. Tracing takes
# longer the more there are.
_AT_ONCE = 32
_FREE = {"Placeholder", "Const", "Identity"}
_LOOPS = {"While", "StatelessWhile"}


class _Tapes(threading.local):
    """How many gradient tapes record at this place of a graph, and whether it is inside of a loop."""

    def __init__(self) -> None:
        self.open, self.in_loop = 0, False


_tapes = _Tapes()


@contextlib.contextmanager
def _inside_of_a_loop() -> Iterator[None]:
    # A loop is differentiated by the rules below: nothing outside of it records what happens in it.
    before = _tapes.open, _tapes.in_loop
    _tapes.open, _tapes.in_loop = 0, True
    try:
        yield
    finally:
        _tapes.open, _tapes.in_loop = before


@contextlib.contextmanager
def recording(**options: Any) -> Iterator[Any]:
    """Open a gradient tape; loops under it keep what their derivatives need."""
    _tapes.open += 1
    try:
        with tf.GradientTape(**options) as tape:
            yield tape
    finally:
        _tapes.open -= 1


def loop(turn: Turn, carry: Arrays, constants: Arrays, rows: Arrays, length: int) -> tuple[Arrays, Arrays]:
    """Run a turn many times; see :meth:`pyadjoint_utils.Engine.loop`. One of few operations becomes no loop."""
    size, specs = _measured(turn, carry, constants, rows)
    whole = length // size
    if whole < 2:
        return _straight(turn, carry, constants, [tf.unstack(row, length) for row in rows], length)

    def turns(carry: Arrays, constants: Arrays, chunks: Arrays) -> tuple[Arrays, Arrays]:
        return _straight(turn, carry, constants, [tf.unstack(chunk, size) for chunk in chunks], size)

    covered = whole * size
    folded = tuple([tf.reshape(row[:covered], (whole, size, *row.shape[1:])) for row in rows])
    specs = [tf.TensorSpec((size, *spec.shape), spec.dtype) for spec in specs]
    carry, collected = _repeated(turns, carry, constants, folded, specs, whole, backward=False)
    collected = tuple([tf.reshape(y, (covered, *y.shape[2:])) for y in collected])
    if covered == length:
        return carry, collected
    rest = [tf.unstack(row[covered:], length - covered) for row in rows]
    carry, others = _straight(turn, carry, constants, rest, length - covered)
    return carry, tuple([tf.concat([a, b], 0) for a, b in zip(collected, others, strict=True)])


def _measured(turn: Turn, carry: Arrays, constants: Arrays, rows: Arrays) -> tuple[int, list[Any]]:
    """How many turns to do at once, and what one of them collects."""
    parts = carry, constants, tuple([row[0] for row in rows])
    specs = [tuple([tf.TensorSpec(a.shape, a.dtype) for a in part]) for part in parts]
    with _inside_of_a_loop():
        traced = tf.function(lambda *parts: turn(*parts), autograph=False).get_concrete_function(*specs)
    operations = [op.type for op in traced.graph.get_operations() if op.type not in _FREE]
    size = max(1, _AT_ONCE // max(1, len(operations))) if _LOOPS.isdisjoint(operations) else 1
    return size, list(traced.structured_outputs[1])


def _straight(
    turn: Turn, carry: Arrays, constants: Arrays, rows: Sequence[Sequence[Any]], length: int
) -> tuple[Arrays, Arrays]:
    """Turns one after the other, without a loop; each row as a list."""
    collected = []
    for k in range(length):
        carry, y = turn(carry, constants, tuple([row[k] for row in rows]))
        collected.append(y)
    return carry, tuple([tf.stack(y) for y in zip(*collected, strict=True)])


def _repeated(
    turn: Turn, carry: Arrays, constants: Arrays, rows: Arrays, specs: Sequence[Any], length: int, *, backward: bool
) -> tuple[Arrays, Arrays]:
    """A loop that is differentiated as the module says; ``specs`` are shapes and dtypes of what a turn collects."""
    if not _tapes.open:
        return _run(turn, carry, constants, rows, specs, length, backward)
    n, m, kept = len(carry), len(constants), [tf.TensorSpec(a.shape, a.dtype) for a in carry]

    def keeping(carry: Arrays, constants: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        new, y = turn(carry, constants, row)
        return new, (*carry, *y)

    @tf.custom_gradient
    def apply(*arrays: Any) -> tuple[Arrays, Callable[..., Any]]:
        stopped = tuple([tf.stop_gradient(a) for a in arrays])
        last, collected = _run(
            keeping, stopped[:n], stopped[n : n + m], stopped[n + m :], [*kept, *specs], length, backward
        )

        def gradient(*seeds: Any, variables: Sequence[Any] = ()) -> Any:
            # The states as results, so that they have derivatives themselves.
            adjoint = _Adjoint(turn, results[n : 2 * n], constants, rows, seeds, length, backward)
            return (adjoint.gradients(), [None] * len(variables)) if variables else adjoint.gradients()

        return (*last, *collected), gradient

    results = apply(*carry, *constants, *rows)
    return results[:n], results[2 * n :]


class _Adjoint:
    """The adjoint of a loop.

    Args:
        turn: what is repeated.
        states: what every turn started with, stacked.
        constants, rows: what it took beside that.
        seeds: cotangents of the last carry, of the states, and of what was collected.
        length: how many turns.
        backward: whether the loop went from the last row to the first.
    """

    def __init__(
        self,
        turn: Turn,
        states: Arrays,
        constants: Arrays,
        rows: Arrays,
        seeds: Arrays,
        length: int,
        backward: bool,
    ) -> None:
        n = len(states)
        self.turn, self.length, self.backward = turn, length, backward
        self.states, self.constants, self.rows = states, constants, rows
        self.last, self.kept, self.collected = seeds[:n], seeds[n : 2 * n], seeds[2 * n :]
        self.carried = _floating(states)
        self.fed = _floating(rows)
        self.given = _floating(self.collected)
        self.shared = [k for k in _floating(constants) if not _is_fixed(constants[k])]

    def gradients(self) -> list[Any]:
        """Return a cotangent for each entry of the first carry, each constant and each row; None for integers."""
        shared = [self.constants[k] for k in self.shared]
        carry = (*_chosen(self.last, self.carried), *[tf.zeros_like(c) for c in shared])
        rows = (*self.states, *self.rows, *_chosen(self.kept, self.carried), *_chosen(self.collected, self.given))
        specs = [tf.TensorSpec(self.rows[k].shape[1:], self.rows[k].dtype) for k in self.fed]
        carry, collected = _repeated(
            self._turn_back, carry, self.constants, rows, specs, self.length, backward=not self.backward
        )
        n = len(self.carried)
        return [
            *_placed(carry[:n], self.carried, len(self.states)),
            *_placed(carry[n:], self.shared, len(self.constants)),
            *_placed(collected, self.fed, len(self.rows)),
        ]

    def _turn_back(self, carry: Arrays, constants: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        n, m, c = len(self.states), len(self.rows), len(self.carried)
        state, own_row = row[:n], row[n : n + m]
        kept, seeds = row[n + m : n + m + c], row[n + m + c :]
        with recording(watch_accessed_variables=False) as tape:
            state, by_state = _watched(tape, state, self.carried)
            constants, by_constant = _watched(tape, constants, self.shared)
            own_row, by_row = _watched(tape, own_row, self.fed)
            new, y = self.turn(state, constants, own_row)
        gradients = tape.gradient(
            [*_chosen(new, self.carried), *_chosen(y, self.given)],
            [*by_state, *by_constant, *by_row],
            output_gradients=[*carry[:c], *seeds],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        before = [a + b for a, b in zip(gradients[:c], kept, strict=True)]
        sums = [a + b for a, b in zip(carry[c:], gradients[c : len(carry)], strict=True)]
        return (*before, *sums), tuple(gradients[len(carry) :])


def _watched(tape: Any, arrays: Arrays, where: Sequence[int]) -> tuple[Arrays, list[Any]]:
    """Arrays with own tensors at some places, which the tape watches."""
    own = {k: tf.identity(arrays[k]) for k in where}
    tape.watch(list(own.values()))
    return tuple([own.get(k, a) for k, a in enumerate(arrays)]), list(own.values())


def _floating(arrays: Sequence[Any]) -> list[int]:
    return [k for k, a in enumerate(arrays) if a.dtype.is_floating or a.dtype.is_complex]


def _is_fixed(tensor: Any) -> bool:
    """Whether no tape watches a tensor for sure: what is differentiated by is an operation's result."""
    return not _tapes.in_loop and tensor.op.type in ("Placeholder", "StopGradient")


def _chosen(arrays: Sequence[Any], where: Sequence[int]) -> list[Any]:
    return [arrays[k] for k in where]


def _placed(values: Sequence[Any], where: Sequence[int], length: int) -> list[Any]:
    found: list[Any] = [None] * length
    for k, value in zip(where, values, strict=True):
        found[k] = value
    return found


def _run(
    turn: Turn, carry: Arrays, constants: Arrays, rows: Arrays, specs: Sequence[Any], length: int, backward: bool
) -> tuple[Arrays, Arrays]:
    """The loop itself."""

    def body(k: Any, carry: Arrays, arrays: Arrays) -> tuple[Any, Arrays, Arrays]:
        place = length - 1 - k if backward else k
        with _inside_of_a_loop():
            carry, y = turn(carry, constants, tuple([tf.gather(row, place) for row in rows]))
        return k + 1, carry, tuple([a.write(place, value) for a, value in zip(arrays, y, strict=True)])

    arrays = tuple([tf.TensorArray(spec.dtype, length, element_shape=spec.shape) for spec in specs])
    start = tf.zeros((), tf.int32), tuple(carry), arrays
    _, carry, arrays = tf.while_loop(lambda k, carry, arrays: k < length, body, start)
    return tuple(carry), tuple([array.stack() for array in arrays])
