import numpy as np
import pytest

from pyadjoint_utils import (
    ArgumentTypeError,
    Control,
    ReducedFunction,
    array,
    get_working_tape,
    overload,
    overload_numpy,
    push_tape,
)


@pytest.mark.parametrize("engine", ["torch", "tensorflow"])
@pytest.mark.parametrize(
    ("narrow", "wide"), [("float32", "float64"), ("float64", "complex64"), ("float64", "complex128")]
)
def test_precisions_that_an_engine_does_not_promote_are_named(narrow, wide, engine):
    pytest.importorskip(engine)
    product = overload(lambda w, x: w["kernel"] @ x, engine, name="layer")
    one, other = array(np.ones((2, 2), narrow)), array(np.ones((2, 2), wide))
    with pytest.raises(
        ArgumentTypeError,
        match=rf"layer: .*args\[0\]\['kernel'\] is {narrow}\[2,2\], args\[1\] is {wide}.*x\.astype\('{wide}'\)",
    ):
        product({"kernel": one}, other)
    assert len(get_working_tape().get_blocks()) == 0
    assert product({"kernel": one.astype(wide)}, other).dtype == wide


@pytest.mark.parametrize("engine", ["jax", "autograd"])
def test_engines_that_promote_take_both(engine):
    pytest.importorskip(engine)
    product = overload(lambda w, x: w @ x, engine)
    assert product(array(np.ones((2, 2), np.float32)), array(np.ones((2, 2)))).dtype == np.float64


def test_other_errors_of_a_function_with_two_precisions_stay_what_they_are():
    def f(x, y):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        overload(f, "autograd")(array(np.ones(2, np.float32)), array(np.ones(2)))


def test_a_sweep_shows_each_function_the_64_bit_types_that_it_has_when_it_is_called_alone():
    jax = pytest.importorskip("jax")
    seen = []

    def watching(x):
        seen.append(bool(jax.config.jax_enable_x64))
        return x * 2.0

    eager, compiled = overload(watching, "jax", jit=False), overload(lambda x: x.astype("float32"), "jax")
    outside = overload_numpy(watching, method="central")

    def replayed(program, dtype):
        """What the program's functions see when they are recorded, and in replays."""
        with push_tape():
            x = array(np.ones(2, dtype))
            rf = ReducedFunction(program(x), Control(x))
        recorded = list(seen)
        for call in (lambda: rf(x), lambda: rf.jac_action(x), lambda: rf.hess_action(x, rf(x))):
            seen.clear()
            call()
            assert seen[: len(recorded)] == recorded
        seen.clear()
        return recorded

    assert replayed(eager, np.float32) == [False]
    assert replayed(eager, np.float64) == [True]
    assert replayed(lambda x: eager(compiled(eager(x))), np.float64) == [True, False]
    assert replayed(lambda x: outside(eager(x)), np.float64) == [True, False]
