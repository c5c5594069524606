"""For each linear primitive of JAX: which numbers of its results depend on which numbers of its inputs.

Primitives that move numbers around run on arrays of numbers' places. Indices that the program computes from what may change
could be anything: the result then depends on whole lines along the indexed axes. Primitives that are not listed make every
number of their results depend on every number of their inputs.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from pyadjoint_utils.jacobians.patterns import ENTRIES, Pattern, entries, everything, gathered, product, rows_at, union


class Value(NamedTuple):
    """What is known of a variable of a program.

    Attributes:
        pattern: a row for each number; None if it depends on nothing that was asked about.
        known: computes the value if it is the same in every call.
    """

    pattern: Pattern | None
    known: Callable[[], Any] | None = None


Patterns = Sequence[Pattern | None]
Rule = Callable[[Any, Sequence[Value]], Patterns]


def bound(eqn: Any, operands: Sequence[Any], **parameters: Any) -> Sequence[Any]:
    """Run an equation's primitive, with some of its parameters replaced."""
    primitive = eqn.primitive
    found = primitive.bind(*operands, **primitive.get_bind_params({**eqn.params, **parameters}))
    return found if primitive.multiple_results else [found]


def unknown(eqn: Any, given: Sequence[Value]) -> Patterns:
    """All results depend on all inputs."""
    patterns = [value.pattern for value in given if value.pattern is not None]
    return [everything(patterns, _size(v)) for v in eqn.outvars]


def either(*patterns: Pattern | None) -> Pattern | None:
    """What depends in any of some patterns, of which some may be empty."""
    given = [pattern for pattern in patterns if pattern is not None]
    return union(*given) if given else None


def _size(atom: Any) -> int:
    return atom.aval.size


def _numbers(atom: Any) -> np.ndarray:
    return np.arange(_size(atom)).reshape(atom.aval.shape)


def _zeros(atom: Any) -> Any:
    return jnp.zeros(atom.aval.shape, atom.aval.dtype)


def _lines(shape: Sequence[int], axes: Iterable[int]) -> tuple[np.ndarray, int]:
    """The number of the line along some axes that each number of an array is on, and how many lines there are."""
    kept = [1 if axis in tuple(axes) else length for axis, length in enumerate(shape)]
    count = math.prod(kept)
    return np.broadcast_to(np.arange(count).reshape(kept), shape), count


# Number by number --------------------------------------------------------------------------------------------------------


def _elementwise(eqn: Any, given: Sequence[Value]) -> Patterns:
    """Each number depends on those at its own place; scalars and axes of length 1 stand at every place."""
    shape = eqn.outvars[0].aval.shape
    patterns: list[Pattern] = []
    for atom, value in zip(eqn.invars, given, strict=True):
        mine = atom.aval.shape
        if value.pattern is not None and mine == shape:
            patterns.append(value.pattern)
        elif value.pattern is not None and len(mine) in (0, len(shape)):
            patterns.append(rows_at(value.pattern, np.broadcast_to(_numbers(atom), shape)))
        elif value.pattern is not None:
            return unknown(eqn, given)
    return [union(*patterns)]


def _each(eqn: Any, given: Sequence[Value]) -> Patterns:
    return [value.pattern for value in given]


# Numbers at other places -------------------------------------------------------------------------------------------------


def _moved(*data: int) -> Rule:
    """The rule of a primitive that copies numbers to other places; ``data`` are its operands, all if none is named."""

    def rule(eqn: Any, given: Sequence[Value]) -> Patterns:
        if any(value.known is None for k, value in enumerate(given) if data and k not in data):
            return unknown(eqn, given)
        operands: list[Any] = []
        patterns: list[Pattern] = []
        start = 0
        for k, (atom, value) in enumerate(zip(eqn.invars, given, strict=True)):
            if data and k not in data:
                operands.append(value.known())  # type: ignore[misc]
                continue
            operands.append(_numbers(atom) + start if value.pattern is not None else np.full(atom.aval.shape, -1))
            if value.pattern is not None:
                patterns.append(value.pattern)
                start += _size(atom)
        stacked = sparse.vstack(patterns, format="csr")
        in_numpy = _IN_NUMPY.get(eqn.primitive.name)
        if in_numpy is not None:
            return [rows_at(stacked, in_numpy(eqn, *operands))]
        return [rows_at(stacked, np.asarray(places)) for places in bound(eqn, list(map(jnp.asarray, operands)))]

    return rule


def _slice(eqn: Any, places: np.ndarray) -> np.ndarray:
    starts, limits, strides = [eqn.params[key] for key in ("start_indices", "limit_indices", "strides")]
    return places[tuple(map(slice, starts, limits, strides or [1] * places.ndim))]


def _broadcast(eqn: Any, places: np.ndarray) -> np.ndarray:
    shape = [1] * len(eqn.params["shape"])
    for axis, length in zip(eqn.params["broadcast_dimensions"], places.shape, strict=True):
        shape[axis] = length
    return np.broadcast_to(places.reshape(shape), eqn.params["shape"])


def _reshape(eqn: Any, places: np.ndarray) -> np.ndarray:
    order = eqn.params["dimensions"]
    return (places if order is None else places.transpose(order)).reshape(eqn.params["new_sizes"])


# What is quicker in NumPy than compiled for one use.
_IN_NUMPY: dict[str, Callable[..., np.ndarray]] = {
    "reshape": _reshape,
    **dict.fromkeys(("squeeze", "expand_dims"), lambda eqn, places: places.reshape(eqn.outvars[0].aval.shape)),
    "slice": _slice,
    "broadcast_in_dim": _broadcast,
    "transpose": lambda eqn, places: places.transpose(eqn.params["permutation"]),
    "rev": lambda eqn, places: np.flip(places, eqn.params["dimensions"]),
    "concatenate": lambda eqn, *places: np.concatenate(places, eqn.params["dimension"]),
}


def _gather(eqn: Any, given: Sequence[Value]) -> Patterns:
    operand, indices = given
    axes = () if indices.known else eqn.params["dimension_numbers"].start_index_map
    index = indices.known() if indices.known else _zeros(eqn.invars[1])
    return _read(eqn, operand, axes, [index], fill_value=-1)


def _dynamic_slice(eqn: Any, given: Sequence[Value]) -> Patterns:
    operand, *starts = given
    shape, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    axes = [k for k, start in enumerate(starts) if start.known is None and sizes[k] < shape[k]]
    index = [start.known() if start.known else _zeros(v) for start, v in zip(starts, eqn.invars[1:], strict=True)]
    return _read(eqn, operand, axes, index)


def _read(eqn: Any, operand: Value, axes: Sequence[int], indices: Sequence[Any], **parameters: Any) -> Patterns:
    """Read from an operand at known places, and somewhere along the axes whose indices are not known."""
    if operand.pattern is None:
        return [None]
    lines, count = _lines(eqn.invars[0].aval.shape, axes)
    pattern = gathered(operand.pattern, lines, count) if axes else operand.pattern
    (places,) = bound(eqn, [jnp.asarray(lines), *indices], **parameters)
    return [rows_at(pattern, np.asarray(places))]


def _scatter(eqn: Any, given: Sequence[Value]) -> Patterns:
    """Each number depends on what stood in its place, and on the updates that may land there."""
    operand, indices, updates = given
    landed = None
    if updates.pattern is not None:
        shape = eqn.outvars[0].aval.shape
        axes = () if indices.known else eqn.params["dimension_numbers"].scatter_dims_to_operand_dims
        index = indices.known() if indices.known else _zeros(eqn.invars[1])
        lines, count = _lines(shape, axes)

        def add(update: Any) -> Any:
            return jax.lax.scatter_add_p.bind(jnp.zeros(shape), index, update, **eqn.params)

        # The transpose reads, for each update, the line where it lands; 0 where it is dropped.
        transposed = jax.linear_transpose(add, jax.ShapeDtypeStruct(eqn.invars[2].aval.shape, np.float64))
        (places,) = transposed(jnp.asarray(lines + 1.0))
        landed = rows_at(gathered(updates.pattern, np.asarray(places).astype(int) - 1, count), lines)
    return [either(operand.pattern, landed)]


# Sums --------------------------------------------------------------------------------------------------------------------


def _reduce_sum(eqn: Any, given: Sequence[Value]) -> Patterns:
    return [gathered(given[0].pattern, *_lines(eqn.invars[0].aval.shape, eqn.params["axes"]))]


def _cumsum(eqn: Any, given: Sequence[Value]) -> Patterns:
    """Each number depends on its whole line, for simplicity."""
    lines, count = _lines(eqn.invars[0].aval.shape, (eqn.params["axis"],))
    return [rows_at(gathered(given[0].pattern, lines, count), lines)]


def _dot_general(eqn: Any, given: Sequence[Value]) -> Patterns:
    """A sum of products: zeros of a factor that never changes leave nothing to depend on."""
    contracted, batch = eqn.params["dimension_numbers"]
    sides = [_as_matrices(_numbers(eqn.invars[k]), batch[k], contracted[k]) for k in (0, 1)]
    places = _numbers(eqn.outvars[0]).reshape(-1, sides[0].shape[1], sides[1].shape[1])
    terms: list[Pattern] = []
    for k, at in ((0, places), (1, places.swapaxes(1, 2))):
        pattern, factor = given[k].pattern, given[1 - k].known
        if pattern is not None:
            mask = None if factor is None else np.asarray(factor()) != 0
            terms.append(_summed(pattern, sides[k], sides[1 - k], mask, at))
    return [union(*terms)]


def _as_matrices(numbers: np.ndarray, batch: Sequence[int], contracted: Sequence[int]) -> np.ndarray:
    """Places of an operand with the axes (batch, free, contracted)."""
    free = [k for k in range(numbers.ndim) if k not in (*batch, *contracted)]
    sizes = [math.prod(numbers.shape[k] for k in axes) for axes in (batch, free, contracted)]
    return numbers.transpose((*batch, *free, *contracted)).reshape(sizes)


def _summed(
    pattern: Pattern, mine: np.ndarray, theirs: np.ndarray, mask: np.ndarray | None, places: np.ndarray
) -> Pattern:
    """Sum over the last axis of places ``mine``, times a factor at ``theirs``, into ``places``."""
    if mask is None or np.count_nonzero(mask) * mine.shape[1] > ENTRIES:
        lines = np.arange(mine.shape[0] * mine.shape[1])
        group, index = np.empty(mine.size, int), np.empty(places.size, int)
        group[mine.reshape(-1)] = np.repeat(lines, mine.shape[2])
        index[places.reshape(-1)] = np.repeat(lines, places.shape[2])
        return rows_at(gathered(pattern, group, len(lines)), index)
    b, j, k = np.nonzero(mask.reshape(-1)[theirs])
    return product(entries(places[b, :, j], mine[b, :, k], (places.size, mine.size)), pattern)


def _convolution(eqn: Any, given: Sequence[Value]) -> Patterns:
    """Each number depends on all channels of its window."""
    parameters, (lhs, rhs) = eqn.params, given
    if rhs.pattern is not None or lhs.pattern is None or parameters["batch_group_count"] != 1:
        return unknown(eqn, given)
    dimensions = parameters["dimension_numbers"]
    window = [eqn.invars[1].aval.shape[k] for k in dimensions.rhs_spec[2:]]
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")
    patches = jax.lax.conv_general_dilated_patches(
        jnp.asarray(1.0 + _numbers(eqn.invars[0])),
        window,
        **{name: parameters[name] for name in names},
        precision=jax.lax.Precision.HIGHEST,
    )
    # With the channels last, a line of the patches is what a window sees; 0 is the padding.
    channels = dimensions.out_spec[1]
    seen = np.rint(np.moveaxis(np.asarray(patches), channels, -1)).astype(int) - 1
    seen = seen.reshape(-1, seen.shape[-1])
    lines, k = np.nonzero(seen >= 0)
    windows = entries(lines, seen[lines, k], (len(seen), _size(eqn.invars[0])))
    index = np.empty(_size(eqn.outvars[0]), int)
    index[np.moveaxis(_numbers(eqn.outvars[0]), channels, -1).reshape(len(seen), -1)] = np.arange(len(seen))[:, None]
    return [rows_at(product(windows, lhs.pattern), index)]


def _triangular_solve(eqn: Any, given: Sequence[Value]) -> Patterns:
    """The systems of a batch do not influence each other."""
    lines = [
        gathered(value.pattern, *_lines(atom.aval.shape, (atom.aval.ndim - 2, atom.aval.ndim - 1)))
        for atom, value in zip(eqn.invars, given, strict=True)
        if value.pattern is not None
    ]
    shape = eqn.outvars[0].aval.shape
    return [rows_at(union(*lines), _lines(shape, (len(shape) - 2, len(shape) - 1))[0])]


RULES: dict[str, Rule] = {
    **dict.fromkeys("neg mul div add add_any sub select_n real imag complex conj".split(), _elementwise),
    **dict.fromkeys("convert_element_type reduce_precision copy copy_p".split(), _elementwise),
    "optimization_barrier": _each,
    **dict.fromkeys("slice reshape transpose squeeze expand_dims broadcast_in_dim rev split".split(), _moved(0)),
    **dict.fromkeys("concatenate pad stack unstack tile".split(), _moved()),
    "dynamic_update_slice": _moved(0, 1),
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    **dict.fromkeys(("scatter", "scatter-add"), _scatter),
    "reduce_sum": _reduce_sum,
    "cumsum": _cumsum,
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "triangular_solve": _triangular_solve,
}
