"""Values stay on the accelerator that they were made on; skipped visibly where an engine has none."""

import numpy as np
import pytest

from pyadjoint_utils import Control, ReducedFunction, ReducedFunctional, array, get_engine, overload, verify

pytestmark = pytest.mark.gpu
POINT = np.array([0.3, -0.7, 1.1])


def on_jax():
    jax = pytest.importorskip("jax")
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("JAX has no GPU here")
    with jax.enable_x64(True):
        return jax.device_put(POINT, device), lambda value: value.devices() == {device}


def on_torch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no GPU here")
    return torch.tensor(POINT, device="cuda"), lambda value: value.is_cuda


def on_tensorflow():
    tf = pytest.importorskip("tensorflow")
    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow has no GPU here")
    with tf.device("GPU:0"):
        return tf.constant(POINT), lambda value: "GPU" in value.device


@pytest.mark.parametrize("make", [on_jax, on_torch, on_tensorflow])
def test_values_and_derivatives_stay_on_the_device(make):
    bare, on_device = make()
    x = array(bare)
    f = overload(lambda x: x * x * x, x.engine)
    y, unseeded = f(x), f(x)
    rf = ReducedFunctional((y * 2.0).sum() + 0.0 * unseeded.sum(), Control(x))
    assert on_device(y.value)
    assert on_device(rf.derivative().value)
    assert on_device(rf.hessian(x).value)
    np.testing.assert_allclose(rf.derivative().numpy(), 6 * POINT**2)
    assert verify(rf, x).passed


def test_a_chain_of_jax_and_pytorch_moves_nothing_to_the_host(monkeypatch):
    """JAX refuses to move what lives on the device, and nobody asks for NumPy arrays."""
    bare, on_device = on_jax()
    on_torch()
    import jax

    def refuse(self, array):
        raise AssertionError("an array was moved to the host")

    x = array(bare)
    cube, square = overload(lambda x: x * x * x, "jax"), overload(lambda t: t * t, "torch")

    def program(x):
        y = square(cube(x))
        assert y.engine == "torch"
        assert y.value.is_cuda
        return overload(lambda y: (y * y).sum(), "jax")(y)

    with monkeypatch.context() as patched, jax.transfer_guard_device_to_host("disallow"):
        for name in ("jax", "torch"):
            patched.setattr(type(get_engine(name)), "to_numpy", refuse)
        rf = ReducedFunctional(program(x), Control(x))
        fast = rf.compile()
        results = []
        for f in (rf, fast, fast):
            value, gradient = f.value_and_derivative(x)
            results.append((value, gradient, f.hessian(x)))
    for value, gradient, action in results:
        assert all(on_device(result.value) for result in (value, gradient, action))
        np.testing.assert_allclose(value.numpy(), np.sum(POINT**12))
        np.testing.assert_allclose(gradient.numpy(), 12 * POINT**11)
        np.testing.assert_allclose(action.numpy(), 132 * POINT**11)


@pytest.mark.parametrize("make", [on_jax, on_torch, on_tensorflow])
def test_matrices_stay_on_the_device(make):
    bare, on_device = make()
    x = array(bare)
    y = overload(lambda x: x * x * x, x.engine)(x)
    rf, J = ReducedFunction(y, Control(x)), ReducedFunctional((y * 2.0).sum(), Control(x))
    for matrix, expected in ((rf.jac_matrix(), 3 * POINT**2), (J.hess_matrix(), 12 * POINT)):
        assert on_device(matrix.value)
        np.testing.assert_allclose(matrix.numpy(), np.diag(expected))
    np.testing.assert_allclose(rf.jac_matrix(sparsity="detect").toarray(), np.diag(3 * POINT**2))
    np.testing.assert_allclose(rf.jac_matrix(np.ones((3, 1))).numpy(), 3 * POINT[:, None] ** 2)
    points = overload(lambda x: x * x, x.engine, pointwise=True)(x)
    blocks = ReducedFunction(points, Control(x)).jac_matrix()
    assert on_device(blocks.value)
    np.testing.assert_allclose(blocks.numpy(), 2 * POINT)
