"""What every tape inside an engine shares: what may be given, what is refused, and that it is a snapshot."""

import numpy as np
import pytest
from pyadjoint import Block, OverloadedType, get_working_tape
from toy_engine import ToyArray, engine, overload_toy, overload_twin, sin, toy

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    StaleTapeError,
    UnsupportedError,
    array,
    to_adjfloat,
    to_numpy,
)
from pyadjoint_utils.inside.called import Inside
from pyadjoint_utils.inside.pieces import Foreign, Native

P = np.array([0.4, -0.9])


def call(inside, values, inputs=None, **options):
    """Replay for the toy engine, which differentiates nothing here."""
    given = [v if isinstance(v, ToyArray) else ToyArray(v) for v in inside.values(values, inputs)]
    outputs = inside.replay(given, lambda function, x: function(x, engine), **options)
    return inside.delist([y.data for y in outputs])


def mixed():
    """``(exp(sin(x)) a, sin(x))``: the toy engine, then its twin, then numbers."""
    x, a = toy([1.0, 2.0]), AdjFloat(2.0)
    s = overload_toy(sin)(x)
    return ReducedFunction([overload_twin(lambda s, a: s * s * a)(s, a * 3.0), s], [Control(x), Control(a)])


def test_own_steps_are_native_and_the_others_are_gathered():
    x, a = toy([1.0, 2.0]), AdjFloat(2.0)
    twin_square = overload_twin(lambda x: x * x)
    u = overload_toy(sin)(x)
    v = twin_square(to_numpy(twin_square(u)))  # a conversion between two foreign ones does not part them
    w = twin_square(overload_toy(sin)(x))
    y = overload_toy(lambda v, w, a: v * w * a)(v, w, a * a)
    inside = Inside(ReducedFunction(y, [Control(x), Control(a)]), engine)
    kinds = [type(piece) for piece in inside.pieces]
    assert kinds.count(Foreign) == 1
    assert kinds.count(Native) == 4
    np.testing.assert_allclose(call(inside, [P, 3.0]), np.sin(P) ** 6 * 9)
    (piece,) = inside.whole
    assert type(piece) is Foreign
    np.testing.assert_allclose(call(inside, [P, 3.0], whole=True), np.sin(P) ** 6 * 9)


def test_lists_are_those_of_the_reduced_function():
    y, s = call(Inside(mixed(), engine), [P, 0.5])
    np.testing.assert_allclose(y, np.sin(P) ** 2 * 1.5)
    np.testing.assert_allclose(s, np.sin(P))
    x = toy([1.0, 2.0])
    y = overload_toy(sin)(x)
    np.testing.assert_allclose(call(Inside(ReducedFunction(y, Control(x)), engine), P), np.sin(P))
    (y,) = call(Inside(ReducedFunction([y], [Control(x)]), engine), [P])
    np.testing.assert_allclose(y, np.sin(P))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (P, ArgumentTypeError, r"controls must be a list of 2; got ndarray"),
        ([P], ArgumentValueError, r"one entry for each of the 2 controls; got 1"),
    ],
)
def test_wrong_lists_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        Inside(mixed(), engine).values(values)


def test_other_shapes_and_dtypes_are_refused_by_name():
    inside = Inside(mixed(), engine)
    inside.check(0, (2,), np.float64)
    with pytest.raises(ArgumentValueError, match=r"controls\[0\] .*float64\[2\]; got float64\[3\]"):
        inside.check(0, (3,), np.float64)
    with pytest.raises(ArgumentValueError, match=r"controls\[1\] .*float64\[\]; got float64\[1\]"):
        inside.check(1, (1,), np.float64)
    with pytest.raises(ArgumentTypeError, match=r"controls\[0\] .*float64\[2\]; got complex128\[2\]"):
        inside.check(0, (2,), np.complex128)
    with pytest.raises(ArgumentTypeError, match=r"controls\[0\] .*float64\[2\]; got float32\[2\]"):
        inside.check(0, (2,), np.float32)


def test_outputs_that_pass_no_derivative_are_refused():
    x = toy([1.0, 2.0])
    index = overload_toy(lambda x: ToyArray(np.array(1)))(x)
    with pytest.raises(NotDifferentiableError, match=r"outputs\[1\] is int64\[\], which has no derivative"):
        Inside(ReducedFunction([overload_toy(sin)(x), index], Control(x)), engine)


class Thing(OverloadedType):
    """A value of another package without an array."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def _ad_create_checkpoint(self):
        return self

    def _ad_restore_at_checkpoint(self, checkpoint):
        return checkpoint

    def _ad_init_zero(self, dual=False):
        return Thing(0 * self.data)


class Pack(Block):
    """An array as a Thing, and back."""

    def __init__(self, x):
        super().__init__()
        self.add_dependency(x)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return _packed(inputs[0])

    def evaluate_tlm_component(self, inputs, tlm_inputs, block_variable, idx, prepared=None):
        return _packed(tlm_inputs[0])

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return _packed(adj_inputs[0])


def _packed(x):
    return array(x.data) if isinstance(x, Thing) else Thing(np.asarray(x.numpy() if hasattr(x, "numpy") else x))


def pack(x):
    y = _packed(x)
    block = Pack(x)
    get_working_tape().add_block(block)
    block.add_output(y.create_block_variable() if hasattr(y, "create_block_variable") else y.block_variable)
    return y


def test_values_without_arrays_pass_between_foreign_blocks_alone():
    x = array([1.0, 2.0])
    thing = pack(x)
    y = overload_toy(sin)(pack(thing))
    inside = Inside(ReducedFunction(y, Control(x)), engine)
    np.testing.assert_allclose(call(inside, P), np.sin(P))
    (piece,) = inside.whole
    np.testing.assert_allclose(piece.function.batched((True,), 2)([np.stack([P, 2 * P])])[0], np.sin([P, 2 * P]))
    with pytest.raises(ArgumentTypeError, match=r"outputs\[0\] is a Thing, which is no array"):
        Inside(ReducedFunction(thing, Control(x)), engine)
    with pytest.raises(ArgumentTypeError, match=r"controls\[0\] is a Thing, which is no array"):
        Inside(ReducedFunction(y, Control(thing)), engine)


class Combine(Pack):
    """A Thing and an array as an array."""

    def __init__(self, thing, y):
        super().__init__(thing)
        self.add_dependency(y)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return array(inputs[0].data * inputs[1].numpy())


def test_a_value_without_an_array_cannot_pass_around_the_engine():
    x = array([1.0, 2.0])
    thing = pack(x)
    s = overload_toy(sin)(pack(thing))
    y = array(thing.data * s.numpy())
    block = Combine(thing, s)
    get_working_tape().add_block(block)
    block.add_output(y.create_block_variable())
    with pytest.raises(UnsupportedError, match=r"A Thing would have to pass through toy"):
        Inside(ReducedFunction(y, Control(x)), engine)


def test_a_tape_that_was_cleared_before_is_refused():
    rf = mixed()
    rf.tape.clear_tape()
    with pytest.raises(StaleTapeError, match=r"outputs\[0\] was not recorded on this tape"):
        Inside(rf, engine)


def test_it_is_a_snapshot():
    x, b = toy([1.0, 2.0]), toy([3.0, 3.0])
    y = overload_toy(lambda x, b: x * x * b)(x, b)
    rf, other, control = ReducedFunction(y, Control(x)), ReducedFunction(y, Control(b)), Control(b)
    inside = Inside(rf, engine)
    for disturb in (
        lambda: other(toy([7.0, 7.0])),
        lambda: rf(toy([5.0, 5.0])),
        lambda: control.update(toy([8.0, 8.0])),
        lambda: rf.tape.clear_tape(),
    ):
        disturb()
        np.testing.assert_allclose(call(inside, P), 3 * P**2)


def test_an_update_before_counts():
    x, b = toy([1.0, 2.0]), toy([3.0, 3.0])
    rf = ReducedFunction(overload_toy(lambda x, b: x * x * b)(x, b), Control(x))
    Control(b).update(toy([8.0, 8.0]))
    np.testing.assert_allclose(call(Inside(rf, engine), P), 8 * P**2)


def test_inputs_are_arguments_with_a_recorded_value():
    x, b, k = toy([1.0, 2.0]), toy([3.0, 3.0]), toy([1, 0])
    y = overload_toy(lambda x, b, k: x * x * b * k)(x, b, k)
    rf = ReducedFunction(y, Control(x), inputs=[b, k])
    inside = Inside(rf, engine)
    assert inside.names == ["controls[0]", "inputs[0]", "inputs[1]"]
    np.testing.assert_allclose(call(inside, P), 3 * P**2 * [1, 0])
    np.testing.assert_allclose(call(inside, P, [ToyArray(2 * P), ToyArray([0, 1])]), 2 * P**3 * [0, 1])
    (piece,) = inside.whole
    assert piece.function.active == (0, 1)  # a floating input passes a derivative too
    rf(toy(P), [toy(P), toy([1, 1])])
    np.testing.assert_allclose(call(Inside(rf, engine), P), P**3)


def test_outputs_may_be_controls_and_repeat():
    x, b = toy([1.0, 2.0]), toy([3.0, 3.0])
    y = overload_toy(lambda x, b: x * b)(x, b)
    inside = Inside(ReducedFunction([x, y, y, x], Control(x)), engine)
    for whole in (False, True):
        np.testing.assert_allclose(call(inside, P, whole=whole), [P, 3 * P, 3 * P, P])


def test_a_functional_is_scaled():
    x = toy([1.0, 2.0])
    y = overload_toy(lambda x: (x * x).sum())(x)
    inside = Inside(ReducedFunctional(y, Control(x), scale=-0.5), engine)
    np.testing.assert_allclose(call(inside, P), -0.5 * P @ P)


def test_something_else_than_a_reduced_function_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"A function of toy is made of a ReducedFunction .*; got function"):
        Inside(lambda x: x, engine)


def test_numbers_take_the_dtype_that_a_function_expects():
    # An AdjFloat beside a float32 array was recorded as float32.
    x, a = toy([1.0, 2.0], np.float32), AdjFloat(2.0)
    y = overload_toy(lambda x, a: x * a)(x, to_adjfloat(a * 1.0))
    inside = Inside(ReducedFunction(y, [Control(x), Control(a)]), engine)
    for whole in (False, True):
        result = call(inside, [P.astype(np.float32), 3.0], whole=whole)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, 3 * P.astype(np.float32))
