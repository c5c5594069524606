"""Derivatives by hand of programs that span engines, to third order, and values that pass no derivative."""

import functools

import engines
import jax
import numpy as np
import pytest

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    CapturedValueError,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    UnsupportedError,
    array,
    compute_gradient,
    custom_jvp,
    custom_vjp,
    get_working_tape,
    grad,
    hessian,
    hvp,
    jacfwd,
    jacrev,
    jvp,
    stop_annotating,
    stop_gradient,
    taylor_test,
    to_adjfloat,
    value_and_grad,
    verify,
    vjp,
)

all_engines = pytest.mark.parametrize("engine", engines.NAMES)
X = np.array([0.4, -1.2, 0.9])
Y = np.array([1.5, -0.7, 0.3])
H = np.array([-0.3, 0.8, 1.1])
V = np.array([1.0, -0.5, 0.7])
close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)


def sine(engine):
    e = engines.namespace(engine)
    return e.overload(lambda x: e.sin(x))


def forward(engine="autograd"):
    """sin(x) y, whose derivative by x is said to be twice what it is."""
    sin = sine(engine)

    @custom_jvp
    def f(x, y):
        return sin(x) * y

    @f.defjvp
    def f_jvp(primals, tangents):
        (x, y), (dx, dy) = primals, tangents
        return f(x, y), 2.0 * np.cos(x) * dx * y + sin(x) * dy

    return f


def reverse(engine="autograd"):
    """The same by a rule for cotangents."""
    sin = sine(engine)

    @custom_vjp
    def f(x, y):
        return sin(x) * y

    def f_fwd(x, y):
        return f(x, y), (np.cos(x), sin(x), y)

    def f_bwd(residuals, g):
        cos_x, sin_x, y = residuals
        return 2.0 * cos_x * g * y, sin_x * g

    f.defvjp(f_fwd, f_bwd)
    return f


both = pytest.mark.parametrize("make", [forward, reverse], ids=["custom_jvp", "custom_vjp"])


@all_engines
@both
def test_the_rule_is_used_in_every_mode(make, engine):
    f = make(engine)
    close(f(X, Y).numpy(), np.sin(X) * Y)
    gx, gy = grad(lambda x, y: (f(x, y) * V).sum(), (0, 1))(X, Y)
    close(gx.numpy(), 2 * np.cos(X) * Y * V)
    close(gy.numpy(), np.sin(X) * V)
    value, tangent = jvp(f, (X, Y), (H, V))
    close(value.numpy(), np.sin(X) * Y)
    close(tangent.numpy(), 2 * np.cos(X) * Y * H + np.sin(X) * V)
    by_x, by_y = vjp(f, X, Y)[1](V)
    close(by_x.numpy(), 2 * np.cos(X) * Y * V)
    close(by_y.numpy(), np.sin(X) * V)
    for transform in (jacfwd, jacrev):
        close(transform(f)(X, Y).numpy(), np.diag(2 * np.cos(X) * Y))


@both
def test_higher_derivatives_are_those_of_the_rule(make):
    """By x: 2 cos(x) y, then -2 sin(x) y, then -2 cos(x) y: the rule is a program like any other.

    Where a rule calls the function itself again, that is by the rule once more.
    """
    f = make()
    g = lambda x: f(x, Y).sum()
    close(hvp(g, (X,), (H,)).numpy(), -2 * np.sin(X) * Y * H)
    close(hessian(g)(X).numpy(), np.diag(-2 * np.sin(X) * Y))
    close(jacrev(grad(g))(X).numpy(), np.diag(-2 * np.sin(X) * Y))
    third = jacfwd(lambda x: hvp(g, (x,), (V,)))(X).numpy()
    close(third, np.diag(-2 * np.cos(X) * Y * V))
    close(grad(lambda x: (grad(g)(x) ** 2).sum())(X).numpy(), -8 * np.sin(X) * np.cos(X) * Y**2)


@both
def test_on_an_ordinary_tape(make):
    """Recorded, replayed elsewhere, and differentiated to second order, also where x enters in two ways."""
    f = make()
    x = array(X)
    rf = ReducedFunction(f(x, x * 2.0), Control(x))
    other = X - 0.3
    close(rf(other).numpy(), np.sin(other) * 2 * other)
    slope = 4 * np.cos(other) * other + 2 * np.sin(other)
    close(rf.jac_action(H).numpy(), slope * H)
    close(rf.adj_jac_action(V).numpy(), slope * V)
    # d/dx [2 cos(x) y v + 2 sin(x) v] with y = 2 x, each factor as its rule or NumPy has it.
    close(rf.hess_action(H, V).numpy(), (-4 * np.sin(other) * other + 6 * np.cos(other)) * H * V)
    close(rf.jac_matrix().numpy(), np.diag(slope))
    gradient = compute_gradient((f(x, x * 2.0) * V).sum(), Control(x), record=True)
    close(gradient.numpy(), (4 * np.cos(X) * X + 2 * np.sin(X)) * V)
    recorded = ReducedFunction(gradient, Control(x))
    close(recorded(other).numpy(), slope * V)
    close(recorded.jac_action(H).numpy(), (-4 * np.sin(other) * other + 6 * np.cos(other)) * H * V)
    assert get_working_tape().get_blocks()


def test_right_rules_pass_the_taylor_test():
    @custom_vjp
    def norm(state, k):
        return {"n": np.sqrt((state["a"] ** 2).sum() + (state["b"][0] * k) ** 2), "k": k}

    def fwd(state, k):
        out = norm(state, k)
        return out, (state, k, out["n"])

    def bwd(residuals, ct):
        state, k, n = residuals
        b = state["b"][0]
        return {"a": state["a"] / n * ct["n"], "b": [b * k**2 / n * ct["n"]]}, b**2 * k / n * ct["n"] + ct["k"]

    norm.defvjp(fwd, bwd)
    a, b, k = array(X), array(0.7), AdjFloat(1.3)
    out = norm({"a": a, "b": [b]}, k)
    J = ReducedFunctional(out["n"] ** 2 * out["k"], [Control(a), Control(b), Control(k)])
    assert verify(J, [a, b, k]).passed
    h = [array(H), array(0.3), AdjFloat(-0.4)]
    assert taylor_test(J, [a, b, k], h) > 1.9


def test_one_rule_for_each_argument():
    @custom_jvp
    def f(x, y, k):
        return np.sin(x) * y + k

    f.defjvps(lambda dx, value, x, y, k: np.cos(x) * dx * y, lambda dy, value, x, y, k: (value - k) / y * dy, None)
    gx, gy, gk = grad(lambda *args: f(*args).sum(), (0, 1, 2))(X, Y, 2.0)
    close(gx.numpy(), np.cos(X) * Y)
    close(gy.numpy(), np.sin(X))
    assert float(gk) == 0.0
    with pytest.raises(ArgumentValueError, match="nondiff_argnums"):
        custom_jvp(lambda n, x: x, nondiff_argnums=0).defjvps(None, None)


def forward_rule(custom):
    f = custom(lambda x: x**2)
    f.defjvp(lambda primals, tangents: (primals[0] ** 2 + 1.0, 2.0 * primals[0] * tangents[0]))
    return f


def reverse_rule(custom):
    f = custom(lambda x: x**2)
    f.defvjp(lambda x: (x**2 + 1.0, x), lambda x, ct: (2.0 * x * ct,))
    return f


@pytest.mark.parametrize(
    ("make", "ours", "theirs"),
    [(forward_rule, custom_jvp, jax.custom_jvp), (reverse_rule, custom_vjp, jax.custom_vjp)],
)
def test_the_value_is_the_rules_where_it_is_differentiated_as_in_jax(make, ours, theirs):
    f, expected = make(ours), make(theirs)
    assert float(f(3.0)) == float(expected(3.0)) == 9.0
    for found, known in (
        (value_and_grad(f)(3.0), jax.value_and_grad(expected)(3.0)),
        (value_and_grad(lambda x: f(2.0) * f(x))(3.0), jax.value_and_grad(lambda x: expected(2.0) * expected(x))(3.0)),
        ([vjp(f, 3.0)[0]], [jax.vjp(expected, 3.0)[0]]),
        ([grad(grad(f))(3.0)], [jax.grad(jax.grad(expected))(3.0)]),
    ):
        np.testing.assert_allclose([float(v) for v in found], [float(v) for v in known], rtol=1e-6)
    x = array(3.0)
    J = ReducedFunctional(f(x) * x, Control(x))
    assert float(J(array(2.0))) == 10.0
    assert float(J.derivative()) == 13.0
    assert taylor_test(J, x, array(0.5)) > 1.9


def test_arguments_that_are_not_differentiated():
    @functools.partial(custom_jvp, nondiff_argnums=(0, 2))
    def apply(g, x, n=2, scale=3.0):
        return g(x) ** n * scale

    @apply.defjvp
    def rule(g, n, primals, tangents):
        (x, scale), (dx, dscale) = primals, tangents
        y = g(x)
        return apply(g, x, n, scale), n * y ** (n - 1) * scale * dx + y**n * dscale

    close(grad(lambda x: apply(np.sin, x).sum())(X).numpy(), 6 * np.sin(X))
    close(grad(lambda x: apply(np.sin, x, scale=1.0, n=3).sum())(X).numpy(), 3 * np.sin(X) ** 2)

    @functools.partial(custom_vjp, nondiff_argnums=(1,))
    def power(x, n):
        return x**n

    power.defvjp(lambda x, n: (x**n, x), lambda n, x, ct: (10.0 * n * x ** (n - 1) * ct,))
    close(grad(lambda x: power(x, 3).sum())(X).numpy(), 30 * X**2)
    with pytest.raises(ArgumentTypeError, match="nondiff_argnums holds a taped value"):
        grad(lambda x: power(x, x).sum())(X)


def test_none_is_zero():
    @custom_vjp
    def f(x, y):
        return x * y, x

    f.defvjp(lambda x, y: (f(x, y), y), lambda y, ct: (ct[0] * y, None))
    gx, gy = grad(lambda x, y: f(x, y)[0].sum(), (0, 1))(X, Y)
    close(gx.numpy(), Y)
    close(gy.numpy(), 0 * Y)


def test_complex_rules():
    """The rule of |z|^2: its cotangent is 2 z times a real one."""

    @custom_vjp
    def f(z):
        return abs(z) ** 2

    f.defvjp(lambda z: (f(z), z), lambda z, ct: (2.0 * z * ct,))
    z = np.array([0.4 - 0.3j, -0.8 + 0.5j])
    d = np.array([0.7 + 0.2j, -0.1 - 0.9j])
    close(grad(lambda z: f(z).sum())(z).numpy(), 2 * z)
    close(jvp(f, (z,), (d,))[1].numpy(), 2 * (z.conj() * d).real)
    close(hvp(lambda z: f(z).sum(), (z,), (d,)).numpy(), 2 * d)


def test_a_gradient_that_is_clipped():
    """What such rules are for: a derivative that is not the function's own."""

    @custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, None), lambda _, ct: (np.clip(ct, -1.0, 1.0),))
    close(grad(lambda x: (3.0 * V * clipped(x)).sum())(X).numpy(), np.clip(3 * V, -1, 1))


def test_residuals_belong_to_their_point():
    f = reverse()
    x = array(X)
    f(x, Y)
    rules = get_working_tape().get_blocks()[-1].rules
    with stop_annotating():
        close(rules.adjoints([array(H)], [array(V)])[0].numpy(), 2 * np.cos(H) * Y * V)
        close(rules.adjoints([array(X)], [array(V)])[0].numpy(), 2 * np.cos(X) * Y * V)


# What is refused -------------------------------------------------------------------------------------------------------


def test_misuse():
    with pytest.raises(ArgumentTypeError, match="takes a function"):
        custom_jvp(nondiff_argnums=(0,), fun=None)
    with pytest.raises(NotDifferentiableError, match=r"f\.defjvp"):
        _named(custom_jvp)(X)
    with pytest.raises(NotDifferentiableError, match="defvjp"):
        _named(custom_vjp)(X)
    with pytest.raises(UnsupportedError, match="symbolic_zeros"):
        _named(custom_jvp).defjvp(lambda p, t: (p, t), symbolic_zeros=True)


def _named(kind):
    def f(x):
        return x * 2.0

    return kind(f)


WRONG = {
    "no pair": (lambda p, t: t[0], "pair of value and tangent"),
    "containers": (lambda p, t: (p[0], (t[0],)), "tangents in the containers"),
    "shape": (lambda p, t: (p[0], t[0].sum()), r"shape \(\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tangents(name):
    rule, message = WRONG[name]
    f = _named(custom_jvp)
    f.defjvp(rule)
    before = get_working_tape().get_blocks()[:]
    with pytest.raises(ArgumentValueError, match=message):
        jvp(f, (X,), (H,))
    assert get_working_tape().get_blocks() == before


@pytest.mark.parametrize(
    ("bwd", "message"),
    [
        (lambda r, ct: ct, "1 differentiated"),
        (lambda r, ct: (ct, ct), "2 entries"),
        (lambda r, ct: (ct.sum(),), "shape"),
    ],
)
def test_wrong_cotangents(bwd, message):
    f = _named(custom_vjp)
    f.defvjp(lambda x: (x * 2.0, None), bwd)
    with pytest.raises(ArgumentValueError, match=message):
        grad(lambda x: f(x).sum())(X)
    f.defvjp(lambda x: x * 2.0, lambda r, ct: (ct,))
    with pytest.raises(ArgumentValueError, match="pair of value and residuals"):
        grad(lambda x: f(x).sum())(X)


def test_rules_that_lose_a_derivative():
    """A rule that is not linear cannot be transposed, and one that leaves the tape not be differentiated."""
    f = _named(custom_jvp)
    f.defjvp(lambda p, t: (f(p[0]), t[0] * t[0]))
    with pytest.raises(NotDifferentiableError, match="its jvp returns must be linear"):
        grad(lambda x: f(x).sum())(X)
    g = _named(custom_vjp)
    g.defvjp(lambda x: (x**2, x), lambda x, ct: (array(2 * x.numpy() * ct.numpy()),))
    total = lambda x: g(x).sum()
    close(grad(total)(X).numpy(), 2 * X)
    for second in (lambda: hessian(total)(X), lambda: hvp(total, (X,), (H,))):
        with pytest.raises(NotDifferentiableError, match="not computed on the tape"):
            second()


def test_captured_values_are_refused():
    c = array(Y)
    f = custom_vjp(lambda x: x * c)
    f.defvjp(lambda x: (x * c, None), lambda r, ct: (ct * c,))
    with pytest.raises(CapturedValueError, match="'c'"):
        grad(lambda x: f(x).sum())(X)


# Values that pass no derivative ------------------------------------------------------------------------------------------


@all_engines
def test_stopped_gradients(engine):
    own = engines.namespace(engine).own
    f = lambda x: (x * stop_gradient(x)).sum()
    close(grad(f)(own(X)).numpy(), X)
    close(grad(lambda x: grad(f)(x).sum())(X).numpy(), 0 * X)
    close(
        jvp(lambda d: stop_gradient(d)["a"][0] * d["b"], ({"a": [X], "b": Y},), ({"a": [H], "b": V},))[1].numpy(), X * V
    )
    assert float(grad(lambda x: stop_gradient(x))(2.0)) == 0.0


def test_stopped_gradients_on_an_ordinary_tape():
    x, a = array(X), AdjFloat(2.0)
    rf = ReducedFunction(x * stop_gradient(x * 3.0), Control(x))
    close(rf(Y).numpy(), 3 * Y**2)  # replayed with the current value
    close(rf.jac_action(H).numpy(), 3 * Y * H)
    J = ReducedFunctional(a * stop_gradient(a), Control(a))
    assert isinstance(stop_gradient(a), AdjFloat)
    assert J(AdjFloat(5.0)) == 25.0
    assert J.derivative() == 5.0
    plain = {"x": X, "n": 3, "none": None}
    assert stop_gradient(plain) == plain
    assert to_adjfloat(x.sum()) == pytest.approx(X.sum())


def test_stop_inside_of_an_engine_is_refused():
    jax = pytest.importorskip("jax")
    with pytest.raises(ArgumentTypeError, match=r"lax\.stop_gradient"):
        jax.grad(lambda x: stop_gradient(x))(1.0)
