"""Transformations of programs: values, composition, what is recorded outside, and what is refused."""

import functools
import gc
import itertools
import math
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import engines
import numpy as np
import pytest

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    CapturedValueError,
    Control,
    NotDifferentiableError,
    NotLinearError,
    ReducedFunction,
    ReducedFunctional,
    annotate_tape,
    array,
    cvjp,
    get_working_tape,
    grad,
    hessian,
    hvp,
    jacfwd,
    jacrev,
    jvp,
    linear_adjoint,
    linearize,
    ndarray,
    push_tape,
    stop_annotating,
    taylor_test,
    to_adjfloat,
    value_and_grad,
    vjp,
)

all_engines = pytest.mark.parametrize("engine", engines.NAMES)
PAIRS = list(itertools.permutations(engines.NAMES, 2))
pairs = pytest.mark.parametrize(("first", "second"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
X = np.array([0.4, -1.2, 0.9])
H = np.array([-0.3, 0.8, 1.1])
V = np.array([1.0, -0.5, 0.7])
Z = np.array([0.4 - 0.3j, -0.8 + 0.5j])
DZ = np.array([0.7 + 0.2j, -0.1 - 0.9j])
A = np.array([[1.0 + 2.0j, -0.5j], [0.3, 2.0 - 1.0j], [1.0j, -1.0]])
close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)


@functools.cache
def function(engine, name):
    e = engines.namespace(engine)
    functions = {
        "sine": lambda x: e.sin(x),
        "exponential": lambda x: e.exp(x),
        "sum of squares": lambda x: e.sum(x * x),
        "product": lambda x, y: x * y,
        "square of the modulus": lambda z: e.real(z * e.conj(z)),
        "cube": lambda z: z * z * z,
    }
    return e.overload(functions[name], name=name)


# The values that users of JAX and SCICO know --------------------------------------------------------------------------


def test_gradient_of_tanh():
    assert float(grad(np.tanh)(0.2)) == pytest.approx(0.961043, abs=5e-7)


def test_jvp_of_the_sine():
    value, tangent = jvp(np.sin, (0.1,), (0.2,))
    assert float(value) == pytest.approx(0.09983342, abs=5e-9)
    assert float(tangent) == pytest.approx(0.19900084, abs=2e-8)


def test_linearized_sine_and_cosine():
    y, f_jvp = linearize(lambda x: 3.0 * np.sin(x) + np.cos(x / 2.0), 2.0)
    assert float(y) == pytest.approx(3.2681944, abs=1e-6)
    assert float(f_jvp(3.0)) == pytest.approx(-5.007528, abs=1e-6)
    assert float(f_jvp(4.0)) == pytest.approx(-6.676704, abs=1e-6)
    close(f_jvp.batched(np.array([3.0, 4.0])).numpy(), [float(f_jvp(3.0)), float(f_jvp(4.0))])


def test_vjp_of_sine_and_cosine():
    primals, f_vjp = vjp(lambda x, y: (np.sin(x), np.cos(y)), 0.5, 1.0)
    close([float(p) for p in primals], [np.sin(0.5), np.cos(1.0)])
    xbar, ybar = f_vjp((-0.7, 0.3))
    assert float(xbar) == pytest.approx(-0.61430776, abs=1e-7)
    assert float(ybar) == pytest.approx(-0.2524413, abs=1e-7)


def test_adjoint_of_half_a_difference():
    scalar = SimpleNamespace(shape=(), dtype=np.dtype(np.float32))
    x, y = linear_adjoint(lambda x, y: 0.5 * x - 0.5 * y, scalar, scalar)(1.0)
    assert (float(x), float(y)) == (0.5, -0.5)
    assert x.dtype == y.dtype == np.float32


# Gradients -------------------------------------------------------------------------------------------------------------


@pairs
def test_gradient_through_two_engines(first, second):
    """sum(sin(x)^2) of arrays of any engine; the gradient comes in the argument's engine."""
    f = lambda x: function(second, "sum of squares")(function(first, "sine")(x))
    for x in (X, array(X), engines.namespace(second).own(X)):
        value, gradient = value_and_grad(f)(x)
        assert isinstance(value, ndarray)
        assert isinstance(gradient, ndarray)
        assert gradient.engine == array(x).engine
        close(value.numpy(), np.sum(np.sin(X) ** 2))
        close(gradient.numpy(), np.sin(2 * X))
    assert grad(f)(X.astype(np.float32)).dtype == np.float32


def test_containers_several_arguments_and_auxiliary_data():
    def f(params, x, scale=1.0):
        loss = scale * (params["w"] * x[0] + params["b"][0]).sum()
        return loss, {"twice": 2 * loss, "note": "kept", "none": None}

    params, x = {"w": X, "b": [2.0]}, (H,)
    (gp, (gx,)), aux = grad(f, argnums=(0, 1), has_aux=True)(params, x, scale=3.0)
    close(gp["w"].numpy(), 3 * H)
    assert float(gp["b"][0]) == 9.0
    close(gx.numpy(), 3 * X)
    assert aux["note"] == "kept"
    assert aux["none"] is None
    assert float(aux["twice"]) == pytest.approx(6 * np.sum(X * H + 2.0))
    (value, aux), g = value_and_grad(f, argnums=-1, has_aux=True)(params, x)
    assert float(aux["twice"]) == 2 * float(value)
    close(g[0].numpy(), X)
    assert grad(lambda *x: x[0].sum(), argnums=())(X) == ()


def test_numbers_are_differentiated():
    for x in (3.0, np.float64(3.0), np.array(3.0), array(3.0), AdjFloat(3.0)):
        g = grad(lambda x: x**2)(x)
        assert isinstance(g, ndarray)
        assert (float(g), g.shape, g.dtype) == (6.0, (), np.float64)


def test_integers_where_they_are_allowed():
    f = lambda x, n: (x**2).sum() * n[0]
    gx, gn = grad(f, argnums=(0, 1), allow_int=True)(X, np.array([3, 4]))
    close(gx.numpy(), 6 * X)
    assert gn.shape == (2,)
    assert gn.dtype == np.dtype([("float0", np.void, 0)])
    (_, pull), n = vjp(f, X, np.array([3, 4])), np.array([3, 4])
    assert pull(1.0)[1].dtype == gn.dtype
    close(jvp(f, (X, n), (H, np.zeros(2, gn.dtype)))[1].numpy(), 6 * X @ H)


def test_outputs_that_are_constant():
    """What does not depend on the arguments has the derivative zero; the program is looked at once more for that."""
    assert float(grad(lambda x: 3.0)(2.0)) == 0.0
    value, tangent = jvp(lambda x: {"a": x * 2, "b": np.ones(2), "n": 7}, (X,), (H,))
    assert value["n"].dtype.kind == "i"
    assert tangent["n"].dtype == np.dtype([("float0", np.void, 0)])
    close(tangent["b"].numpy(), np.zeros(2))
    close(tangent["a"].numpy(), 2 * H)
    assert jacrev(lambda x: np.ones(2))(X).tolist() == np.zeros((2, 3)).tolist()


def test_an_output_that_is_an_argument():
    value, gradient = value_and_grad(lambda x: x)(2.0)
    assert (float(value), float(gradient)) == (2.0, 1.0)
    assert float(grad(grad(lambda x: x))(2.0)) == 0.0
    close(jacfwd(lambda x: (x, x))(X)[1].numpy(), np.eye(3))
    _, pull = vjp(lambda x: (x, x), X)
    close(pull((H, V))[0].numpy(), H + V)
    (doubled,) = pull.batched((np.stack([H, V]), np.stack([V, V])))
    close(doubled.numpy(), [H + V, 2 * V])


# Derivatives of derivatives --------------------------------------------------------------------------------------------


def test_perturbations_are_not_confused():
    assert float(grad(lambda x: x * grad(lambda y: x + y)(1.0))(2.0)) == 1.0
    assert float(grad(lambda x: x * grad(lambda y: x * y)(3.0))(2.0)) == 4.0
    assert float(grad(lambda x: x * jvp(lambda y: x + y, (1.0,), (1.0,))[1])(2.0)) == 1.0
    assert float(jvp(lambda x: x * grad(lambda y: x * y * y)(x), (3.0,), (1.0,))[1]) == 54.0  # d/dx 2 x^3
    # By z at y: 3 x y^4; by y at x: 12 x^4; by x: 48 x^3.
    assert float(grad(lambda x: grad(lambda y: grad(lambda z: x * y * y * z**3)(y))(x))(2.0)) == pytest.approx(384.0)


@all_engines
def test_three_levels(engine):
    """The third derivative of sum(sin(x)) along three directions, in every order of modes."""
    f = lambda x: function(engine, "sine")(x).sum()
    gradient = lambda x: grad(f)(x)
    forward = lambda x: jvp(f, (x,), (V,))[1]
    close(hvp(lambda x: (grad(f)(x) * V).sum(), (X,), (H,)).numpy(), -np.cos(X) * V * H)
    close(jvp(gradient, (X,), (H,))[1].numpy(), -np.sin(X) * H)
    close(grad(forward)(X).numpy(), -np.sin(X) * V)
    close(grad(lambda x: jvp(gradient, (x,), (H,))[1].sum())(X).numpy(), -np.cos(X) * H)
    close(jvp(grad(forward), (X,), (H,))[1].numpy(), -np.cos(X) * V * H)
    close(grad(lambda x: (grad(lambda y: (grad(f)(y) * V).sum())(x) * H).sum())(X).numpy(), -np.cos(X) * V * H)


@pairs
def test_a_program_of_a_gradient(first, second):
    """g(x) = sum (d/dx sum exp(sin x))^2, where another engine sums up, differentiated twice."""
    inner = lambda x: function(second, "exponential")(function(first, "sine")(x)).sum()
    outer = lambda x: function(second, "sum of squares")(grad(inner)(x))
    s, c = np.sin(X), np.cos(X)
    e = np.exp(s)
    d1, d2, d3 = c * e, (c * c - s) * e, (c**3 - 3 * s * c - c) * e
    close(grad(outer)(X).numpy(), 2 * d1 * d2)
    close(hvp(outer, (X,), (H,)).numpy(), 2 * (d2 * d2 + d1 * d3) * H)


def test_captured_values_are_differentiated_outside():
    """The inner program captures, and passes on by name, what the outer one is differentiated by."""

    def f(x, y):
        c = x * y
        inner = grad(lambda z, scale: (c * z * z).sum() * scale["s"])(x, scale={"s": y.sum()})
        return inner.sum()  # 2 sum(x^2 y) sum(y)

    gx, gy = grad(f, argnums=(0, 1))(X, H)
    close(gx.numpy(), 4 * X * H * H.sum())
    close(gy.numpy(), 2 * X**2 * H.sum() + 2 * np.sum(X**2 * H))


def test_linear_maps_inside_a_program():
    """Pull-backs and tangent maps that were made inside of a program, or outside of it, pass derivatives."""

    def f(x, v):
        _, pull = vjp(lambda y: np.sin(y) * x, x)
        _, push = linearize(lambda y: y**3, x)
        return (pull(v)[0] * push(v)).sum()  # sum v cos(x) x 3 x^2 v

    gx, gv = grad(f, argnums=(0, 1))(X, V)
    close(gx.numpy(), 3 * V**2 * (3 * X**2 * np.cos(X) - X**3 * np.sin(X)))
    close(gv.numpy(), 6 * V * np.cos(X) * X**3)
    _, pull = vjp(np.sin, X)
    close(grad(lambda v: (pull(v)[0] ** 2).sum())(V).numpy(), 2 * np.cos(X) ** 2 * V)
    _, push = linearize(np.sin, X)
    close(grad(lambda v: (push.batched(v) ** 2).sum())(np.stack([H, V])).numpy(), 2 * np.cos(X) ** 2 * [H, V])


# What is recorded outside ------------------------------------------------------------------------------------------------


def cubes(x):
    return (x**3).sum()


def test_the_working_tape_is_left_alone():
    tape, x = get_working_tape(), array(X)
    y, pull = vjp(cubes, x)
    _, push = linearize(cubes, X)
    for _ in range(2):
        (
            grad(cubes)(x),
            hessian(cubes)(x),
            jacfwd(np.sin)(X),
            hvp(cubes, (x,), (X,)),
            pull(1.0),
            push(array(H)),
            float(y),
        )
        linear_adjoint(lambda x: 2.0 * x, x)(x)
        grad(lambda x: (x * np.ones(3)).sum())(X) * 2.0  # plain arguments: constant for the tape
    assert [block for block in tape.get_blocks() if "multiply" not in str(block)] == []
    assert get_working_tape() is tape
    assert annotate_tape()


def test_after_an_error_everything_is_as_before():
    tape, x = get_working_tape(), array(X)

    def broken(x):
        y = x * 2.0
        raise ZeroDivisionError(str(y))

    for transform in (grad, jacfwd, hessian, lambda f: lambda x: vjp(f, x), lambda f: grad(lambda y: grad(f)(y).sum())):
        with stop_annotating(), pytest.raises(ZeroDivisionError):
            transform(broken)(x)
        with pytest.raises(ZeroDivisionError):
            transform(broken)(x)
        assert get_working_tape() is tape
        assert annotate_tape()
        assert tape.get_blocks() == []
    close(grad(cubes)(x).numpy(), 3 * X**2)


def test_annotation_that_is_off_stays_off():
    with stop_annotating():
        close(grad(cubes)(array(X)).numpy(), 3 * X**2)
        assert not annotate_tape()


RESULTS = {
    "gradient": (lambda x: grad(cubes)(x), 3 * X**2, 6 * X * H, 6 * H * V),
    "pull-back": (lambda x: vjp(np.sin, x)[1](V)[0], np.cos(X) * V, -np.sin(X) * V * H, -np.cos(X) * V * H * V),
    "tangent": (lambda x: jvp(np.sin, (x,), (V,))[1], np.cos(X) * V, -np.sin(X) * V * H, -np.cos(X) * V * H * V),
    "tangent map": (lambda x: linearize(np.sin, x)[1](x), np.cos(X) * X, None, None),
    "directions": (lambda x: linearize(np.sin, x)[1].batched(x[None])[0], np.cos(X) * X, None, None),
    "value": (lambda x: vjp(np.sin, x)[0], np.sin(X), np.cos(X) * H, -np.sin(X) * H * V),
    "Jacobian": (lambda x: jacrev(np.sin)(x).sum(0), np.cos(X), -np.sin(X) * H, -np.cos(X) * H * V),
    "columns": (lambda x: jacfwd(np.sin)(x).sum(0), np.cos(X), -np.sin(X) * H, -np.cos(X) * H * V),
    "Hessian": (lambda x: hessian(cubes)(x).sum(0), 6 * X, 6 * H, 0 * X),
    "Hessian action": (lambda x: hvp(cubes, (x,), (x,)), 6 * X**2, 12 * X * H, 12 * H * V),
    "auxiliary data": (
        lambda x: grad(lambda y: (y.sum(), {"s": np.sin(y)}), has_aux=True)(x)[1]["s"],
        np.sin(X),
        None,
        None,
    ),
    "linear adjoint": (lambda x: linear_adjoint(lambda v: v * np.sin(x), x)(x)[0], np.sin(X) * X, None, None),
    "captured": (lambda x: grad(lambda v: (v * np.sin(x)).sum())(V), np.sin(X), np.cos(X) * H, -np.sin(X) * H * V),
}


@pytest.mark.parametrize("warm", [False, True], ids=["new", "recorded before"])
@pytest.mark.parametrize("name", RESULTS)
def test_results_are_part_of_a_recording(name, warm):
    """A result that the recording goes on with is on the tape, with its derivatives, also away from the point."""
    f, value, tangent, second = RESULTS[name]
    x = array(X + 1.0)
    control = Control(x) if warm else None
    if warm:
        _ = x * 2.0
    result = f(x)
    rf = ReducedFunction(result * 1.0, control or Control(x))
    close(rf(X).numpy(), value)
    if tangent is not None:
        close(rf.jac_action(H).numpy(), tangent)
        close(rf.hess_action(H, V).numpy(), second)
    assert taylor_test(rf, X, H, v=V) > 1.9
    direct = ReducedFunction(f(x), Control(x))
    close(direct(X).numpy(), value)


def test_a_functional_of_values_and_gradients():
    """Value, auxiliary data and gradient of one call, used together, and the tape's own values among the captured ones."""
    x = array(X)
    scale = np.exp(x).sum()
    (value, aux), gradient = value_and_grad(lambda y: ((y**2).sum() * scale, y * scale), has_aux=True)(x)
    rf = ReducedFunctional((value * aux * gradient).sum(), Control(x))
    other = X - 0.3
    s = np.exp(other).sum()
    assert float(rf(other)) == pytest.approx((other**2).sum() * s * (other * s * 2 * other * s).sum())
    assert taylor_test(rf, array(other), array(H)) > 1.9
    assert taylor_test(rf, array(other), array(H), Hm=H @ rf.hessian(H).numpy()) > 2.9


def test_a_map_made_before_the_tape_moved():
    """Evaluations elsewhere neither move the point of a pull-back nor are moved by it."""
    x = array(X)
    c = np.sin(x)
    y, pull = vjp(lambda v: (v * c) ** 2, array(V))
    J = ReducedFunctional((y * c).sum(), Control(x))
    J(H)
    expected = J.derivative().numpy()
    with stop_annotating():
        close(pull(np.ones(3))[0].numpy(), 2 * V * np.sin(X) ** 2)
    close(J.derivative().numpy(), expected)
    taped = ReducedFunctional((pull(np.ones(3))[0] * V).sum(), Control(x))
    close(taped(H).numpy(), np.sum(2 * V**2 * np.sin(H) ** 2))
    close(taped.derivative().numpy(), 2 * V**2 * np.sin(2 * H))
    close(pull(np.ones(3))[0].numpy(), 2 * V * np.sin(X) ** 2)
    late, b = pull(np.ones(3))[0], array(H)
    J(H)  # moves the tape before the result is recorded
    of_b = ReducedFunctional((late * b).sum(), Control(b))
    assert float(of_b(V)) == pytest.approx(np.sum(2 * V**2 * np.sin(X) ** 2))


def test_captured_values_have_their_recorded_value():
    """A reduced function has moved the tape; a program that captures a value of it computes with the value itself."""
    x = array(X)
    c = x * 2.0
    ReducedFunction(c, Control(x))(H)
    close(grad(lambda v: (v * v * c).sum())(V).numpy(), 4 * V * X)
    with stop_annotating():
        close(grad(lambda v: (v * v * c).sum())(V).numpy(), 4 * V * X)


def test_seeds_that_are_recorded():
    """The pull-back of plain values is linear in a seed of the tape."""
    _, pull = vjp(np.sin, X)
    v = array(V)
    rf = ReducedFunction(pull(v)[0] * 1.0, Control(v))
    close(rf(H).numpy(), np.cos(X) * H)
    close(rf.adj_jac_action(X).numpy(), np.cos(X) * X)


def test_values_that_leave_a_program():
    kept = []

    def f(x):
        kept.append(x * 2.0)
        return (kept[-1] ** 2).sum()

    x = array(X)
    gradient = grad(f)(x)
    rf = ReducedFunction(kept[0] * gradient, Control(x))  # the program still exists, and moves to the tape
    close(rf(H).numpy(), 16 * H**2)
    close(rf.jac_action(V).numpy(), 32 * H * V)
    grad(f)(x)
    gc.collect()
    close(kept[1].numpy(), 2 * X)
    with pytest.raises(CapturedValueError, match="has_aux=True"):
        kept[1] * 3.0
    # Inside of another program that is no question of time.
    close(grad(lambda x: (grad(f)(x) * 0.0 + kept[-1]).sum())(X).numpy(), [2.0, 2.0, 2.0])


@pytest.mark.parametrize("applied", ["linearize", "vjp"])
def test_linear_maps_that_leave_a_program(applied):
    """A map applied after its program has ended depends on what the program captured, or is an error."""
    kept = []

    def f(x):
        program = lambda z: z * z * x * b
        pull, push = vjp(program, x * 1.0)[1], linearize(program, x * 1.0)[1]
        kept.append(push if applied == "linearize" else lambda t: pull(t)[0])
        return x * b * x

    b = array(2.0)
    gradient = grad(f)(2.0)
    result = kept[0](1.0)  # 8 b
    J = ReducedFunctional(result * result, Control(b))
    close(J.derivative().numpy(), 256.0)
    close(J(array(5.0)).numpy(), 1600.0)
    del gradient
    b = array(2.0)
    grad(f)(2.0)
    gc.collect()
    with pytest.raises(CapturedValueError, match="has_aux=True"):
        kept[1](1.0) * 3.0


def test_nothing_is_kept_alive():
    """Results keep what they may need to be recorded, and give it free without waiting for the collector."""
    gc.collect()
    gc.disable()
    try:
        data = []

        def f(x):
            y = np.sin(x)
            data.append(weakref.ref(y.value))
            return (y**2).sum()

        value, gradient = value_and_grad(f)(array(X))
        assert data[0]() is not None
        del value, gradient
        assert data[0]() is None
        grad(f)(X)
        jacfwd(f)(array(X)).numpy()
        assert data[1]() is None
        assert data[2]() is None
    finally:
        gc.enable()


def test_threads_transform_by_themselves():
    """Each thread has programs of its own; derivatives of derivatives in all of them at once."""

    def work(k):
        x = X + 0.1 * k
        f = lambda x: function("autograd", "sine")(x).sum()
        for _ in range(5):
            close(grad(lambda x: (grad(f)(x) ** 2).sum())(x).numpy(), -np.sin(2 * x))
            close(hessian(f)(array(x)).numpy(), np.diag(-np.sin(x)))
        return k

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


# Linear maps -----------------------------------------------------------------------------------------------------------


@all_engines
def test_maps_of_no_direction_at_all(engine):
    f = function(engine, "sine")
    none = np.zeros((0, 3))
    assert linearize(f, X)[1].batched(none).shape == (0, 3)
    assert vjp(f, X)[1].batched(none)[0].shape == (0, 3)
    assert jacfwd(lambda x: linearize(f, x)[1].batched(none))(X).shape == (0, 3, 3)


def test_linearize_runs_the_program_once():
    runs = []

    def f(x, params):
        runs.append(1)
        return {"y": np.sin(x) * params["a"], "z": (x * x).sum()}

    params = {"a": 2.0}
    y, f_jvp, aux = linearize(lambda x, p: (f(x, p), "note"), X, params, has_aux=True)
    assert aux == "note"
    close(y["y"].numpy(), 2 * np.sin(X))
    directions, da = np.stack([H, V, X]), np.array([1.0, -1.0, 0.5])
    one_by_one = [f_jvp(d, {"a": a}) for d, a in zip(directions, da, strict=True)]
    for (d, a), found in zip(zip(directions, da, strict=True), one_by_one, strict=True):
        close(found["y"].numpy(), 2 * np.cos(X) * d + a * np.sin(X))
        close(found["z"].numpy(), 2 * X @ d)
    many = f_jvp.batched(directions, {"a": da})
    for key in ("y", "z"):
        close(many[key].numpy(), [found[key].numpy() for found in one_by_one])
    assert runs == [1]


def test_many_cotangents_at_once():
    _, pull = vjp(lambda x, y: (np.sin(x) * y, (x * y).sum()), X, H)
    rows, numbers = np.stack([V, X]), np.array([2.0, -1.0])
    by_x, by_y = pull.batched((rows, numbers))
    for k in range(2):
        close(by_x.numpy()[k], rows[k] * np.cos(X) * H + numbers[k] * H)
        one = pull((rows[k], numbers[k]))
        close(by_x.numpy()[k], one[0].numpy())
        close(by_y.numpy()[k], one[1].numpy())


def test_adjoints_of_linear_programs():
    M = np.arange(6.0).reshape(2, 3)
    (x,) = linear_adjoint(lambda x: M @ x, np.zeros(3))(np.array([1.0, -1.0]))
    close(x.numpy(), M.T @ [1.0, -1.0])
    runs = []

    def f(d):
        runs.append(1)
        return {"sum": d["a"] + 2.0 * d["b"]}

    (adjoint,) = linear_adjoint(f, {"a": X, "b": X})({"sum": H})
    assert runs == [1]
    close(adjoint["b"].numpy(), 2 * H)
    for wrong in (lambda x: x * x, lambda x: x + 1.0, lambda x: np.ones(3)):
        with pytest.raises(NotLinearError, match="takes a linear function"):
            linear_adjoint(wrong, X)


def test_a_hessian_of_a_scalar_that_nobody_records_takes_one_run_of_the_program():
    runs = []

    def f(x, y):
        runs.append(1)
        return (np.sin(x) * y).sum(), {"y": y}

    blocks, aux = hessian(f, argnums=(0, 1), has_aux=True)(X, H)
    assert runs == [1]
    close(aux["y"], H)
    close(blocks[0][0].numpy(), np.diag(-np.sin(X) * H))
    close(blocks[0][1].numpy(), np.diag(np.cos(X)))
    close(blocks[1][0].numpy(), np.diag(np.cos(X)))
    close(blocks[1][1].numpy(), np.zeros((3, 3)))


def test_a_hessian_by_plain_numbers_is_recorded_where_the_program_captures_a_taped_value():
    a = array(2.0)
    J = ReducedFunctional(hessian(lambda x: (a * x**3).sum())(X).sum(), Control(a))
    close(J(array(3.0)), 18 * X.sum())
    close(J.derivative(), 6 * X.sum())


# Complex numbers -------------------------------------------------------------------------------------------------------


def test_gradient_of_a_least_squares_functional():
    """The gradient of 0.5 |A x|^2 is A^H A x."""
    close(grad(lambda x: 0.5 * (abs(A @ x) ** 2).sum())(Z).numpy(), A.conj().T @ A @ Z)


@all_engines
def test_complex_gradients(engine):
    f = lambda z: function(engine, "square of the modulus")(z).sum()
    close(grad(f)(Z).numpy(), 2 * Z)
    close(hvp(f, (Z,), (DZ,)).numpy(), 2 * DZ)
    g = lambda z: (function(engine, "square of the modulus")(z) ** 2).sum()
    close(jvp(grad(g), (Z,), (DZ,))[1].numpy(), 8 * (Z.conj() * DZ).real * Z + 4 * abs(Z) ** 2 * DZ)


@all_engines
def test_holomorphic_functions(engine):
    """For f = z^3 the Jacobian is diag(3 z^2); gradients and rows are conjugate, columns and the Hessian are not."""
    f = function(engine, "cube")
    close(jacfwd(f, holomorphic=True)(Z).numpy(), np.diag(3 * Z**2))
    close(jacrev(f, holomorphic=True)(Z).numpy(), np.diag(3 * Z**2).conj())
    close(grad(lambda z: f(z).sum(), holomorphic=True)(Z).numpy(), (3 * Z**2).conj())
    close(hessian(lambda z: f(z).sum(), holomorphic=True)(Z).numpy(), np.diag(6 * Z))


def test_adjoints_of_complex_programs():
    """The derivative of A x is A, and its adjoint A^H, whatever it is called."""
    v = np.array([1.0 - 1.0j, 0.5, 2.0j])
    expected = A.conj().T @ v
    f = lambda x: A @ x
    value, pull = vjp(f, Z)
    close(value.numpy(), A @ Z)
    close(pull(v)[0].numpy(), expected)
    close(linear_adjoint(f, Z)(v)[0].numpy(), expected)
    primals_out, conj_vjp = cvjp(f, Z)
    close(primals_out.numpy(), A @ Z)
    close(conj_vjp(v)[0].numpy(), expected)
    close(jvp(f, (Z,), (DZ,))[1].numpy(), A @ DZ)
    # Of a function of real numbers the adjoint is real.
    (real,) = vjp(lambda x: A @ x, np.array([1.0, 2.0]))[1](v)
    assert real.dtype == np.float64
    close(real.numpy(), expected.real)


def test_cvjp_of_one_argument():
    f = lambda x, y, k: np.conj(x) * y * k
    w, v = np.array([2.0 - 1.0j, 1.0j]), np.array([1.0, 1.0j])
    _, by_y = cvjp(f, Z, w, 2.0, jidx=1)
    assert len(by_y(v)) == 1
    close(by_y(v)[0].numpy(), 2 * Z * v)
    _, by_all = cvjp(f, Z, w, 2.0)
    by_x, also, by_k = by_all(v)
    close(also.numpy(), 2 * Z * v)
    close(by_x.numpy(), 2 * w * v.conj())
    close(by_k.numpy(), np.sum((Z.conj() * w).conj() * v).real)
    with pytest.raises(ArgumentValueError, match="jidx"):
        cvjp(f, Z, w, 2.0, jidx=3)


def test_real_results_of_complex_arguments():
    """The rows of jacrev are gradients, also of several functions that are not holomorphic."""
    f = lambda z: np.stack([(abs(z) ** 2).sum(), z[0].real * z[1].imag])
    rows = jacrev(f)(Z).numpy()
    close(rows, [2 * Z, [Z[1].imag, 1j * Z[0].real]])
    close(jacfwd(lambda x: np.exp(1j * x))(X).numpy(), np.diag(1j * np.exp(1j * X)))


# AdjFloat --------------------------------------------------------------------------------------------------------------


def with_adjfloat(x):
    return to_adjfloat((x * x).sum()) ** 1.5


def test_programs_with_adjfloats():
    """Their derivatives end with the second one."""
    x, size = array(X), X @ X
    for argument in (X, x):
        close(grad(with_adjfloat)(argument).numpy(), 3 * size**0.5 * X)
        expected = 3 * size**0.5 * np.eye(3) + 3 * size**-0.5 * np.outer(X, X)
        close(hvp(with_adjfloat, (argument,), (H,)).numpy(), expected @ H)
        close(hessian(with_adjfloat)(argument).numpy(), expected)
        close(jacfwd(with_adjfloat)(argument).numpy(), 3 * size**0.5 * X)
    value, pull = vjp(with_adjfloat, x)
    assert isinstance(value, ndarray)
    rf = ReducedFunctional(value * 2.0, Control(x))
    assert float(rf(H)) == pytest.approx(2 * (H @ H) ** 1.5)
    close(rf.derivative().numpy(), 6 * (H @ H) ** 0.5 * H)
    with stop_annotating():
        close(pull(1.0)[0].numpy(), 3 * size**0.5 * X)
    close(rf.derivative().numpy(), 6 * (H @ H) ** 0.5 * H)
    for derivative in (grad(with_adjfloat)(x), hvp(with_adjfloat, (x,), (H,)), hessian(with_adjfloat)(x)):
        before = list(get_working_tape().get_blocks())
        with pytest.raises(NotDifferentiableError, match="AdjFloat"):
            derivative * 2.0
        assert get_working_tape().get_blocks() == before
    with pytest.raises(NotDifferentiableError, match="AdjFloat"):
        grad(lambda x: grad(with_adjfloat)(x).sum())(X)


def test_captured_adjfloats():
    a, x = AdjFloat(2.0), array(X)
    J = ReducedFunctional(a * 3.0, Control(a))
    J(AdjFloat(5.0))
    program = lambda x: ((x * a).sum(), to_adjfloat(x.sum()) * a)[0]
    close(grad(program)(x).numpy(), [2.0, 2.0, 2.0])
    arithmetic = lambda x: to_adjfloat(x.sum()) * a
    with stop_annotating():
        close(grad(arithmetic)(x).numpy(), [2.0, 2.0, 2.0])
    value, _ = vjp(arithmetic, x)
    rf = ReducedFunctional(value * 1.0, Control(a))
    assert float(rf(AdjFloat(3.0))) == pytest.approx(3 * X.sum())
    assert rf.derivative() == pytest.approx(X.sum())


# What is refused -------------------------------------------------------------------------------------------------------


def test_what_leaves_the_tape_is_refused():
    for f in (lambda x: math.sin(x[0]), lambda x: float(x[0]) ** 2, lambda x: array(np.sin(x.numpy()).sum())):
        for transform in (grad, jacfwd, jacrev, hessian):
            with pytest.raises(NotDifferentiableError, match="not computed on the tape"):
                transform(f)(X)
    with pytest.raises(NotDifferentiableError, match=r"result\['b'\]"):
        jvp(lambda x: {"a": x, "b": x.numpy() * 2}, (X,), (H,))


MISUSE = {
    "argument out of range": (lambda: grad(cubes, argnums=1)(X), ArgumentValueError, "argnums=1.*1 positional"),
    "argument by name": (lambda: grad(lambda x: x)(x=1.0), ArgumentValueError, "0 positional"),
    "argnums of a wrong type": (lambda: grad(cubes, argnums="x")(X), ArgumentTypeError, "int or a sequence"),
    "no function": (lambda: vjp(3.0, X), ArgumentTypeError, "takes a function"),
    "a vector result": (lambda: grad(np.sin)(X), NotDifferentiableError, r"float64\[3\].*jacrev"),
    "one entry": (lambda: grad(lambda x: x[:1])(X), NotDifferentiableError, r"float64\[1\]"),
    "a tuple of scalars": (lambda: grad(lambda x: (x.sum(),))(X), NotDifferentiableError, r"result\[0\]"),
    "nothing": (lambda: grad(lambda x: None)(X), NotDifferentiableError, "no array"),
    "an integer argument": (lambda: grad(lambda x: x * 1.0)(3), ArgumentTypeError, "int64.*allow_int"),
    "integers": (lambda: jacfwd(np.sin)(np.arange(3)), ArgumentTypeError, r"args\[0\] is int64\[3\]"),
    "a text": (lambda: grad(lambda d: d["x"])({"x": 1.0, "name": "a"}), ArgumentTypeError, r"args\[0\]\['name'\].*str"),
    "a text as result": (lambda: vjp(lambda x: (x, "a"), X), ArgumentTypeError, r"result\[1\].*has_aux=True"),
    "an integer result": (lambda: jacrev(lambda x: np.argmax(x))(X), ArgumentTypeError, "real results.*int64"),
    "a complex result": (lambda: grad(lambda z: z.sum())(Z), ArgumentTypeError, "holomorphic=True"),
    "complex columns": (lambda: jacfwd(np.sin)(Z), ArgumentTypeError, "holomorphic=True"),
    "a complex Hessian": (lambda: hessian(lambda z: (abs(z) ** 2).sum())(Z), ArgumentTypeError, "holomorphic=True"),
    "holomorphic of real": (lambda: grad(cubes, holomorphic=True)(X), ArgumentTypeError, "complex arguments.*float64"),
    "holomorphic to real": (
        lambda: jacrev(lambda z: abs(z), holomorphic=True)(Z),
        ArgumentTypeError,
        "complex results.*float64",
    ),
    "not holomorphic": (
        lambda: grad(lambda z: (abs(z) ** 2).sum() + 0j, holomorphic=True)(Z),
        NotDifferentiableError,
        "abs, conj",
    ),
    "not holomorphic, by columns": (lambda: jacfwd(np.conj, holomorphic=True)(Z), NotDifferentiableError, "abs, conj"),
    "no second derivative": (
        lambda: hessian(lambda z: np.conj((z**3).sum()), holomorphic=True)(Z),
        NotDifferentiableError,
        "abs, conj",
    ),
    "no pair": (lambda: grad(cubes, has_aux=True)(X), ArgumentTypeError, "pair.*ndarray"),
    "a triple": (lambda: vjp(lambda x: (x, 1, 2), X, has_aux=True), ArgumentTypeError, "length 3"),
    "primals not listed": (lambda: jvp(np.sin, X, (H,)), ArgumentTypeError, "primals must be a tuple"),
    "other containers": (lambda: jvp(np.sin, (X,), ([H],)), ArgumentTypeError, r"tangents\[0\] must be a value and"),
    "a missing direction": (
        lambda: jvp(lambda d: d["a"] * d["b"], ({"a": X, "b": X},), ({"a": H},)),
        ArgumentTypeError,
        r"of the primals.*: tangents\[0\]\['b'\] is missing\. Give zeros",
    ),
    "a direction of another name": (
        lambda: linearize(lambda d: d["a"], {"a": X})[1]({"c": H}),
        ArgumentTypeError,
        r"of the arguments.*tangents\[0\]\['a'\] is missing, tangents\[0\]\['c'\] has no counterpart",
    ),
    "no direction": (
        lambda: hvp(lambda x, y: (x * y).sum(), (X, X), (H, None)),
        ArgumentTypeError,
        "a value and is None",
    ),
    "a list of cotangents": (
        lambda: vjp(lambda x: {"y": (x, x)}, X)[1]({"y": [X, X]}),
        ArgumentTypeError,
        r"of the result.*: cotangent\['y'\] must be tuple and is list\.",
    ),
    "many missing cotangents": (
        lambda: vjp(lambda x: [x] * 9, X)[1]([X]),
        ArgumentTypeError,
        r"cotangent\[1\] is missing.*cotangent\[5\] is missing and 3 more",
    ),
    "another order": (
        lambda: jvp(lambda d: d["a"], (OrderedDict(a=X, b=X),), (OrderedDict(b=H, a=H),)),
        ArgumentTypeError,
        r"tangents\[0\] must be PyTreeSpec\(OrderedDict",
    ),
    "another shape": (lambda: jvp(np.sin, (X,), (H[:2],)), ArgumentValueError, r"tangents\[0\].*\(2,\)"),
    "a complex direction": (lambda: jvp(np.sin, (X,), (1j * H,)), ArgumentTypeError, "real"),
    "a moving integer": (lambda: jvp(lambda n, x: x, (3, 1.0), (1.0, 1.0)), ArgumentTypeError, r"tangents\[0\].*vary"),
    "a cotangent's containers": (lambda: vjp(np.sin, X)[1]((X,)), ArgumentTypeError, "be a value and is tuple"),
    "a cotangent's shape": (lambda: vjp(np.sin, X)[1](1.0), ArgumentValueError, "cotangent"),
    "directions without an axis": (lambda: linearize(np.sin, X)[1].batched(H), ArgumentValueError, "leading axis"),
    "axes of two lengths": (
        lambda: linearize(np.add, X, X)[1].batched(np.ones((2, 3)), np.ones((4, 3))),
        ArgumentValueError,
        "leading axis",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    call, error, message = MISUSE[name]
    tape = get_working_tape()
    with pytest.raises(error, match=message):
        call()
    assert get_working_tape() is tape
    assert annotate_tape()


def test_values_of_an_engines_own_differentiation():
    """An array that JAX or PyTorch is differentiating would be cut off."""
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")
    with pytest.raises(ArgumentTypeError, match="jax's own"):
        jax.grad(lambda x: grad(cubes)(x).value.sum())(X)
    with pytest.raises(ArgumentTypeError, match="torch's own"):
        grad(cubes)(torch.ones(3, requires_grad=True))
    with push_tape():
        close(grad(cubes)(torch.ones(3)).numpy(), [3.0, 3.0, 3.0])
