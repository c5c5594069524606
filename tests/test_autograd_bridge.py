"""The autograd bridge: every rule against finite differences, to third order, and what is refused."""

import threading
import warnings

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from pyadjoint_utils import (
    Control,
    NotDifferentiableError,
    ReducedFunctional,
    array,
    get_engine,
    overload_autograd,
    taylor_test,
)

ENGINE = get_engine("autograd")
rng = np.random.default_rng(7)
LOW = {"f": np.float32, "c": np.complex64}


def random_like(a):
    r = rng.standard_normal(a.shape)
    return np.asarray(r + 1j * rng.standard_normal(a.shape) if a.dtype.kind == "c" else r, a.dtype)


def pairing(a, b):
    return sum(float(np.real(np.vdot(p, q))) for p, q in zip(a, b, strict=True))


def difference(f, x, d, h=1e-5):
    up, down = (f(tuple([np.asarray(a + s * b) for a, b in zip(x, d, strict=True)])) for s in (h, -h))
    return [(a - b) / (2 * h) for a, b in zip(up, down, strict=True)]


def assert_close(found, expected, tol):
    for a, b in zip(found, expected, strict=True):
        assert np.shape(a) == np.shape(b)
        np.testing.assert_allclose(a, b, atol=tol * (1 + np.max(np.abs(b), initial=0.0)), rtol=0)


def flat(f):
    def g(x, c):
        return tuple([y if ENGINE.is_tracer(y) else np.asarray(y) for y in ENGINE.flatten(f(*x))[0]])

    return g


def assert_right_to_third_order(f, *x):
    """JVP, VJP, both compositions of them and one more JVP, by differences and by transposition; then float32."""
    x, f = tuple([np.asarray(a) for a in x]), flat(f)
    y, n = f(x, ()), len(x)
    m, dx, yb = len(y), tuple(map(random_like, x)), tuple(map(random_like, y))
    jvp, vjp = ENGINE.jvp_of(f, n), ENGINE.vjp_of(f, n)
    hvp = ENGINE.jvp_of(vjp, n + m)
    dy, xb = jvp((*x, *dx), ())[m:], vjp((*x, *yb), ())
    assert_close(dy, difference(lambda x: f(x, ()), x, dx), 1e-6)
    assert pairing(dy, yb) == pytest.approx(pairing(dx, xb), rel=1e-8, abs=1e-8)
    point, step = (*x, *yb), (*dx, *map(random_like, y))
    dxb = hvp((*point, *step), ())[n:]
    assert_close(dxb, difference(lambda p: vjp(p, ()), point, step), 1e-5)
    # The second term alone: a cotangent that vanishes at the point and not around it.
    still = (*x, *[0 * b for b in yb])
    assert_close(hvp((*still, *step), ())[n:], vjp((*x, *step[n:]), ()), 1e-8)
    w = tuple(map(random_like, x))
    pulled = ENGINE.vjp_of(vjp, n + m)((*point, *w), ())
    assert pairing(dxb, w) == pytest.approx(pairing(step, pulled), rel=1e-7, abs=1e-7)
    far = (*point, *step)
    along = tuple(map(random_like, far))
    third = ENGINE.jvp_of(hvp, len(far))((*far, *along), ())[2 * n :]
    assert_close(third, difference(lambda p: hvp(p, ()), far, along), 1e-4)
    low = tuple([a.astype(LOW[a.dtype.kind]) for a in far])
    assert [b.dtype for b in hvp(low, ())] == [a.dtype for a in (*low[:n], *low[:n])]
    assert all(type(b) is np.ndarray for b in (*hvp(low, ()), *jvp(low[:n] * 2, ())))


MASK = np.array([True, False, True])
SQUARE = np.array([[4.0, 0.3, -0.2], [0.5, 3.0, 0.1], [0.2, -0.7, 5.0]])
TURNED = SQUARE + 1j * np.array([[0.1, 0.6, -0.4], [-0.3, 0.2, 0.5], [0.4, 0.1, -0.3]])
HERMITIAN = TURNED @ TURNED.conj().T


def spread(a):
    """What of eigenpairs does not depend on the vectors' phases."""
    w, v = a
    return w, anp.abs(v) ** 2


FIELDS = {
    "arithmetic": lambda x: 1 - x + 2.0**x + x**2 / 3 + 1 / x + (-x) * x,
    "elementary": lambda x: anp.exp(anp.sin(x)) * anp.tanh(x) + anp.log(2 + x**2),
    "abs_sign": lambda x: anp.abs(x) * anp.sign(x) + anp.conj(x) * anp.real(x) * anp.imag(1j * x),
    "indexing": lambda x: (x[0, ::-2], x[:, [0, 0, 2]], x[..., None, 1], x[1, 2]),
    "masks": lambda x: x[np.array([[True, False, True], [False, True, True]])] ** 2,
    "where_of_scalars": lambda x: anp.where(MASK, x[0, 0], 0.0) * anp.where(MASK, x[1], x[1] ** 2),
    "reductions": lambda x: (anp.sum(x**2), anp.mean(x, axis=-1), anp.prod(x, axis=(-2, -1)), anp.cumsum(x, 1)),
    "product_with_zeros": lambda x: anp.prod(x * np.array([1.0, 0.0, 2.0]), axis=1),
    "spread": lambda x: (anp.var(x, axis=(0, 1)), anp.std(x, ddof=1, axis=1)),
    "repeat_negative_axis": lambda x: anp.repeat(x**2, 2, axis=-1),
    "tile_missing_axes": lambda x: anp.tile(x**2, 2),
    "rearranged": lambda x: (anp.roll(x, (1, 2), axis=(0, 1)), anp.flip(x, 1), anp.rot90(x), anp.take(x, [0, 2], 1)),
    "diagonals": lambda x: (anp.diag(x), anp.diag(x, 1), anp.diagonal(x), anp.diag(x[0]), anp.trace(x**2)),
    "broadcast": lambda x: anp.broadcast_to(x**2, (4, 2, 3)),
    "joined": lambda x: (anp.concatenate([x, x**2]), anp.stack([x, x], -1), anp.array([x[0, 0], x[1, 1] * 2])),
    "padded": lambda x: (anp.pad(x, 1), anp.pad(x**2, ((0, 1), (2, 0)), "reflect")),
    "products": lambda x: (
        x @ x.T,
        anp.dot(x, x[0]),
        anp.outer(x, x[0]),
        anp.einsum("ij,ik->jk", x, x),
        anp.vdot(x, x),
    ),
    "containers": lambda x: {"a": [x[0] * x[1]], "b": (anp.sin(x), None)},
    "constant_output": lambda x: (np.ones(2, x.dtype), x * x),
    "filled": lambda x: anp.full_like(x, x[0, 0] ** 2) * x,
    "norms": lambda x: (
        anp.linalg.norm(x) * x,
        anp.linalg.norm(x, axis=1, keepdims=True),
        anp.linalg.norm(x, 1, axis=0),
        anp.linalg.norm(x, np.inf, axis=0),
    ),
    "fft": lambda x: (anp.fft.fft(x), anp.fft.ifft(x, 5), anp.fft.fft2(x, norm="ortho"), anp.fft.fftshift(x)),
    "irfft": lambda x: (anp.fft.irfft(x), anp.fft.irfft(x, 5, norm="forward")),
    "cumprod": lambda x: anp.cumprod(x * np.array([1.0, 0.0, 2.0]), axis=1),
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("imaginary", [0.0, 1j], ids=["real", "complex"])
def test_rules(name, imaginary):
    x = rng.uniform(0.3, 0.9, (2, 3)) + imaginary * rng.uniform(0.3, 0.9, (2, 3)) if imaginary else None
    assert_right_to_third_order(FIELDS[name], rng.uniform(0.3, 0.9, (2, 3)) if x is None else x)


REAL_FIELDS = {
    "rfft_odd": lambda x: anp.fft.rfft(x),
    "rfft_norm": lambda x: anp.fft.rfft(x, norm="backward", axis=0),
    "chosen": lambda x: (
        anp.max(x, axis=(-2, -1)),
        anp.min(x, axis=0, keepdims=True),
        anp.sort(x),
        anp.clip(x, 0.4, 0.8),
    ),
    "max_over_last_axes": lambda x: anp.max(anp.stack([x[:, :2], x[:, 1:] ** 2]), axis=(-2, -1)),
    "steps": lambda x: (anp.floor(3 * x) * x, x * (x > 0.5), (3 * x).astype(int) * x, anp.mod(x, 0.25)),
    "two_arguments": lambda x: (
        anp.arctan2(x, x**2),
        anp.hypot(x, 1.0),
        anp.maximum(x, 0.5),
        anp.linspace(x[0], x[1], 3),
    ),
}


@pytest.mark.parametrize("name", REAL_FIELDS)
def test_rules_of_real_functions(name):
    assert_right_to_third_order(REAL_FIELDS[name], rng.uniform(0.3, 0.9, (2, 3)))


MATRICES = {
    "solve": lambda a: anp.linalg.solve(a, a[0]),
    "inv": lambda a: anp.linalg.inv(anp.stack([a, a @ a])),
    "det": anp.linalg.det,
    "slogdet": anp.linalg.slogdet,
    "svd": lambda a: anp.linalg.svd(a, compute_uv=False),
    "eigvalsh": lambda a: anp.linalg.eigvalsh(a),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("matrix", [SQUARE, TURNED], ids=["real", "complex"])
def test_linear_algebra(name, matrix):
    assert_right_to_third_order(MATRICES[name], matrix)


@pytest.mark.parametrize("f", [anp.linalg.cholesky, lambda a: spread(anp.linalg.eigh(a))], ids=["cholesky", "eigh"])
@pytest.mark.parametrize("matrix", [HERMITIAN.real, HERMITIAN], ids=["real", "complex"])
def test_factorizations_read_one_triangle(f, matrix):
    assert_right_to_third_order(f, matrix)


def test_real_and_complex_together():
    z = np.array([1.0 + 2j, -0.5j, 0.3])
    assert_right_to_third_order(
        lambda a, z: (a @ z, anp.dot(a, z), a * z, anp.where(MASK, a[0], z), anp.power(z, a[1, 1])), SQUARE, z
    )


def test_clip_differentiates_its_bounds():
    assert_right_to_third_order(lambda x, a, b: anp.clip(x, a, b), np.array([0.1, 0.5, 0.9]), 0.3, np.full(3, 0.7))


def test_unused_input_and_aliased_outputs():
    assert_right_to_third_order(lambda x, y: (x, x, anp.sin(x)), np.array([1.0, 2.0]), np.array(3.0))


# What is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "named"),
    [
        (lambda x: anp.interp(x, np.arange(3.0), np.arange(3.0)), "interp"),
        (lambda x: anp.copysign(x, 1.0), "copysign"),
        (lambda x: anp.sum(x, where=np.array([True, False])), "where="),
        (lambda x: anp.prod(x, initial=2.0), "initial="),
        (lambda x: anp.std(x, correction=1), "correction="),
        (lambda x: anp.linalg.pinv(anp.reshape(x, (1, 2)) * 1j), "pinv"),
        (lambda x: anp.fft.rfft2(anp.outer(x, x), norm="forward"), "rfft2"),
        (lambda x: np.concatenate([x, x]), "autograd.numpy"),
    ],
)
def test_missing_rules_are_errors_that_name_the_function(f, named):
    for derived in (ENGINE.vjp_of, ENGINE.jvp_of):
        with pytest.raises(NotDifferentiableError, match=named):
            derived(flat(f), 1)((np.array([0.5, 0.7]), np.zeros(2)), ())


@pytest.mark.parametrize("name", ["interp", "convolve", "linalg.qr", "pi", "float64", "no_such", "linalg.no_such"])
def test_functions_without_a_rule_are_unknown(name):
    assert ENGINE.function(name) is None


@pytest.mark.parametrize(
    "name", "getitem astype add true_divide round where max linalg.solve fft.fft less sign concatenate vdot".split()
)
def test_functions_by_numpy_name(name):
    assert callable(ENGINE.function(name))


def change_first(x):
    x[0] = 1.0
    return x


def add_one(x):
    x += 1.0
    return x


@pytest.mark.parametrize("f", [change_first, add_one])
def test_a_function_cannot_write_to_values_on_the_tape(f):
    x = array([1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        overload_autograd(f)(x)
    assert x.tolist() == [1.0, 2.0]


# On the tape -----------------------------------------------------------------------------------------------------------


def test_taylor_away_from_the_recorded_point():
    f = overload_autograd(lambda x, *, a: {"out": anp.sum(anp.linalg.solve(anp.diag(x) + a, x) ** 3)})
    x = array([1.0, 2.0, 3.0])
    rf = ReducedFunctional(f(x, a=0.1 * SQUARE)["out"], Control(x))
    m, h = array([1.5, 2.5, 2.0]), array([0.3, -0.2, 0.5])
    rf(m)
    assert taylor_test(rf, m, h) > 1.95
    rf(m)
    rf.derivative()
    np.testing.assert_allclose(rf.hessian(h).numpy() @ h.numpy(), second_difference(rf, m, h), rtol=1e-4)


def second_difference(rf, m, h, t=1e-3):
    values = [float(rf(array(m.numpy() + s * t * h.numpy()))) for s in (1, 0, -1)]
    return (values[0] - 2 * values[1] + values[2]) / t**2


@pytest.mark.parametrize("checkpoint", [False, True])
def test_checkpoint_recomputes_and_gives_the_same(checkpoint):
    calls = []

    def f(x, y):
        calls.append(1)
        return {"a": anp.sum(anp.sin(x) * y), "b": x * 1j}

    n, x, y = 2, np.array([1.0, 2.0]), np.array([0.5, 3.0])
    plain = flat(lambda x, y: f(x, y))
    used = ENGINE.checkpoint(plain) if checkpoint else plain
    seeds = (np.array(2.0), np.array([1j, 2.0]))
    vjp = ENGINE.vjp_of(used, n)
    expected = (2.0 * np.cos(x) * y + np.array([1.0, 0.0]), 2.0 * np.sin(x))
    assert_close(vjp((x, y, *seeds), ()), expected, 1e-12)
    assert len(calls) == 1 + checkpoint
    assert_right_to_third_order(lambda *x: used(x, ()), x, y)


def test_called_under_autograd_it_just_runs(tape):
    f = overload_autograd(lambda x: anp.sum(x**3))
    x = np.array([1.0, 2.0])
    np.testing.assert_allclose(autograd.grad(f)(x), 3 * x**2)
    np.testing.assert_allclose(autograd.hessian(f)(x), np.diag(6 * x))
    assert tape.get_blocks() == []


def test_autograd_inside_a_function():
    f = overload_autograd(lambda x: anp.sum(autograd.grad(lambda z: anp.sum(z**4))(x) ** 2))
    x = array([1.0, 2.0])
    rf = ReducedFunctional(f(x), Control(x))
    np.testing.assert_allclose(rf.derivative().numpy(), 96 * np.array([1.0, 2.0]) ** 5)


def test_outputs_in_autograd_containers():
    f = overload_autograd(anp.linalg.eigh)
    a = array(np.diag([1.0, 2.0, 4.0]))
    w, v = f(a)
    assert w.shape == (3,)
    assert v.shape == (3, 3)
    total = overload_autograd(anp.sum)
    rf = ReducedFunctional(total(w), Control(a))
    np.testing.assert_allclose(rf.derivative().numpy(), np.eye(3), atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_dtypes_stay(dtype):
    f = overload_autograd(lambda x: anp.sum(anp.abs(x * np.float64(2.0)) ** 2))
    x = array(np.array([1.0, 2.0], dtype)[::-1])
    rf = ReducedFunctional(f(x), Control(x))
    assert rf.derivative().dtype == dtype


def test_nothing_warns_about_independent_outputs():
    x = array([1.0])
    f = overload_autograd(lambda x: np.ones(()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        local = ENGINE.vjp_of(lambda x, c: (np.ones(()),), 1)
        assert local((np.ones(1), np.ones(())), ())[0].tolist() == [0.0]
        assert float(f(x)) == 1.0


def test_threads_do_not_mix_their_derivatives():
    """Levels of tracing are taken in one thread while another one is in the middle of a nested trace."""
    barrier, found = threading.Barrier(4), []

    def f(x, c):
        barrier.wait(10.0)
        y = ENGINE.jvp_of(lambda z, c: (z[0] ** 3 * x[0],), 1)((x[0], np.ones(())), ())[1]
        return (y,)

    def work(k):
        found.append((k, float(ENGINE.vjp_of(f, 1)((np.array(float(k)), np.ones(())), ())[0])))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(k, pytest.approx(9.0 * k**2)) for k in range(1, 5)]


def test_an_exception_leaves_autograd_usable():
    def broken(x, c):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        ENGINE.vjp_of(broken, 1)((np.ones(1), np.ones(1)), ())
    assert autograd.grad(lambda x: autograd.grad(lambda y: x * y**2)(3.0) ** 2)(2.0) == pytest.approx(144.0)
