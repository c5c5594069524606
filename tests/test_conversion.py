"""Recorded conversions between engines, and between 0-d arrays and AdjFloat."""

import numpy as np
import pytest
from toy_engine import ToyArray, TwinArray, asnumpy, engine, overload_toy, overload_twin, sin, toy, twin

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    Control,
    MissingEngineError,
    ReducedFunction,
    ReducedFunctional,
    array,
    conversion,
    to_adjfloat,
    to_numpy,
    verify,
)
from pyadjoint_utils.registry import convert, get_engine, owner_of

A, P, H = np.array([0.5, -1.0]), np.array([1.5, 0.3]), np.array([0.4, -0.9])
square = overload_toy(lambda x: x * x)
total = overload_toy(lambda x: x.sum())


def test_to_numpy_records_and_differentiates(tape):
    x = toy(A)
    y = to_numpy(square(x))
    assert y.engine == "numpy"
    assert len(tape.get_blocks()) == 2
    rf = ReducedFunctional(total(square(y)), Control(x))
    assert float(rf(toy(P))) == pytest.approx(np.sum(P**4))
    np.testing.assert_allclose(asnumpy(rf.derivative()), 4 * P**3)
    assert rf.derivative().engine == "toy"
    np.testing.assert_allclose(asnumpy(rf.hessian(toy(H))), 12 * P**2 * H)
    assert float(rf.tlm(toy(H))) == pytest.approx(4 * P**3 @ H)


@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
def test_conversions_keep_the_dtype(dtype):
    x = toy(A, dtype)
    rf = ReducedFunction(to_numpy(x), Control(x))
    assert rf(toy(P, dtype)).dtype == dtype
    gradient = rf.adj_jac_action(np.asarray(H, dtype))
    assert (gradient.dtype, gradient.engine) == (dtype, "toy")


def test_a_conversion_to_the_own_engine_is_the_value_itself(tape):
    x = array(A)
    assert to_numpy(x) is x
    assert len(tape.get_blocks()) == 0


def test_what_is_not_taped_is_converted_without_a_record(tape):
    assert to_numpy(ToyArray(A)).engine == "numpy"
    assert to_numpy(2.0).shape == ()
    assert len(tape.get_blocks()) == 0


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("make", [toy, array], ids=["toy", "numpy"])
def test_to_adjfloat_takes_one_element_of_any_shape(shape, make):
    x = make(np.full(shape, 2.0))
    y = to_adjfloat(x)
    assert type(y) is AdjFloat
    rf = ReducedFunctional(y**3, Control(x))
    point, direction = make(np.full(shape, 3.0)), make(np.full(shape, 0.5))
    assert float(rf(point)) == pytest.approx(27.0)
    assert rf.derivative().shape == shape
    assert float(rf.derivative()) == pytest.approx(27.0)
    assert float(rf.tlm(direction)) == pytest.approx(13.5)
    assert rf.hessian(direction).shape == shape
    assert float(rf.hessian(direction)) == pytest.approx(9.0)
    assert verify(rf, point).passed


def test_an_adjfloat_into_arrays_and_back():
    s = AdjFloat(2.0)
    x = to_numpy(s)
    assert (x.engine, x.shape, x.dtype) == ("numpy", (), np.float64)
    rf = ReducedFunctional(to_adjfloat(square(x)) * s, Control(s))
    assert float(rf(3.0)) == pytest.approx(27.0)
    assert float(rf.derivative()) == pytest.approx(27.0)
    assert float(rf.hessian(1.0)) == pytest.approx(18.0)


def test_to_adjfloat_of_an_adjfloat_or_number():
    s = AdjFloat(2.0)
    assert to_adjfloat(s) is s
    assert to_adjfloat(3) == 3.0


@pytest.mark.parametrize("bad", [A, 1j, np.array([1.0 + 0j])])
def test_to_adjfloat_refuses_more_than_one_real_number(bad):
    with pytest.raises(ArgumentTypeError, match=r"one real number.*\.real"):
        to_adjfloat(array(bad))


@pytest.mark.parametrize("name", ["jax", "torch", "tensorflow"])
def test_a_missing_engine_is_named(name, monkeypatch):
    def missing(engine_name):
        raise MissingEngineError(f"The engine {engine_name!r} needs ...")

    monkeypatch.setattr(conversion, "get_engine", missing)
    with pytest.raises(MissingEngineError, match=name):
        getattr(conversion, f"to_{name}")(array(A))


def test_convert_between_engines():
    bare = ToyArray(A)
    assert convert(bare, engine) is bare
    assert type(convert(bare, twin)) is TwinArray
    assert type(convert(bare, get_engine("numpy"))) is np.ndarray
    assert type(convert(A, engine)) is ToyArray
    with pytest.raises(ArgumentTypeError, match="no array"):
        convert("text", engine)


def test_owners():
    assert owner_of(ToyArray(A)) is engine
    assert owner_of(TwinArray(A)) is twin
    assert owner_of(A).name == "numpy"
    assert owner_of("text") is None


def test_control_in_one_engine_point_in_another_and_seed_in_a_third():
    x = toy(A)
    rf = ReducedFunction(overload_twin(sin)(square(x)), Control(x))
    assert rf(P).engine == "twin"
    result = rf.hess_action(TwinArray(H), ToyArray(P))
    assert result.engine == "toy"
    np.testing.assert_allclose(asnumpy(result), (2 * np.cos(P**2) - 4 * P**2 * np.sin(P**2)) * H * P)
