"""Black boxes: rules by hand and probed derivatives against closed forms, alone and inside tapes of several engines."""

import math

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
    array,
    compute_gradient,
    compute_hessian_action,
    compute_jacobian_action,
    get_working_tape,
    overload_autograd,
    overload_numpy,
    verify,
)

POINT = np.array([0.5, 1.2, -0.3])
ALONG = np.array([1.0, -2.0, 0.5])
SIN_JVP = lambda primals, tangents: np.cos(primals[0]) * tangents[0]
SIN_VJP = lambda primals, yb: yb * np.cos(primals[0])
SIN_HVP = lambda p, t, yb, dyb: dyb * np.cos(p[0]) - yb * np.sin(p[0]) * t[0]
# Everything that second order can come from, and how close it gets.
SECOND_ORDER = {
    "all by hand": ({"jvp": SIN_JVP, "vjp": SIN_VJP, "hvp": SIN_HVP}, 1e-15),
    "vjp as a program": ({"jvp": SIN_JVP, "vjp": SIN_VJP}, 1e-15),
    "differences of the vjp": ({"jvp": SIN_JVP, "vjp": SIN_VJP, "method": "central"}, 1e-11),
    "vjp, the rest complex steps": ({"vjp": SIN_VJP, "method": "complex-step"}, 1e-11),
    "jvp, the rest central": ({"jvp": SIN_JVP, "method": "central"}, 1e-11),
    "complex-step": ({"method": "complex-step"}, 1e-11),
    "central": ({"method": "central"}, 1e-9),
}


def gradient(f, x=POINT):
    x = array(x)
    return ReducedFunctional(f(x).sum(), Control(x)).derivative()


def curvature(f, x=POINT):
    x = array(x)
    return ReducedFunctional(f(x).sum(), Control(x)).hessian(array(ALONG.astype(x.dtype)))


def two_arguments(x, y, scale=2.0):
    """A container in, a container out, a number that is no array and an output that is no float."""
    return {"product": x["a"] * y * scale, "sum": np.exp(x["b"]).sum() * np.ones(2), "size": x["a"].size}


def two_arguments_vjp(primals, yb):
    x, y, scale = primals
    assert yb["size"] is None
    exp = np.exp(x["b"]) * yb["sum"].sum()
    return {"a": yb["product"] * y * scale, "b": exp}, (yb["product"] * x["a"] * scale).sum(), None


def two_arguments_jvp(primals, tangents):
    (x, y, scale), (dx, dy, _) = primals, tangents
    moved = (np.exp(x["b"]) * dx["b"]).sum() * np.ones(2)
    return {"product": (dx["a"] * y + x["a"] * dy) * scale, "sum": moved, "size": None}


# Right derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "tolerance"), SECOND_ORDER.values(), ids=SECOND_ORDER)
def test_first_and_second_derivatives(options, tolerance):
    f = overload_numpy(np.sin, name="sine", **options)
    np.testing.assert_allclose(gradient(f), np.cos(POINT), rtol=max(tolerance, 1e-12) if "method" in options else 1e-15)
    np.testing.assert_allclose(curvature(f), -np.sin(POINT) * ALONG, rtol=tolerance)


@pytest.mark.parametrize(("options", "tolerance"), SECOND_ORDER.values(), ids=SECOND_ORDER)
def test_both_terms_of_a_composed_hessian(options, tolerance):
    f, x = overload_numpy(np.sin, **options), array(POINT)
    report = verify(ReducedFunctional((f(f(x * x)) ** 2).sum(), Control(x)), x)
    assert report.checks["first derivative (order 1)"]
    assert report.checks["second derivative (order 2)"]
    assert report.adjoint_error < 1e-11
    assert report.symmetry_error < max(tolerance, 1e-15) * 10


@pytest.mark.parametrize(
    "options",
    [{"method": "complex-step"}, {"vjp": two_arguments_vjp, "jvp": two_arguments_jvp}],
    ids=["complex-step", "by hand"],
)
def test_containers_adjfloat_defaults_and_integer_outputs(options):
    f = overload_numpy(two_arguments, **options)
    a, b, y = array(POINT), array([0.1, 0.2]), AdjFloat(0.7)
    out = f({"a": a * a, "b": b}, y=y)
    assert out["size"].item() == 3
    J = (out["product"] * out["product"]).sum() + out["sum"].sum() * y
    report = verify(ReducedFunctional(J, [Control(a), Control(b), Control(y)]), [a, b, y])
    assert report.checks["second derivative (order 2)"]
    assert report.checks["adjoint identity"]
    assert report.symmetry_error < 1e-11


def test_beside_a_jax_block():
    jnp = pytest.importorskip("jax.numpy")
    from pyadjoint_utils import overload_jax

    law, x = overload_jax(lambda v: jnp.tanh(v) * v), array(POINT)
    inner, outer = overload_numpy(np.exp, method="complex-step"), overload_numpy(np.sin, jvp=SIN_JVP, vjp=SIN_VJP)
    report = verify(ReducedFunctional(outer(law(inner(x))).sum(), Control(x)), x)
    assert report.checks["second derivative (order 2)"]
    assert report.checks["adjoint identity"]
    assert report.symmetry_error < 1e-11


def test_rules_that_are_overloaded_programs():
    jnp = pytest.importorskip("jax.numpy")
    from pyadjoint_utils import overload_jax

    vjp = overload_jax(lambda primals, yb: (yb * jnp.cos(primals[0]),))
    jvp = overload_jax(lambda primals, tangents: tangents[0] * jnp.cos(primals[0]))
    f = overload_numpy(np.sin, jvp=jvp, vjp=vjp)
    np.testing.assert_allclose(curvature(f), -np.sin(POINT) * ALONG, rtol=1e-14)
    x = array(POINT)
    assert verify(ReducedFunctional(f(f(x)).sum(), Control(x)), x).passed


@pytest.mark.parametrize(
    "options", [{"jvp": SIN_JVP, "vjp": SIN_VJP}, {"method": "central"}], ids=["by hand", "central"]
)
def test_recorded_derivatives_are_differentiated_once_more(options):
    f, x = overload_numpy(np.sin, **options), array(POINT)
    g = compute_gradient(f(x).sum(), Control(x), record=True)
    t = compute_jacobian_action(f(x), Control(x), array(ALONG), record=True)
    expected = -np.sin(POINT)
    np.testing.assert_allclose(compute_gradient((g * ALONG).sum(), Control(x)), expected * ALONG, rtol=1e-9)
    np.testing.assert_allclose(compute_jacobian_action(g, Control(x), array(ALONG)), expected * ALONG, rtol=1e-9)
    np.testing.assert_allclose(compute_gradient(t.sum(), Control(x)), expected * ALONG, rtol=1e-9)
    np.testing.assert_allclose(compute_jacobian_action(t, Control(x), array(ALONG)), expected * ALONG**2, rtol=1e-9)


def test_third_derivatives_are_refused():
    f, x = overload_numpy(np.sin, jvp=SIN_JVP, vjp=SIN_VJP, hvp=SIN_HVP, name="sine"), array(POINT)
    g = compute_gradient(f(x).sum(), Control(x), record=True)
    with pytest.raises(NotDifferentiableError, match=r"sine is a black box.*third"):
        compute_hessian_action((g * g).sum(), Control(x), array(ALONG))
    with pytest.raises(NotDifferentiableError, match="third"):
        compute_gradient(compute_gradient(g.sum(), Control(x), record=True).sum(), Control(x))


def test_complex_numbers_by_hand_and_by_differences():
    f = lambda z: np.abs(z) ** 2 * z
    vjp = lambda primals, yb: 2 * abs(primals[0]) ** 2 * yb + primals[0] ** 2 * np.conj(yb)
    jvp = lambda primals, dz: 2 * abs(primals[0]) ** 2 * dz[0] + primals[0] ** 2 * np.conj(dz[0])
    z = array([0.5 + 1.0j, -0.3 + 0.2j])
    for options in ({"vjp": vjp, "jvp": jvp}, {"method": "central"}):
        w = overload_numpy(f, **options)(z)
        report = verify(ReducedFunctional((w * np.conj(w)).real.sum(), Control(z)), z)
        assert report.rates[1] == pytest.approx(2.0, abs=0.1)
        assert report.rates[2] == pytest.approx(3.0, abs=0.1)
        assert max(report.adjoint_error, report.symmetry_error) < 1e-8
        slope = ReducedFunction(w, Control(z)).adj_jac_action(np.array([1.0, 1.0j]))
        np.testing.assert_allclose(slope, vjp((z.numpy(),), np.array([1.0, 1.0j])), rtol=1e-11)


def test_single_precision_is_probed_in_double():
    x = POINT.astype(np.float32)
    for method in ("complex-step", "central"):
        found = gradient(overload_numpy(np.sin, method=method), x)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.cos(x), rtol=2e-7)


def test_code_that_takes_single_precision_alone():
    def picky(x):
        if x.dtype != np.float32:
            raise RuntimeError("single precision, please")
        return np.sin(x)

    rounding = lambda x: np.sin(x.astype(np.float32))
    for f in (picky, rounding):
        box = overload_numpy(f, method="central")
        found, bent = gradient(box, POINT.astype(np.float32)), curvature(box, POINT.astype(np.float32))
        np.testing.assert_allclose(found, np.cos(POINT), rtol=1e-4)
        np.testing.assert_allclose(bent, -np.sin(POINT) * ALONG, rtol=2e-2)
        assert found.dtype == bent.dtype == np.float32


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e12])
def test_differences_find_the_scale(scale):
    f = overload_numpy(lambda x: np.sin(x / scale), method="central")
    np.testing.assert_allclose(gradient(f, POINT * scale) * scale, np.cos(POINT), rtol=1e-11)


@pytest.mark.parametrize("tiny", [0.0, 1e-30, 1e-17, 1e-8])
def test_a_number_that_is_tiny_by_accident_is_no_scale(tiny):
    f = overload_numpy(lambda x: np.exp(x) * np.array([1.0, 0.0]), method="central")
    np.testing.assert_allclose(gradient(f, np.array([tiny, tiny])), [1.0, 0.0], atol=1e-9)


def test_entries_of_very_different_sizes():
    x = np.array([1e-8, 1.0, 3.0])
    np.testing.assert_allclose(gradient(overload_numpy(np.log, method="central"), x) * x, 1.0, rtol=1e-5)


def test_argnums_static_arguments_and_methods():
    class Model:
        factor = 3.0

        @overload_numpy(vjp=lambda primals, yb: yb * primals[0].factor * primals[3], argnums=1, static_argnums=2)
        def run(self, x, kind, y):
            assert kind == "linear"
            return self.factor * x * y

    x, y = array(POINT), array(POINT)
    J = Model().run(x, "linear", y).sum()
    assert ReducedFunctional(J, Control(x)).derivative().tolist() == (3.0 * POINT).tolist()
    assert ReducedFunctional(J, Control(y)).derivative().tolist() == [0.0, 0.0, 0.0]


def test_integers_pass_no_derivative():
    f = overload_numpy(lambda x, n: x**n, vjp=lambda p, yb: (yb * p[1] * p[0] ** (p[1] - 1), None))
    x, n = array(POINT), array(np.array(3))
    np.testing.assert_allclose(ReducedFunctional(f(x, n).sum(), Control(x)).derivative(), 3 * POINT**2, rtol=1e-15)


def test_arguments_and_outputs_are_the_tapes_own():
    buffer = np.empty(3)

    def careless(x):
        x *= 2.0
        np.multiply(x, x, out=buffer)
        return buffer

    f, x = overload_numpy(careless, method="central"), array(POINT)
    y = f(x)
    z = f(y)
    np.testing.assert_array_equal(y, 4 * POINT**2)
    np.testing.assert_array_equal(x, POINT)
    np.testing.assert_allclose(ReducedFunctional(z.sum(), Control(x)).derivative(), 256 * POINT**3, rtol=1e-11)


def test_a_black_box_inside_a_black_box():
    inner = overload_numpy(np.exp, vjp=lambda p, yb: yb)
    outer = overload_numpy(lambda x: inner(x) * 2.0, method="complex-step")
    np.testing.assert_allclose(gradient(outer), 2 * np.exp(POINT), rtol=1e-15)


# What is called how often ----------------------------------------------------------------------------------------------


def test_derivatives_by_hand_do_not_call_the_function():
    calls = []

    def f(x):
        calls.append(1)
        return np.sin(x)

    x = array(POINT)
    y = overload_numpy(f, jvp=SIN_JVP, vjp=SIN_VJP, hvp=SIN_HVP)(x)
    rf = ReducedFunction(y, Control(x))
    rf.jac_action(array(ALONG)), rf.adj_jac_action(array(ALONG)), rf.hess_action(array(ALONG), array(ALONG))
    assert len(calls) == 1


@pytest.mark.parametrize(("method", "calls"), [("complex-step", [3, 1, 12]), ("central", [12, 4, 48])])
def test_calls_of_a_probed_function(method, calls):
    count = []
    x = array(POINT)
    y = overload_numpy(lambda x: (count.append(1), np.sin(x))[1], method=method)(x)
    vjp = lambda: ReducedFunction(y, Control(x)).adj_jac_action(array(ALONG))
    jvp = lambda: ReducedFunction(y, Control(x)).jac_action(array(ALONG))
    hvp = lambda: ReducedFunction(y, Control(x)).hess_action(array(ALONG), array(ALONG))
    found = []
    for call in (vjp, jvp, hvp):
        call()  # what is checked once
        count.clear()
        call()
        found.append(len(count))
    # A Hessian action runs the tangent and the adjoint as well.
    assert found == [calls[0], calls[1], calls[0] + calls[1] + calls[2]]


def test_rules_leave_the_tape_as_it_was():
    f, x = overload_numpy(np.sin, jvp=SIN_JVP, vjp=SIN_VJP), array(POINT)
    J = ReducedFunctional(f(x).sum(), Control(x))
    before = len(get_working_tape().get_blocks())
    J.hessian(array(ALONG))
    assert len(get_working_tape().get_blocks()) == before


# What is refused -------------------------------------------------------------------------------------------------------


def test_a_wrong_rule_is_caught_by_verify():
    x = array(POINT)
    wrong = overload_numpy(np.sin, jvp=SIN_JVP, vjp=lambda p, yb: yb * np.cos(p[0]) * 1.01)
    report = verify(ReducedFunctional(wrong(x).sum(), Control(x)), x)
    assert not report.checks["adjoint identity"]
    one_term = overload_numpy(np.sin, jvp=SIN_JVP, vjp=SIN_VJP, hvp=lambda p, t, yb, dyb: -yb * np.sin(p[0]) * t[0])
    report = verify(ReducedFunctional((one_term(x) ** 2).sum(), Control(x)), x)
    assert not report.checks["second derivative (order 2)"]


@pytest.mark.parametrize(
    ("options", "needs", "message"),
    [
        ({"vjp": SIN_VJP}, "tangent", r"sine has a vjp but no jvp; tangents and Hessian actions need jvp="),
        ({"vjp": SIN_VJP}, "hessian", r"sine has a vjp but no jvp"),
        ({"jvp": SIN_JVP}, "gradient", r"sine has a jvp but no vjp; gradients and Hessian actions need vjp="),
        ({}, "gradient", r"sine has no rule and no method"),
    ],
)
def test_a_missing_rule_is_named(options, needs, message):
    x = array(POINT)
    rf = ReducedFunctional(overload_numpy(np.sin, name="sine", **options)(x).sum(), Control(x))
    call = {"tangent": rf.tlm, "hessian": rf.hessian, "gradient": lambda _: rf.derivative()}[needs]
    with pytest.raises(NotDifferentiableError, match=message):
        call(array(ALONG))


@pytest.mark.parametrize(
    ("vjp", "message"),
    [
        (lambda p, yb: (yb * p[0]).sum(), r"vjp returned float64\[\] .*; expected shape \(3,\)"),
        (lambda p, yb: None, r"vjp returned None .*; expected shape \(3,\) \(zeros where"),
        (lambda p, yb: (yb, yb), r"vjp returned \(float64\[3\], float64\[3\]\); expected a tuple .* of the 1 argument"),
        (lambda p, yb: {"x": yb}, r"vjp returned .*expected"),
    ],
)
def test_cotangents_of_other_shapes(vjp, message):
    with pytest.raises(ArgumentValueError, match=message):
        gradient(overload_numpy(np.sin, vjp=vjp, name="sine"))


def test_tangents_of_other_shapes():
    x = array(POINT)
    for jvp, message in (
        (lambda p, t: t[0][:2], r"jvp returned float64\[2\] for output 0; expected shape \(3,\)"),
        (lambda p, t: None, "jvp returned None"),
    ):
        y = overload_numpy(np.sin, jvp=jvp)(x)
        with pytest.raises(ArgumentValueError, match=message):
            ReducedFunction(y, Control(x)).jac_action(array(ALONG))
    y = overload_numpy(lambda x: (x, x), jvp=lambda p, t: {"y": t[0]})(x)[0]
    with pytest.raises(ArgumentValueError, match="in the outputs' containers"):
        ReducedFunction(y, Control(x)).jac_action(array(ALONG))


def filled(x):
    out = np.zeros(3)
    for k in range(3):
        out[k] = np.real(x[k]) ** 2
    return out


@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.abs(x) * x,
        lambda x: np.linalg.norm(x) * x,
        filled,
        lambda x: np.conj(x) ** 2,
        lambda x: x.real,
        lambda x: 1e9 + abs(x),
    ],
)
def test_complex_steps_of_code_that_drops_the_imaginary_part(f):
    with pytest.raises(NotDifferentiableError, match="is not analytic"):
        gradient(overload_numpy(f, method="complex-step"))


def test_complex_steps_of_code_that_takes_no_complex_numbers():
    sine = lambda x: np.array([math.sin(complex(v)) if np.iscomplexobj(x) else math.sin(v) for v in x])
    with pytest.raises(NotDifferentiableError, match="does not take complex arguments"):
        gradient(overload_numpy(sine, method="complex-step"))
    z = array([1.0 + 1.0j])
    rf = ReducedFunction(overload_numpy(np.sin, method="complex-step")(z), Control(z))
    with pytest.raises(NotDifferentiableError, match=r"takes real arguments and outputs; got complex128\[1\]"):
        rf.adj_jac_action(np.array([1.0 + 0.0j]))


@pytest.mark.parametrize("strip", [lambda v: np.asarray(v), lambda v: v.value if hasattr(v, "value") else v])
def test_a_vjp_that_leaves_the_tape_is_not_differentiated(strip):
    for vjp in (lambda p, yb: yb * np.cos(strip(p[0])), lambda p, yb: strip(yb) * np.cos(p[0])):
        f = overload_numpy(np.sin, jvp=SIN_JVP, vjp=vjp, name="sine")
        np.testing.assert_allclose(gradient(f), np.cos(POINT), rtol=1e-15)
        with pytest.raises(NotDifferentiableError, match=r"sine has a vjp but no hvp.*takes values off the tape"):
            curvature(f)


def test_a_vjp_that_takes_no_taped_values():
    vjp = lambda p, yb: yb * np.array([math.cos(v) for v in p[0].tolist()])
    vjp_of_arrays = lambda p, yb: np.negative(yb, out=yb) * -np.cos(p[0])
    for rule in (vjp, vjp_of_arrays):
        f = overload_numpy(np.sin, jvp=SIN_JVP, vjp=rule, name="sine")
        with pytest.raises(NotDifferentiableError, match="sine has a vjp but no hvp"):
            curvature(f)
        f = overload_numpy(np.sin, jvp=SIN_JVP, vjp=rule, method="central")
        np.testing.assert_allclose(curvature(f), -np.sin(POINT) * ALONG, rtol=1e-11)


def test_differences_that_mean_nothing():
    noise = np.random.default_rng(0)
    rough = overload_numpy(lambda x: x + 1e-2 * noise.standard_normal(x.shape), method="central", name="rough")
    with pytest.raises(NotDifferentiableError, match="rough has differences that do not settle"):
        gradient(rough)
    outside = overload_numpy(np.log, method="central", name="log")
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(NotDifferentiableError, match="log gives values that are not finite"),
    ):
        gradient(outside)


def test_points_that_are_not_finite_and_arrays_without_entries():
    for method in ("central", "complex-step"):
        f = overload_numpy(np.sin, method=method)
        with np.errstate(invalid="ignore"), pytest.raises(NotDifferentiableError, match="not finite"):
            gradient(f, np.array([np.inf, 1.0]))
        assert gradient(overload_numpy(np.sin, method=method), np.zeros(0)).shape == (0,)


def test_options_that_do_not_fit():
    with pytest.raises(ArgumentValueError, match=r"'complex-step', 'central'; got 'fd'"):
        overload_numpy(np.sin, method="fd")
    with pytest.raises(ArgumentValueError, match="step takes a number between 0 and 1 together with method="):
        overload_numpy(np.sin, step=1e-3)
    with pytest.raises(ArgumentValueError, match="step takes"):
        overload_numpy(np.sin, method="central", step=-1.0)
    with pytest.raises(ArgumentTypeError, match="vjp takes a function; got int"):
        overload_numpy(np.sin, vjp=3)
    with pytest.raises(ArgumentTypeError, match="takes a function; got float"):
        overload_numpy(3.0)


def test_outputs_that_are_no_arrays_or_change():
    for f, given in (
        (lambda x: "text", "str"),
        (lambda x: np.array([None]), "one of object"),
        (lambda x: array(x), "ndarray"),
    ):
        with pytest.raises(ArgumentTypeError, match=f"output 0 is not a NumPy array of numbers; got {given}"):
            overload_numpy(f)(array(POINT))
    f = overload_numpy(lambda x: x[x > 0], method="central", name="chosen")
    f(array(POINT))
    with pytest.raises(
        ArgumentValueError, match=r"chosen returned float64\[1\] in other containers or shapes than before"
    ):
        f(array(-POINT))


def test_taped_values_that_are_no_arguments():
    x, hidden = array(POINT), array(2.0)
    with pytest.raises(CapturedValueError, match="hidden"):
        overload_numpy(lambda x: x * hidden.numpy(), method="central")(x)
    y = overload_numpy(np.sin, vjp=lambda p, yb: yb * hidden.numpy())(x)
    with pytest.raises(CapturedValueError, match="vjp of sin uses the taped value 'hidden'"):
        ReducedFunctional(y.sum(), Control(x)).derivative()


def test_keyword_only_arguments():
    def f(x, *, rate):
        return np.exp(x * rate)

    x, rate = array(POINT), array(0.5)
    probed = overload_numpy(f, method="complex-step")
    assert verify(ReducedFunctional(probed(x, rate=rate).sum(), [Control(x), Control(rate)]), [x, rate]).passed
    by_hand = overload_numpy(f, vjp=lambda p, yb, *, rate: yb * rate * np.exp(p[0] * rate))
    y = by_hand(x, rate=0.5)
    np.testing.assert_allclose(ReducedFunctional(y.sum(), Control(x)).derivative(), 0.5 * np.exp(0.5 * POINT))
    with pytest.raises(NotDifferentiableError, match="keyword-only"):
        ReducedFunctional(by_hand(x, rate=rate).sum(), Control(rate)).derivative()


def test_the_same_as_an_engine():
    import autograd.numpy as anp

    matrix = np.random.default_rng(1).normal(size=(3, 3)) + 4 * np.eye(3)
    probed = overload_numpy(lambda x: np.linalg.solve(matrix + np.diag(x), x), method="complex-step")
    engine = overload_autograd(lambda x: anp.linalg.solve(matrix + anp.diag(x), x))
    np.testing.assert_allclose(gradient(probed), gradient(engine), rtol=1e-14)
    np.testing.assert_allclose(curvature(probed), curvature(engine), rtol=1e-10)
