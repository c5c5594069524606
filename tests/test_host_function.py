"""Functions from outside: values, derivatives of any order and batches, against closed forms."""

import logging

import numpy as np
import pytest
from pyadjoint import Block, get_working_tape
from toy_engine import ToyArray, engine, exp, overload_toy, overload_twin, sin, toy, twin

from pyadjoint_utils import AdjFloat, Control, NotDifferentiableError, ReducedFunction, array, asarray, custom_vjp
from pyadjoint_utils.inside.called import Inside

X, DX, W = np.array([0.3, -0.7, 1.1]), np.array([0.5, 0.2, -0.4]), np.array([1.0, -2.0, 0.5])
A, DA = np.array(0.8), np.array(-0.3)


def whole(rf):
    """A reduced function as one function from outside."""
    (piece,) = Inside(rf, engine).whole
    return piece.function


def chain():
    """``(x, a) -> (a sin(x)^2, exp(x) . sin(x))`` over two engines, a constant and an AdjFloat."""
    x, a = toy([1.0, 2.0, 3.0]), AdjFloat(1.5)
    s = overload_toy(sin)(x)
    y = overload_toy(lambda s, a: s * s * a)(s, a)
    t = overload_twin(lambda s, x: (exp(x) * s).sum())(s, x)
    return whole(ReducedFunction([y, t], [Control(x), Control(a)]))


class Cube(Block):
    """``a x^3`` of an array and a number, as another package writes it; it counts its evaluations."""

    runs = 0

    def __init__(self, x, a):
        super().__init__()
        self.add_dependency(x)
        self.add_dependency(a)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        Cube.runs += 1
        x, a = _numbers(inputs)
        return asarray(a * x**3)

    def evaluate_tlm_component(self, inputs, tlm_inputs, block_variable, idx, prepared=None):
        (x, a), (dx, da) = _numbers(inputs), _numbers(tlm_inputs)
        return 3 * a * x**2 * dx + x**3 * da

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        (x, a), (yb,) = _numbers(inputs), _numbers(adj_inputs)
        return 3 * a * x**2 * yb if idx == 0 else float((x**3 * yb).sum())

    def evaluate_hessian_component(
        self, inputs, hessian_inputs, adj_inputs, block_variable, idx, relevant, prepared=None
    ):
        (x, a), (yb,), (dyb,) = _numbers(inputs), _numbers(adj_inputs), _numbers(hessian_inputs)
        tangents = {i: bv.tlm_value for i, bv in relevant}
        dx, da = _numbers([tangents.get(0), tangents.get(1)])
        if idx == 0:
            return 3 * a * x**2 * dyb + (6 * a * x * dx + 3 * x**2 * da) * yb
        return float((x**3 * dyb + 3 * x**2 * dx * yb).sum())


def _numbers(values):
    return [np.asarray(0.0 if v is None else v.numpy() if hasattr(v, "numpy") else v) for v in values]


def cube(x, a):
    y = asarray(float(a) * x.numpy() ** 3)
    block = Cube(x, a)
    get_working_tape().add_block(block)
    block.add_output(y.create_block_variable())
    return y


def foreign():
    """``(x, a) -> a x^3 exp(a x^3)`` around a Block of another package."""
    x, a = array([1.0, 2.0, 3.0]), AdjFloat(1.5)
    y = cube(x, a)
    return whole(ReducedFunction(np.exp(y) * y, [Control(x), Control(a)]))


def opaque():
    """The Block alone."""
    x, a = array([1.0, 2.0, 3.0]), AdjFloat(1.5)
    return whole(ReducedFunction(cube(x, a), [Control(x), Control(a)]))


@custom_vjp
def scaled_cube(x, a):
    return a * x**3


scaled_cube.defvjp(
    lambda x, a: (scaled_cube(x, a), (x, a)),
    lambda kept, ct: (3 * kept[1] * kept[0] ** 2 * ct, (kept[0] ** 3 * ct).sum()),
)


def ruled():
    """The same with derivatives by hand."""
    x, a = array([1.0, 2.0, 3.0]), array(1.5)
    return whole(ReducedFunction(scaled_cube(x, a), [Control(x), Control(a)]))


def first(x, a):
    return [a * np.sin(x) ** 2, (np.exp(x) * np.sin(x)).sum()]


CASES = {
    "engines": (chain, first),
    "foreign": (foreign, lambda x, a: [a * x**3 * np.exp(a * x**3)]),
    "opaque": (opaque, lambda x, a: [a * x**3]),
    "ruled": (ruled, lambda x, a: [a * x**3]),
}


def derivative(f, along, at=0.0):
    """The derivative of a function of one number by complex steps of the closed form."""
    return [np.imag(y) / 1e-30 for y in f(*[p + (at + 1e-30j) * d for p, d in along])]


def check(found, expected, rtol=1e-10):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert type(a) is np.ndarray
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13)


@pytest.fixture(params=CASES)
def case(request):
    make, f = CASES[request.param]
    return make(), f


def seeds(f):
    return [np.asarray(0.7 * np.cos(np.arange(y.size)).reshape(y.shape)) for y in map(np.asarray, f(X, A))]


def test_values_and_tangents_at_another_point_than_the_recorded_one(case):
    function, f = case
    check(function([X, A]), f(X, A))
    check(function([2 * X, A]), f(2 * X, A))
    check(function.tangent((0, 1))([X, A, DX, DA]), derivative(f, [(X, DX), (A, DA)]))
    check(function.tangent((1,))([X, A, DA]), derivative(f, [(X, 0 * DX), (A, DA)]))
    both = function.dual((0, 1))
    check(both([2 * X, A, DX, DA]), [*f(2 * X, A), *derivative(f, [(2 * X, DX), (A, DA)])])
    last = (len(f(X, A)) - 1,)
    check(function.tangent((0,), last)([X, A, DX]), derivative(f, [(X, DX), (A, 0 * DA)])[-1:])


def pairing(f, yb):
    """``<yb, f>``, whose derivative along ``(dx, da)`` is ``<J^H yb, (dx, da)>``."""
    return lambda x, a: [sum((w * y).sum() for w, y in zip(yb, map(np.asarray, f(x, a)), strict=True))]


def check_pairs(found, expected_along):
    """Compare cotangents of ``x`` and ``a`` by their products with directions."""
    for dx, da in [(DX, 0 * DA), (0 * DX, DA), (W, DA)]:
        np.testing.assert_allclose((found[0] * dx).sum() + found[1] * da, expected_along(dx, da), rtol=1e-9)


def test_adjoints_match_the_closed_form(case):
    function, f = case
    yb = seeds(f)
    outs = tuple(range(len(yb)))
    found = function.adjoint((0, 1), outs)([X, A, *yb])
    check_pairs(found, lambda dx, da: derivative(pairing(f, yb), [(X, dx), (A, da)])[0])
    check(function.adjoint((1,), outs)([X, A, *yb]), found[1:])
    alone = function.adjoint((0, 1), outs[:1])([X, A, yb[0]])
    check_pairs(
        alone,
        lambda dx, da: derivative(
            lambda x, a: pairing(f, yb)(x, a) if len(yb) == 1 else [(yb[0] * f(x, a)[0]).sum()], [(X, dx), (A, da)]
        )[0],
    )


def slope(g, eps=1e-5):
    """The derivative at zero of arrays of one number, by extrapolated differences."""
    d = lambda h: [(np.asarray(p) - np.asarray(m)) / (2 * h) for p, m in zip(g(h), g(-h), strict=True)]
    return [(4 * fine - coarse) / 3 for fine, coarse in zip(d(eps), d(2 * eps), strict=True)]


def test_second_derivatives_of_every_kind_are_those_of_the_first_ones(case):
    # Each is compared with differences of the first derivative, which the closed form has confirmed.
    function, f = case
    yb = seeds(f)
    outs, n = tuple(range(len(yb))), 2 + len(yb)
    adjoint, tangent = function.adjoint((0, 1), outs), function.tangent((0, 1))
    moved = lambda h: [X + h * DX, A + h * DA]
    dyb = [0.3 * y + 0.1 for y in yb]
    along = slope(lambda h: adjoint([*moved(h), *[y + h * d for y, d in zip(yb, dyb, strict=True)]]))
    check(adjoint.tangent(tuple(range(n)))([X, A, *yb, DX, DA, *dyb]), along, 1e-7)
    forward = slope(lambda h: tangent([*moved(h), W + h * DX, DA - h]))
    check(tangent.tangent((0, 1, 2, 3))([X, A, W, DA, DX, DA, DX, np.array(-1.0)]), forward, 1e-7)
    # A transpose has the same products.
    w, wa = W, np.array(0.4)
    back = adjoint.adjoint(tuple(range(n)), (0, 1))([X, A, *yb, w, wa])
    products = sum((b * d).sum() for b, d in zip(back, [DX, DA, *dyb], strict=True))
    np.testing.assert_allclose(products, (along[0] * w).sum() + along[1] * wa, rtol=1e-7)
    back = tangent.adjoint((0, 1, 2, 3), outs)([X, A, W, DA, *yb])
    products = sum((b * d).sum() for b, d in zip(back, [DX, DA, DX, np.array(-1.0)], strict=True))
    np.testing.assert_allclose(products, sum((y * d).sum() for y, d in zip(yb, forward, strict=True)), rtol=1e-7)


def test_third_derivatives_of_engines_are_right_and_of_others_refused():
    function = chain()
    yb = seeds(first)
    second = function.adjoint((0,), (0, 1)).tangent((0,))
    third = second.adjoint((0,), (0,))([X, A, *yb, DX, W])[0]
    along = slope(lambda h: second([X + h * DX, A, *yb, DX]))[0]
    np.testing.assert_allclose(third @ DX, along @ W, rtol=1e-7)
    for others, name in ((foreign, "Cube"), (ruled, "The custom rule of scaled_cube")):
        second = others().adjoint((0,), (0,)).tangent((0,))
        with pytest.raises(NotDifferentiableError, match=f"{name} has first and second derivatives, and a third"):
            second.tangent((0,))
        with pytest.raises(NotDifferentiableError, match=name):
            second.adjoint((0,), (0,))


def test_a_function_that_its_engine_fails_to_batch_goes_one_by_one(monkeypatch, caplog):
    def refuse(self, f, batched):
        raise RuntimeError("this engine batches nothing")

    monkeypatch.setattr(type(engine), "batch_of", refuse)
    function, x = chain(), np.stack([X, 2 * X])
    wanted = [np.stack(c) for c in zip(first(X, A), first(2 * X, A), strict=True)]
    with caplog.at_level(logging.DEBUG, "pyadjoint_utils"):
        for _ in range(2):
            check(function.batched((True, False), 2)([x, A]), wanted)
    said = [record.getMessage() for record in caplog.records]
    # Said once for each of the three functions.
    assert said == ["<lambda> goes through a batch one by one: this engine batches nothing"] * 3


BATCHES = [(True, False), (False, True), (True, True)]


@pytest.mark.parametrize("marks", BATCHES, ids=str)
def test_batches_are_their_entries(case, marks):
    function, f = case
    yb, size = seeds(f), 4
    outs = tuple(range(len(yb)))
    x = np.stack([X + 0.1 * k for k in range(size)]) if marks[0] else X
    a = np.stack([A + 0.1 * k for k in range(size)]) if marks[1] else A
    rows = [[p[k] if m else p for p, m in zip([x, a], marks, strict=True)] for k in range(size)]
    batch = function.batched(marks, size)
    check(batch([x, a]), [np.stack(c) for c in zip(*[function(r) for r in rows], strict=True)])
    wide = [np.stack([y * (k + 1) for k in range(size)]) for y in yb]
    found = batch.adjoint((0, 1), outs)([x, a, *wide])
    entries = [function.adjoint((0, 1), outs)([*r, *[w[k] for w in wide]]) for k, r in enumerate(rows)]
    # What is the same for all entries collects the cotangents of all.
    expected = [np.stack(c) if m else sum(c) for c, m in zip(zip(*entries, strict=True), marks, strict=True)]
    check(found, expected)
    directions = [0.3 * x, 0.2 * a]
    tangents = [
        function.tangent((0, 1))([*r, *[d[k] if m else d for d, m in zip(directions, marks, strict=True)]])
        for k, r in enumerate(rows)
    ]
    check(batch.tangent((0, 1))([x, a, *directions]), [np.stack(c) for c in zip(*tangents, strict=True)])


def test_an_empty_batch_is_empty(case):
    function, f = case
    for y, wanted in zip(function.batched((True, False), 0)([np.zeros((0, 3)), A]), f(X, A), strict=True):
        assert y.shape == (0, *np.shape(wanted))
    yb = [np.zeros((0, *y.shape)) for y in seeds(f)]
    cotangents = function.batched((True, False), 0).adjoint((1,), tuple(range(len(yb))))([np.zeros((0, 3)), A, *yb])
    check(cotangents, [np.zeros(())])


@pytest.mark.parametrize("outer", BATCHES, ids=str)
@pytest.mark.parametrize("inner", BATCHES, ids=str)
def test_batches_of_batches_are_their_entries(inner, outer):
    function = chain()
    batch = function.batched(inner, 3)
    x = np.linspace(0.1, 0.9, 2 * 3 * 3).reshape(2, 3, 3)[() if outer[0] else 0]
    a = np.linspace(1, 2, 2 * 3).reshape(2, 3)[() if outer[1] else 0]
    x = x if inner[0] else x[..., 0, :]
    a = a if inner[1] else a[..., 0]
    expected = [batch([x[k] if outer[0] else x, a[k] if outer[1] else a]) for k in range(2)]
    check(batch.batched(outer, 2)([x, a]), [np.stack(c) for c in zip(*expected, strict=True)])
    yb = [np.ones((2, 3, 3)) + np.arange(3), np.ones((2, 3))]
    expected = [
        batch.adjoint((0, 1), (0, 1))([x[k] if outer[0] else x, a[k] if outer[1] else a, *[y[k] for y in yb]])
        for k in range(2)
    ]
    expected = [np.stack(c) if m else sum(c) for c, m in zip(zip(*expected, strict=True), outer, strict=True)]
    check(batch.batched(outer, 2).adjoint((0, 1), (0, 1))([x, a, *yb]), expected)


def test_derived_functions_are_prepared_once():
    function = chain()
    assert function.tangent((0,)) is function.tangent((0,))
    hvp = function.adjoint((0,), (0, 1)).tangent((0,))
    assert hvp is function.adjoint((0,), (0, 1)).tangent((0,))
    yb = seeds(first)
    hvp([X, A, *yb, DX])
    before = engine.counts["prepared"], twin.counts["prepared"]
    hvp([X + 1, A, *yb, DX])
    assert (engine.counts["prepared"], twin.counts["prepared"]) == before


def test_values_and_tangents_are_one_call_of_an_engine():
    function = chain()
    before = engine.counts["called"]
    function.tangent((0,))([X, A, DX])
    assert engine.counts["called"] - before == 2  # the sine with its tangent, the tangent of the product
    before = engine.counts["called"], twin.counts["called"]
    function.dual((0,))([X, A, DX])
    assert (engine.counts["called"] - before[0], twin.counts["called"] - before[1]) == (2, 1)


def test_a_function_used_twice_and_results_that_are_arguments_of_others():
    x = toy([1.0, 2.0])
    square = overload_toy(lambda x: x * x)
    y = square(x)
    z = square(y)
    function = whole(ReducedFunction([y, z, overload_toy(lambda y, z: y * z * y)(y, z)], Control(x)))
    x = np.array([0.5, -1.2])
    check(function([x]), [x**2, x**4, x**8])
    yb = [np.array([1.0, 2.0]), np.array([0.3, 0.1]), np.array([-1.0, 1.0])]
    expected = 4 * x**3 * yb[1] + 2 * x * yb[0] + 8 * x**7 * yb[2]
    check(function.adjoint((0,), (0, 1, 2))([x, *yb]), [expected])
    second = 12 * x**2 * yb[1] + 2 * yb[0] + 56 * x**6 * yb[2]
    check(function.adjoint((0,), (0, 1, 2)).tangent((0,))([x, *yb, np.ones(2)]), [second])


def test_a_result_without_a_dependence_has_a_zero_derivative():
    x, y = toy([1.0, 2.0]), toy([3.0])
    square = overload_toy(lambda x: x * x)
    function = whole(ReducedFunction([square(x), square(y)], [Control(x), Control(y)]))
    check(function.tangent((0,))([np.ones(2), np.ones(1), np.ones(2)]), [2 * np.ones(2), np.zeros(1)])
    check(function.adjoint((0, 1), (1,))([np.ones(2), np.ones(1), np.ones(1)]), [np.zeros(2), 2 * np.ones(1)])


def test_a_block_of_another_package_is_evaluated_once_per_point():
    function = opaque()
    Cube.runs = 0
    adjoint = function.adjoint((0, 1), (0,))
    for scale in (1.0, 2.0, 3.0):
        # Buffers that are reused, as those of a compiled program, are other points all the same.
        buffer = X.copy()
        adjoint([buffer, A, scale * W])
        buffer[:] = 0.0
    assert Cube.runs == 1
    adjoint([2 * X, A, W])
    assert Cube.runs == 2


def test_results_come_in_the_engine_that_is_asked_for():
    y, t = chain()([X, A], twin)
    assert type(y) is type(t) is twin.array_types[0]
    np.testing.assert_allclose(y.data, A * np.sin(X) ** 2)
    (y, _) = chain()([ToyArray(X), A])
    assert type(y) is np.ndarray
