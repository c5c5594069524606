"""The value on the tape: what it holds, and every method of Pyadjoint's contract."""

import logging
import math
import pickle

import numpy as np
import pytest
from pyadjoint.overloaded_type import create_overloaded_object
from toy_engine import ToyArray, TwinArray, asnumpy, engine, overload_toy, toy

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    ImmutableError,
    OverloadedType,
    array,
    asarray,
    ndarray,
    stop_annotating,
    values,
)

REAL = np.array([[1.0, -2.0, 0.5], [3.0, 0.25, -1.5]])
COMPLEX = REAL + 1j * REAL[::-1]
DATA = [REAL, COMPLEX, REAL.astype(np.float32), COMPLEX.astype(np.complex64), REAL[0, 0]]


def wrapped(data, owner):
    return array(ToyArray(data)) if owner == "toy" else array(np.asarray(data))


@pytest.fixture(params=["toy", "numpy"])
def owner(request):
    return request.param


@pytest.mark.parametrize("data", DATA)
def test_it_describes_its_buffer(data, owner):
    x = wrapped(data, owner)
    assert (x.shape, x.dtype, x.ndim, x.size) == (data.shape, data.dtype, np.ndim(data), data.size)
    assert x.engine == owner
    assert isinstance(x, OverloadedType)
    np.testing.assert_array_equal(x.numpy(), data)


def test_python_numbers_and_lists_become_numpy_arrays():
    assert array(2.0).shape == ()
    assert array([[1, 2]]).dtype.kind == "i"
    assert array([[1, 2]], dtype=float).dtype == np.float64
    assert array(np.float32(2)).dtype == np.float32
    assert array([1j]).dtype == np.complex128
    assert array([1.0, 2.0]).engine == "numpy"


def test_array_copies_and_asarray_aliases():
    buffer = np.array([1.0, 2.0])
    copied, aliased = array(buffer), asarray(buffer)
    buffer[0] = 9.0
    assert copied.numpy()[0] == 1.0
    assert aliased.numpy()[0] == 9.0


def test_asarray_of_an_ndarray_is_itself_and_array_is_another(tape):
    x = toy([1.0])
    assert asarray(x) is x
    assert array(x) is not x
    assert array(x).engine == "toy"


def test_views_for_the_user_are_read_only():
    view = array([1.0, 2.0]).numpy()
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 3.0


def test_in_place_assignment_is_refused():
    x = toy([1.0, 2.0])
    with pytest.raises(ImmutableError, match=r"immutable.*x\[0\].*numpy.where"):
        x[0] = 3.0
    assert asnumpy(x).tolist() == [1.0, 2.0]


def test_augmented_assignment_rebinds_and_leaves_the_old_value():
    x = y = toy([1.0, 2.0])
    x += 1.0
    assert x is not y
    assert asnumpy(y).tolist() == [1.0, 2.0]
    assert asnumpy(x).tolist() == [2.0, 3.0]


@pytest.mark.parametrize("leave", [float, np.asarray, math.sin, lambda x: x.item(), lambda x: x.tolist()])
def test_leaving_the_tape_works_and_records_nothing(leave, tape):
    y = toy(1.0) * 2.0
    count = len(tape.get_blocks())
    assert np.allclose(leave(y), math.sin(2.0) if leave is math.sin else 2.0)
    assert len(tape.get_blocks()) == count


def test_leaving_the_tape_is_logged_once_while_annotating(caplog, monkeypatch):
    monkeypatch.setattr(values, "_left_tape", set())
    y = toy(1.0) * 2.0
    with caplog.at_level(logging.WARNING, "pyadjoint_utils"):
        with stop_annotating():
            float(y)
        assert not caplog.records
        float(y)
        float(y)
    assert len(caplog.records) == 1
    assert "float(x)" in caplog.text


@pytest.mark.parametrize("convert", [float, complex, int])
def test_only_one_element_becomes_a_number(convert):
    assert convert(toy([2.0])) == 2
    with pytest.raises(ArgumentTypeError, match="one element"):
        convert(toy([1.0, 2.0]))


def test_truth_length_and_index():
    assert bool(toy(1.0))
    assert not bool(toy(0.0))
    with pytest.raises(ArgumentValueError, match="ambiguous"):
        bool(toy([1.0, 2.0]))
    assert len(toy(REAL)) == 2
    with pytest.raises(TypeError, match="0-d"):
        len(toy(1.0))
    assert [10, 20][toy(1, dtype=int)] == 20
    with pytest.raises(ArgumentTypeError, match="integer"):
        [10, 20][toy(1.0)]


def test_iteration_ends():
    assert [float(v) for v in toy([1.0, 2.0])] == [1.0, 2.0]


def test_repr_says_what_it_is():
    assert repr(toy([1.0, 2.0])) == "ndarray([1., 2.], dtype=float64, engine='toy')"


@pytest.mark.parametrize("bad", ["text", None, object(), [1.0, "a"], [[1.0], [1.0, 2.0]]])
def test_what_is_no_array_of_numbers_is_refused(bad):
    with pytest.raises(ArgumentTypeError, match="array of numbers"):
        array(bad)


def test_a_list_of_taped_values_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"numpy\.stack"):
        array([AdjFloat(1.0), AdjFloat(2.0)])


def test_ndarray_wraps_arrays_alone():
    with pytest.raises(ArgumentTypeError, match=r"pyadjoint_utils.array\(\)"):
        ndarray([1.0])


# Pyadjoint's contract --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", DATA)
def test_init_object_takes_payloads_and_its_own_type(data, owner):
    x = wrapped(data, owner)
    for given in (x, x.value):
        made = ndarray._ad_init_object(given)
        assert isinstance(made, ndarray)
        assert (made.engine, made.dtype) == (owner, data.dtype)


@pytest.mark.parametrize(
    "obj",
    [np.ones(2), np.float64(1.0), np.float32(1.0), np.complex128(1j), ToyArray([1.0]), TwinArray([1.0])],
)
def test_pyadjoint_makes_ndarrays_of_registered_classes(obj):
    assert type(create_overloaded_object(obj)) is ndarray


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("data", DATA)
def test_init_zero(data, owner, dual):
    zero = wrapped(data, owner)._ad_init_zero(dual=dual)
    assert (zero.engine, zero.shape, zero.dtype) == (owner, data.shape, data.dtype)
    assert not np.any(zero.numpy())


@pytest.mark.parametrize("data", DATA)
def test_convert_riesz_is_the_identity(data, owner):
    x = wrapped(data, owner)
    for value, riesz_map in ((x, None), (x.value, "l2")):
        result = x._ad_convert_riesz(value, riesz_map=riesz_map)
        assert (result.engine, result.dtype) == (owner, data.dtype)
        np.testing.assert_array_equal(result.numpy(), data)
    with pytest.raises(ArgumentValueError, match="'l2'"):
        x._ad_convert_riesz(x, riesz_map="H1")


@pytest.mark.parametrize("data", DATA)
def test_checkpoints_are_bare_and_restore(data, owner):
    x = wrapped(data, owner)
    checkpoint = x._ad_create_checkpoint()
    assert not isinstance(checkpoint, OverloadedType)
    restored = x._ad_restore_at_checkpoint(checkpoint)
    assert isinstance(restored, ndarray)
    np.testing.assert_array_equal(restored.numpy(), data)
    assert isinstance(x._ad_restore_at_checkpoint(x), ndarray)


@pytest.mark.parametrize("data", DATA)
def test_mul_add_dot_copy_off_the_tape(data, owner):
    x = wrapped(data, owner)
    with stop_annotating():
        for expected, result in (
            (2.5 * data, x._ad_mul(2.5)),
            (data + data, x._ad_add(x)),
            (data, x._ad_copy()),
        ):
            assert (result.engine, result.dtype, result.shape) == (owner, data.dtype, data.shape)
            np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)
    assert x._ad_dot(x) == pytest.approx(np.sum(np.abs(data) ** 2), rel=1e-6)
    np.testing.assert_array_equal(x.numpy(), data)


def test_dot_is_the_real_part_with_a_conjugate():
    a, b = toy([1 + 2j]), toy([3 - 1j])
    assert a._ad_dot(b) == pytest.approx(((1 - 2j) * (3 - 1j)).real)


@pytest.mark.parametrize("data", DATA)
def test_in_place_methods_return_their_result_and_write_no_buffer(data, owner):
    x = wrapped(data, owner)
    before = x.value
    assert x._ad_iadd(x) is x
    np.testing.assert_allclose(x.numpy(), 2 * data, rtol=1e-6)
    assert x._ad_imul(0.5) is x
    np.testing.assert_allclose(x.numpy(), data, rtol=1e-6)
    assert (x.engine, x.dtype) == (owner, data.dtype)
    np.testing.assert_array_equal(asarray(before).numpy(), data)


@pytest.mark.parametrize("data", DATA)
def test_flat_numpy_vectors(data, owner):
    x = wrapped(data, owner)
    flat = x._ad_to_list(x)
    assert len(flat) == x._ad_dim() == data.size * (2 if data.dtype.kind == "c" else 1)
    assert all(type(v) is float for v in flat)
    padded = np.array([7.0, *flat, 7.0])
    back, offset = x._ad_assign_numpy(x, padded, 1)
    assert offset == len(flat) + 1
    assert (back.engine, back.dtype, back.shape) == (owner, data.dtype, data.shape)
    np.testing.assert_array_equal(back.numpy(), data)
    padded[:] = 0.0
    np.testing.assert_array_equal(back.numpy(), data)


class FakeVec:
    def __init__(self, data):
        self.data = np.array(data)

    def getArray(self, readonly=False):
        return self.data

    def setArray(self, data):
        self.data = np.array(data)


@pytest.mark.parametrize("data", DATA)
def test_petsc_vectors(data, owner):
    x = wrapped(data, owner)
    vec = FakeVec([])
    assert x._ad_to_petsc(vec) is vec
    vec.data = 2 * vec.data
    assert x._ad_from_petsc(vec) is x
    np.testing.assert_array_equal(x.numpy(), 2 * data)
    vec.data[...] = 0.0
    np.testing.assert_array_equal(x.numpy(), 2 * data)


def test_a_block_variable_holds_bare_arrays(tape):
    x = toy([1.0])
    y = overload_toy(lambda v: v + 1.0)(x)
    assert type(x.block_variable.checkpoint) is ToyArray
    assert type(y.block_variable.saved_output) is ndarray
    y.block_variable.add_adj_output(ToyArray([1.0]))
    y.block_variable.add_adj_output(np.array([2.0]))
    assert type(y.block_variable.adj_value) is ToyArray
    assert y.block_variable.adj_value.data.tolist() == [3.0]


def test_accumulation_never_writes_a_seed():
    bv = array([1.0, 2.0]).block_variable
    seed = np.array([1.0, 1.0])
    bv.add_adj_output(seed)
    bv.add_adj_output(np.array([5.0, 5.0]))
    assert seed.tolist() == [1.0, 1.0]
    assert bv.adj_value.tolist() == [6.0, 6.0]


def test_counters_show_that_nothing_is_converted_on_one_engine():
    square = overload_toy(lambda v: v * v)
    x = toy([1.0, 2.0])
    before = dict(engine.counts)
    square(square(x))
    assert {k: engine.counts[k] - before.get(k, 0) for k in ("entered", "left")} == {"entered": 0, "left": 0}


def test_the_data_are_pickled_and_the_tape_is_not():
    x = array([1.0, 2.0])
    y = x * 2.0
    again = pickle.loads(pickle.dumps(y))  # noqa: S301 what this test has written itself
    assert again.tolist() == [2.0, 4.0]
    assert again.engine == y.engine
    assert again._block_variable() is None
