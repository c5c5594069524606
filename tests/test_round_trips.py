"""Engine within tape within engine: JAX, a tape, PyTorch, a tape and JAX again, against the same program in JAX alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyadjoint_utils
from pyadjoint_utils import Control, ReducedFunction, array, push_tape

jax = pytest.importorskip("jax")
torch = pytest.importorskip("torch")
jnp = jax.numpy

from pyadjoint_utils import as_autograd, as_jax, as_torch, overload_jax, overload_torch  # noqa: E402

ROOT = Path(pyadjoint_utils.__file__).parents[1]
X = np.array([0.4, -0.3, 0.8])
D = np.array([0.2, 0.5, -0.1])
REAL, COMPLEX = X, X + 1j * D
DIRECTION = {"real": D, "complex": D - 0.7j * X}
POINTS = {"real": REAL, "complex": COMPLEX}
MODES = {"eager": lambda f: f, "jit": jax.jit}


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def inner(point):
    """``exp(sin(x)) x`` as a function of PyTorch: JAX and NumPy on a tape."""
    with push_tape():
        x = array(0.5 * point)
        y = np.exp(overload_jax(jnp.sin)(x)) * x
        return as_torch(ReducedFunction(y, Control(x)))


def outer(point):
    """``cumsum(g(x)^2 + conj(x))`` times ``x`` as a function of JAX: PyTorch, with :func:`inner` for ``g``, and NumPy."""
    g = inner(point)
    with push_tape():
        x = array(0.7 * point)
        u = overload_torch(lambda x: torch.cumsum(g(x) ** 2 + x.conj(), 0))(x)
        return as_jax(ReducedFunction(u * x, Control(x)))


def native(x):
    return jnp.cumsum((jnp.exp(jnp.sin(x)) * x) ** 2 + jnp.conj(x)) * x


def loss(f):
    """A real number that the tape's values enter twice, once in a transformed point."""
    return lambda x: jnp.sum(jnp.real(f(x) * (1 + 0.5j) * f(jnp.tanh(x)))) + jnp.sum(jnp.abs(f(x)) ** 2)


KINDS = {
    "value": lambda f, x, d: f(x),
    "gradient": lambda f, x, d: jax.grad(loss(f))(x),
    "tangent": lambda f, x, d: jax.jvp(f, (x,), (d,))[1],
    "forward over reverse": lambda f, x, d: jax.jvp(jax.grad(loss(f)), (x,), (d,))[1],
    "reverse over reverse": lambda f, x, d: jax.grad(lambda x: jnp.sum(jnp.real(jax.grad(loss(f))(x) * d)))(x),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("numbers", POINTS)
def test_jax_tape_pytorch_tape_jax(numbers, mode):
    f, x, d = outer(POINTS[numbers]), jnp.asarray(POINTS[numbers]), jnp.asarray(DIRECTION[numbers])
    wanted = jax.jit(lambda x, d: {kind: g(native, x, d) for kind, g in KINDS.items()})(x, d)
    for kind, g in KINDS.items():
        found = MODES[mode](lambda x, d, g=g: g(f, x, d))(x, d)
        np.testing.assert_allclose(found, wanted[kind], rtol=1e-10, atol=1e-12, err_msg=kind)


def test_pytorch_tape_jax_tape_pytorch():
    with push_tape():
        x = array(0.5 * X)
        inside = as_jax(ReducedFunction(overload_torch(torch.sin)(x) * x, Control(x)))
    with push_tape():
        x = array(0.7 * X)
        f = as_torch(ReducedFunction(overload_jax(lambda x: jnp.sum(jnp.exp(inside(x)) * x))(x), Control(x)))
    plain = lambda x: torch.sum(torch.exp(torch.sin(x) * x) * x)
    x = torch.tensor(X)
    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacrev):
        np.testing.assert_allclose(transform(f)(x), transform(plain)(x), rtol=1e-10)
    for g in (f, plain):
        x = torch.tensor(X, requires_grad=True)
        (gradient,) = torch.autograd.grad(g(x), x, create_graph=True)
        (second,) = torch.autograd.grad((gradient * torch.tensor(D)).sum(), x)
        np.testing.assert_allclose(second, torch.func.hessian(plain)(torch.tensor(X)) @ torch.tensor(D), rtol=1e-10)


def test_autograd_tape_jax_tape_autograd():
    import autograd
    import autograd.numpy as anp

    with push_tape():
        x = array(0.5 * X)
        inside = as_jax(ReducedFunction(np.sin(x) * x, Control(x)))
    with push_tape():
        x = array(0.7 * X)
        f = as_autograd(ReducedFunction(overload_jax(lambda x: jnp.sum(jnp.exp(inside(x)) * x))(x), Control(x)))
    plain = lambda x: anp.sum(anp.exp(anp.sin(x) * x) * x)
    for transform in (autograd.grad, autograd.hessian):
        np.testing.assert_allclose(transform(f)(X), transform(plain)(X), rtol=1e-10)


def test_third_order_of_the_round_trip():
    f, d = outer(REAL), jnp.asarray(D)
    third = lambda f: lambda x: jax.jvp(lambda x: jax.jvp(jax.grad(loss(f)), (x,), (d,))[1], (x,), (d,))[1]
    np.testing.assert_allclose(jax.jit(third(f))(X), jax.jit(third(native))(X), rtol=1e-10)


LARGE = """
import jax, jax.numpy as jnp, numpy as np, torch
jax.config.update("jax_enable_x64", True)
from pyadjoint_utils import *
from pyadjoint_utils import as_jax, as_torch, overload_jax, overload_torch
n = 100_000
x = array(np.linspace(0.1, 1.0, n))
g = as_torch(ReducedFunction(np.exp(overload_jax(lambda x: jnp.sort(jnp.sin(x)))(x)), Control(x)))
with push_tape():
    x = array(np.linspace(0.1, 1.0, n))
    f = as_jax(ReducedFunction(overload_torch(lambda x: (g(x) * x).mean())(x), Control(x)))
step, v = jax.jit(lambda v: v - 1e3 * jax.grad(f)(v)), jnp.linspace(0.2, 1.0, n)
plain = jax.jit(lambda v: v - 1e3 * jax.grad(lambda x: jnp.mean(jnp.exp(jnp.sort(jnp.sin(x))) * x))(v))
w = v
for _ in range(4):  # nothing is waited for in between
    v, w = step(v), plain(w)
np.testing.assert_allclose(v, w, rtol=1e-10)
"""


def test_large_arrays_do_not_deadlock():
    subprocess.run([sys.executable, "-c", LARGE], check=True, timeout=120, cwd=ROOT)


@pytest.mark.parametrize("n", [3, 5000])  # numbers that go through NumPy, and more that do not
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_results_have_the_dtypes_of_their_engine(dtype, n):
    x = array(np.linspace(0.5, 1.5, n).astype(dtype))
    outputs = overload_torch(lambda x: (torch.sin(x), torch.conj(x * x)))(x)
    f = as_jax(ReducedFunction(list(outputs), Control(x)))
    v = np.linspace(0.1, 1.0, n).astype(dtype) * (1 if dtype in (np.float32, np.float64) else 1 + 1j)
    tolerance = 1e-5 if dtype in (np.float32, np.complex64) else 1e-12
    for y, wanted in zip(f(v), (np.sin(v), np.conj(v * v)), strict=True):
        assert (y.dtype, y.shape) == (dtype, (n,))
        np.testing.assert_allclose(y, wanted, rtol=tolerance)
    back = as_torch(ReducedFunction(overload_jax(lambda z: jnp.conj(z) * z)(outputs[1]), Control(x)))
    y = back(torch.from_numpy(v))
    assert y.numpy().dtype == dtype
    np.testing.assert_allclose(y.numpy(), np.abs(v) ** 4, rtol=tolerance)
