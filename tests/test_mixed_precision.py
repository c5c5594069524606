import numpy as np
import pytest

from pyadjoint_utils import ArgumentTypeError, array, get_working_tape, overload


@pytest.mark.parametrize("engine", ["torch", "tensorflow"])
def test_precisions_that_an_engine_does_not_promote_are_named(engine):
    pytest.importorskip(engine)
    product = overload(lambda w, x: w["kernel"] @ x, engine, name="layer")
    single, double = array(np.ones((2, 2), np.float32)), array(np.ones((2, 2)))
    with pytest.raises(
        ArgumentTypeError, match=r"layer: .*args\[0\]\['kernel'\] is float32\[2,2\], args\[1\] is float64"
    ):
        product({"kernel": single}, double)
    assert len(get_working_tape().get_blocks()) == 0
    assert product({"kernel": single.astype("float64")}, double).dtype == np.float64


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
