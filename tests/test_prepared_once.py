"""Nothing is traced or compiled a second time: counted, not timed."""

from collections import Counter

import engines
import numpy as np
import pytest

from pyadjoint_utils import (
    AdjFloat,
    Control,
    ReducedFunction,
    ReducedFunctional,
    Tape,
    array,
    compute_gradient,
    get_engine,
    grad,
    hessian,
    hvp,
    jacfwd,
    jacrev,
    linearize,
    push_tape,
    taylor_test,
    verify,
    vjp,
)

all_engines = pytest.mark.parametrize("engine", engines.NAMES)
# In these the user's Python function runs only when it is traced; the others run it at every evaluation.
tracing_engines = pytest.mark.parametrize("engine", ["jax", "tensorflow"])


class Counted:
    """A function of one or two arrays that counts how often Python runs it."""

    def __init__(self, engine, **options):
        self.e = engines.namespace(engine)
        self.runs = 0
        self.f = self.e.overload(self.run, **options)

    def run(self, x, p=1.0):
        self.runs += 1
        return self.e.sum(self.e.sin(x * x) * p)

    def use(self, seed=0, shape=(3,), p=None):
        """Record on a new tape, then evaluate and differentiate in every way; return the gradient's error."""
        rng = np.random.default_rng(seed)
        x0, x1, h = (rng.standard_normal(shape) for _ in range(3))
        with push_tape(Tape()) as tape:
            x = array(x0)
            J = self.f(x) if p is None else self.f(x, p)
            rf = ReducedFunctional(J, Control(x), tape=tape)
            for point in (x0, x1, h):
                rf(array(point))
                gradient = rf.derivative().numpy()
                rf.tlm(array(h))
                rf.hessian(array(h))
        np.testing.assert_allclose(gradient, 2 * h * np.cos(h * h) * (1.0 if p is None else p), rtol=1e-9)


@pytest.fixture
def compilations(monkeypatch):
    """How often each engine was asked to compile a map."""
    counts = Counter()
    for name in engines.NAMES:
        if not engines.installed(name):
            continue
        cls = type(get_engine(name))
        original = cls.compile

        def counting(self, f, avals, original=original):
            counts[self.name] += 1
            return original(self, f, avals)

        monkeypatch.setattr(cls, "compile", counting)
    return counts


@tracing_engines
def test_python_runs_only_while_tracing(engine):
    counted = Counted(engine)
    counted.use()
    first = counted.runs
    # One trace of each map; a trace of a derivative may run the function more than once.
    assert 4 <= first <= 12
    for seed in range(1, 4):
        counted.use(seed)
    assert counted.runs == first


@tracing_engines
def test_float_arguments_of_other_values(engine):
    counted = Counted(engine)
    counted.use(p=2.0)
    first = counted.runs
    for p in (3.0, -0.5, 1e-3):
        counted.use(p=p)
    assert counted.runs == first
    counted.f(array(np.ones(3)), np.float64(4.0))
    known = counted.runs
    counted.f(array(np.ones(3)), np.float64(5.0))
    assert counted.runs == known


@tracing_engines
def test_adjfloat_arguments_of_other_values(engine):
    counted = Counted(engine)
    x = array(np.ones(3))
    for k, p in enumerate([2.0, 3.0, -0.5]):
        parameter = AdjFloat(p)
        rf = ReducedFunctional(counted.f(x, parameter), Control(parameter))
        rf(AdjFloat(p + 1))
        assert rf.derivative() == pytest.approx(3 * np.sin(1.0))
        rf.hessian(AdjFloat(1.0))
        if k == 0:
            first = counted.runs
    assert counted.runs == first


@tracing_engines
def test_a_new_shape_is_traced_once(engine):
    counted = Counted(engine)
    x = array(np.ones(3))
    counted.f(x)
    assert counted.runs == 1
    counted.f(array(np.ones(4)))
    assert counted.runs == 2
    for n in (3, 4, 4, 3):
        counted.f(array(np.ones(n)))
    assert counted.runs == 2
    counted.f(array(np.ones(3, np.float32)))
    assert counted.runs == 3
    counted.f(array(np.zeros(3, np.float32)))
    assert counted.runs == 3


@tracing_engines
def test_bare_and_taped_arguments_of_one_signature(engine):
    counted = Counted(engine)
    for _ in range(3):
        counted.f(np.ones(3))
    assert counted.runs == 1
    for _ in range(3):
        counted.f(counted.e.own(np.zeros(3)))
    assert counted.runs <= 2


@all_engines
def test_maps_are_compiled_once(engine, compilations):
    """Value, JVP, VJP and the derivative of the VJP: one preparation each, for any number of tapes and calls."""
    counted = Counted(engine)
    counted.use()
    first = compilations[engine]
    assert first == 4
    for seed in range(1, 3):
        counted.use(seed)
        counted.use(seed, p=2.0 + seed)
    # With p there is another constant, so another signature.
    assert compilations[engine] == 2 * first
    counted.use(shape=(2, 2))
    assert compilations[engine] == 3 * first
    counted.use(shape=(2, 2))
    assert compilations[engine] == 3 * first


@all_engines
def test_arithmetic_is_compiled_once(engine, compilations):
    e = engines.namespace(engine)

    def use(seed, factor):
        with push_tape(Tape()) as tape:
            x = array(e.own(np.random.default_rng(seed).standard_normal(3)))
            rf = ReducedFunctional((x * x * factor + 1.0).sum(), Control(x), tape=tape)
            rf(array(np.ones(3)))
            rf.hessian(array(np.ones(3)))
            np.testing.assert_allclose(rf.derivative().numpy(), 2 * factor * np.ones(3))

    use(0, 2.0)
    first = sum(compilations.values())
    for seed, factor in enumerate([3.0, 4.0, -1.5]):
        use(seed, factor)
    assert sum(compilations.values()) == first


@all_engines
def test_recorded_derivatives_are_compiled_once(engine, compilations):
    e = engines.namespace(engine)
    f = e.overload(lambda x: e.sum(e.sin(x)))

    def use(seed):
        with push_tape(Tape()) as tape:
            x = array(np.random.default_rng(seed).standard_normal(3))
            gradient = compute_gradient(f(x), Control(x), record=True)
            rf = ReducedFunction(gradient, Control(x), tape=tape)
            rf.hess_action(np.ones(3), np.ones(3))

    use(0)
    first = compilations[engine]
    for seed in range(1, 4):
        use(seed)
    assert compilations[engine] == first


@all_engines
def test_transformations_are_compiled_once(engine, compilations):
    """In any nesting; the program itself is run by each call, its functions are not traced again."""
    counted = Counted(engine)
    f = lambda x: counted.f(x) * 2.0
    vector = lambda x: np.exp(x) * counted.f(x)
    uses = [
        grad(f),
        hessian(f),
        jacfwd(grad(f)),
        jacrev(vector),
        lambda x: grad(lambda y: (grad(f)(y) ** 2).sum())(x),
        lambda x: hvp(f, (x,), (x,)),
        lambda x: linearize(vector, x)[1].batched(np.stack([x, x])),
        lambda x: vjp(vector, x)[1](x),
    ]
    rng = np.random.default_rng(0)
    first = None
    for _ in range(3):
        x = rng.standard_normal(3)
        for use in uses:
            use(x)
        known = sum(compilations.values()), counted.runs if engine in ("jax", "tensorflow") else 0
        first = first or known
        assert known == first


@all_engines
def test_recorded_and_plain_sweeps_share_what_is_compiled(engine, compilations):
    counted = Counted(engine)
    x = array(np.ones(3))
    gradient = grad(counted.f)(x)
    first = compilations[engine]
    assert first == 2  # the value and the adjoint
    compute_gradient(counted.f(x), Control(x), record=True)
    gradient.block_variable  # noqa: B018  # now the gradient is recorded as well
    assert compilations[engine] == first


@all_engines
def test_checks_compile_nothing_more(engine, compilations):
    counted = Counted(engine)
    x = array(np.array([0.3, -0.8, 1.1]))
    rf = ReducedFunctional(counted.f(x), Control(x))
    assert verify(rf, x).passed
    first = compilations[engine], counted.runs
    assert taylor_test(rf, x, array(np.array([0.1, 0.2, -0.3]))) > 1.9
    assert verify(rf, array(np.array([1.0, 0.5, -0.2]))).passed
    assert compilations[engine] == first[0]
    if engine in ("jax", "tensorflow"):
        assert counted.runs == first[1]


@all_engines
def test_decorated_functions_of_one_signature_are_not_shared(engine):
    """Two functions with equal shapes are two programs, also when the first is forgotten."""
    e = engines.namespace(engine)
    x = array(np.ones(3))
    for k in range(3):
        f = e.overload(lambda x, k=k: e.sum(x) * (k + 1.0))
        assert float(f(x)) == 3.0 * (k + 1)


@tracing_engines
def test_a_failed_trace_is_not_kept(engine):
    e = engines.namespace(engine)
    broken = [True]

    def f(x):
        if broken[0]:
            raise ZeroDivisionError
        return e.sum(x)

    g = e.overload(f)
    x = array(np.ones(3))
    with pytest.raises(ZeroDivisionError):
        g(x)
    broken[0] = False
    assert float(g(x)) == 3.0


def held(engine, data, by_numpy):
    engines.namespace(engine)
    return array(data) if by_numpy else array(get_engine(get_engine(engine).holds).enter(data))


@all_engines
@pytest.mark.parametrize("by_numpy", [False, True])
@pytest.mark.parametrize(
    "index",
    [
        lambda k: k - 7,
        lambda k: (slice(1, 4), k % 5),
        lambda k: (k, Ellipsis, np.int64(k % 3)),
        lambda k: (k % 2, [2, 0]),
    ],
    ids=["backwards", "second axis", "two numbers", "beside an array"],
)
def test_the_numbers_of_an_index_are_arguments(engine, by_numpy, index):
    data, point, direction = np.random.default_rng(0).standard_normal((3, 7, 5, 3))
    with push_tape(Tape()) as tape:
        x, J = held(engine, data, by_numpy), 0.0
        for k in range(7):
            y = x[index(k)]
            np.testing.assert_array_equal(y.numpy(), data[index(k)])
            J = J + (y**3).sum() * (k + 1)
        rf = ReducedFunctional(J, Control(x), tape=tape)
        rf(array(point))
        gradient, product = rf.derivative().numpy(), rf.hessian(array(direction)).numpy()
        expected, second = np.zeros_like(data), np.zeros_like(data)
        for k in range(7):
            np.add.at(expected, index(k), 3 * (k + 1) * point[index(k)] ** 2)
            np.add.at(second, index(k), 6 * (k + 1) * point[index(k)] * direction[index(k)])
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    np.testing.assert_allclose(product, second, rtol=1e-12)
    indexing = [block.rules for block in tape.get_blocks() if block.rules.name == "getitem"]
    assert len(indexing) == 7
    assert len(set(indexing)) == 1


@all_engines
@pytest.mark.parametrize("by_numpy", [False, True])
@pytest.mark.parametrize("index", [7, -8, (slice(None), 5), (0, Ellipsis, -4)], ids=str)
def test_a_number_outside_of_an_axis_is_an_error(engine, by_numpy, index):
    with push_tape(Tape()) as tape:
        x = held(engine, np.ones((7, 5, 3)), by_numpy)
        for inside in (6, -7, (slice(None), 4), (0, Ellipsis, -3)):
            x[inside]
        with pytest.raises(IndexError, match="out of bounds"):
            x[index]
        assert len(tape.get_blocks()) == 4
