"""A tape inside TensorFlow: eagerly and in graphs, against the same program written in TensorFlow."""

import concurrent.futures
import copy
import pickle

import numpy as np
import pytest

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    UnsupportedError,
    array,
    overload_autograd,
    overload_numpy,
)

tf = pytest.importorskip("tensorflow")

from pyadjoint_utils import as_tensorflow, overload_tensorflow  # noqa: E402

X, A = tf.constant([0.3, -0.7, 1.1], tf.float64), tf.constant(0.8, tf.float64)
DX, DA = tf.constant([0.5, 0.2, -0.4], tf.float64), tf.constant(-0.6, tf.float64)


def mixed():
    """``(x, a) -> (sin(sum(sin(y) x) a), y^2)`` with ``y = exp(a x)``: NumPy, then TensorFlow, then NumPy."""
    x, a = array(np.array([1.0, 2.0, 3.0])), AdjFloat(1.5)
    y = np.exp(x * a)
    z = overload_tensorflow(lambda y, x: tf.reduce_sum(tf.sin(y) * x))(y, x)
    return ReducedFunction([np.sin(z * a), y * y], [Control(x), Control(a)])


def native(values):
    x, a = values
    y = tf.exp(x * a)
    return [tf.sin(tf.reduce_sum(tf.sin(y) * x) * a), y * y]


@pytest.fixture(scope="module")
def f():
    return as_tensorflow(mixed())


def scalar(f):
    """Not linear in what the tape returns, and with two calls at different points."""

    def g(x, a):
        z, y = f([x, a])
        return [tf.reduce_sum(y * y) * z + f([tf.sin(x), a * x[0]])[0]]

    return g


def joined(f):
    return lambda x, a: [tf.concat([tf.reshape(y, [-1]) for y in f([x, a])], 0)]


def gradient(g):
    def run(x, a):
        with tf.GradientTape() as tape:
            tape.watch([x, a])
            y = g(x, a)
        return tape.gradient(y, [x, a])

    return run


def forwards(g):
    def run(x, a):
        with tf.autodiff.ForwardAccumulator([x, a], [DX, DA]) as accumulator:
            y = g(x, a)
        return [accumulator.jvp(v, tf.UnconnectedGradients.ZERO) for v in y]

    return run


def jacobian(g):
    def run(x, a):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, a])
            (y,) = g(x, a)
        return tape.jacobian(y, [x, a])

    return run


def sizes(g):
    """The sum of what a function of several tensors returns."""
    return lambda x, a: [tf.add_n([tf.reduce_sum(v * v) for v in g(x, a)])]


MODES = {
    "value": lambda f: lambda x, a: f([x, a]),
    "gradient": lambda f: gradient(scalar(f)),
    "second order": lambda f: gradient(sizes(gradient(scalar(f)))),
    "third order": lambda f: gradient(sizes(gradient(sizes(gradient(scalar(f)))))),
    "jacobian": lambda f: jacobian(joined(f)),
    "jacobian of gradient": lambda f: jacobian(lambda x, a: gradient(scalar(f))(x, a)[:1]),
    "batch": lambda f: lambda x, a: tf.vectorized_map(lambda x: joined(f)(x, a)[0], tf.stack([x, 2 * x])),
    "gradient of batch": lambda f: gradient(
        lambda x, a: [tf.vectorized_map(lambda x: scalar(f)(x, a)[0], tf.stack([x, 2 * x]))]
    ),
    "map_fn": lambda f: gradient(lambda x, a: [tf.map_fn(lambda x: joined(f)(x, a)[0], tf.stack([x, 2 * x]))]),
}
FORWARDS = {
    "forward": lambda f: forwards(scalar(f)),
    "forward of gradient": lambda f: forwards(gradient(scalar(f))),
}


def compare(found, expected):
    for a, b in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", [*MODES, *FORWARDS])
def test_eagerly(f, mode):
    transform = (MODES | FORWARDS)[mode]
    compare(transform(f)(X, A), transform(native)(X, A))


@pytest.mark.parametrize("mode", MODES)
def test_in_a_graph(f, mode):
    compare(tf.function(MODES[mode](f))(X, A), MODES[mode](native)(X, A))


@pytest.mark.parametrize("mode", [*MODES, *FORWARDS])
def test_around_a_graph(f, mode):
    graph = tf.function(lambda x, a: f([x, a]))
    transform = (MODES | FORWARDS)[mode]
    compare(transform(lambda values: graph(*values))(X, A), transform(native)(X, A))


def test_a_first_call_in_forward_mode_is_right():
    """What TensorFlow traces while an accumulator is active has wrong gradients, which would be kept."""
    f = as_tensorflow(mixed())
    compare(forwards(lambda x, a: f([x, a]))(X, A), forwards(lambda x, a: native([x, a]))(X, A))
    compare(gradient(scalar(f))(X, A), gradient(scalar(native))(X, A))


def test_reverse_over_forward_and_forward_over_forward(f):
    """In closed form: TensorFlow's own forward mode, twice, is wrong for ``b c + b^3`` where c is a number."""
    hvp = forwards(gradient(scalar(native)))(X, A)
    compare(gradient(forwards(scalar(f)))(X, A), hvp)
    expected = tf.reduce_sum(hvp[0] * DX) + hvp[1] * DA
    x, a = array(np.ones(3)), AdjFloat(1.0)

    def whole(x, a):
        return scalar(native)(x, a)[0]

    g = as_tensorflow(ReducedFunction(overload_tensorflow(whole)(x, a), [Control(x), Control(a)]))
    compare(forwards(forwards(lambda x, a: [g([x, a])]))(X, A), [expected])


@pytest.mark.parametrize("mode", FORWARDS)
def test_forward_mode_inside_a_graph_is_refused(f, mode):
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="would take the derivative of the tape for zero"):
            tf.function(FORWARDS[mode](f))(X, A)
    compare(FORWARDS[mode](f)(X, A), FORWARDS[mode](native)(X, A))


def test_forward_mode_over_a_jacobian_is_refused_where_tensorflow_makes_a_graph_of_it(f):
    def forward_over_jacobian(g, pfor):
        with tf.autodiff.ForwardAccumulator(X, DX) as accumulator:
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(X)
                (y,) = joined(g)(X, A)
            rows = tape.jacobian(y, X, experimental_use_pfor=pfor)
        return accumulator.jvp(rows)

    with pytest.raises(UnsupportedError, match="experimental_use_pfor=False"):
        forward_over_jacobian(f, True)
    compare(forward_over_jacobian(f, False), forward_over_jacobian(native, False))


def test_autograph_leaves_the_tape_alone(f, caplog):
    log = tf.get_logger()
    log.addHandler(caplog.handler)
    try:
        tf.map_fn(lambda x: joined(f)(x, A)[0], tf.stack([X, 2 * X]))  # converts what it maps, eagerly too
        tf.function(lambda: f([X, A]))()
    finally:
        log.removeHandler(caplog.handler)
    assert "AutoGraph" not in caplog.text


def test_xla_is_refused(f):
    with pytest.raises(UnsupportedError, match="XLA cannot compile a tape with steps outside of TensorFlow"):
        tf.function(lambda x, a: f([x, a]), jit_compile=True)(X, A)
    x = array(np.ones(3))
    g = as_tensorflow(ReducedFunction(overload_tensorflow(tf.exp)(x), Control(x)))
    compare(tf.function(g, jit_compile=True)(X), tf.exp(X))


def test_steps_of_tensorflow_are_in_the_callers_graph():
    x = array(np.ones(3))
    g = as_tensorflow(ReducedFunction(overload_tensorflow(tf.exp)(x), Control(x)))
    operations = {op.type for op in tf.function(g).get_concrete_function(X).graph.get_operations()}
    assert "Exp" in operations
    assert not any("PyFunc" in name for name in operations)


Z = tf.constant([0.3 + 0.5j, -0.2 + 1.0j], tf.complex128)


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function])
def test_complex_numbers_follow_tensorflow(wrap):
    z = array(np.array([1.0, 1.0j]))
    y = np.sin(z) * z
    g = as_tensorflow(ReducedFunction([y, (y * np.conj(y)).real.sum()], [Control(z)]))

    def plain(values):
        (z,) = values
        y = tf.sin(z) * z
        return [y, tf.reduce_sum(tf.math.real(y * tf.math.conj(y)))]

    def derivatives(f):
        @wrap
        def run(z):
            with tf.GradientTape() as outer:
                outer.watch(z)
                with tf.GradientTape(persistent=True) as tape:
                    tape.watch(z)
                    y, s = f([z])
                first = tape.gradient(y, z, tf.constant([1 + 2j, -1j], tf.complex128)), tape.gradient(s, z)
            return first, outer.gradient(first[1], z, tf.constant([0.5j, 1.0], tf.complex128))

        return run

    compare(derivatives(g)(Z), derivatives(plain)(Z))


def test_single_precision_stays_single():
    x = array(np.array([1.0, 2.0], np.float32))
    g = as_tensorflow(ReducedFunction(np.sin(x) * x, Control(x)))
    x = tf.Variable([0.5, 0.7])
    with tf.GradientTape() as tape:
        y = g(x)
    assert y.dtype == tape.gradient(y, x).dtype == tf.float32


def test_a_call_keeps_its_own_point():
    a = AdjFloat(1.0)
    rf = ReducedFunction(a * a, Control(a))
    g = as_tensorflow(rf)
    for wrap in (lambda f: f, tf.function):
        a = tf.constant(3.0, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(a)
            y = wrap(lambda a: g(a) + g(2 * a))(a)
        rf(100.0)
        g(tf.constant(7.0, tf.float64))
        assert float(tape.gradient(y, a)) == 30
    rf.tape.clear_tape()
    assert float(g(3)) == 9


def test_what_nobody_watches_has_no_gradient_and_what_somebody_watches_has():
    runs = []

    def counted(a):
        runs.append(None)
        return np.sum(a * a)

    x, a = array(np.ones(3)), array(1.5)
    y = overload_autograd(counted)(a) * np.sin(x).sum()
    f = as_tensorflow(ReducedFunction(y, [Control(x), Control(a)]))
    with tf.GradientTape() as tape:
        tape.watch(X)
        y = f([X, A])
    runs.clear()
    np.testing.assert_allclose(tape.gradient(y, X), A**2 * tf.cos(X))
    assert not runs
    for first, second, wanted in ((X, A, 2 * A * tf.reduce_sum(tf.cos(X))), (A, X, 2 * A * tf.cos(X))):
        with tf.GradientTape() as outer:
            outer.watch(second)
            with tf.GradientTape() as inner:
                inner.watch(first)
                y = f([X, A])
            d = tf.reduce_sum(inner.gradient(y, first))
        np.testing.assert_allclose(outer.gradient(d, second), wanted)
    with tf.autodiff.ForwardAccumulator(A, DA) as accumulator, tf.GradientTape() as tape:
        tape.watch(X)
        d = tape.gradient(f([X, A]), X)
    np.testing.assert_allclose(accumulator.jvp(d), 2 * A * tf.cos(X) * DA)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([X, A])
        y = f([X, A])
        d = tape.gradient(y, A)
    np.testing.assert_allclose(tape.gradient(d, X), 2 * A * tf.cos(X))


def test_threads_do_not_disturb_each_other():
    x = array(np.array([1.0, 2.0]))
    y = overload_numpy(lambda x: x * x, method="central")(np.sin(x))
    g = as_tensorflow(ReducedFunction(y, Control(x)))

    def eager(k):
        v = tf.constant([0.1 * k, 1.0], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(v)
            y = tf.reduce_sum(g(v))
        return tape.gradient(y, v)

    rows = tf.constant([[0.1 * k, 1.0] for k in range(32)], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(rows)
        y = tf.function(lambda rows: tf.map_fn(g, rows, parallel_iterations=8))(rows)
    expected = [np.sin([0.2 * k, 2.0]) for k in range(32)]
    np.testing.assert_allclose(tape.gradient(y, rows), expected, atol=1e-8)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        np.testing.assert_allclose(list(pool.map(eager, range(32))), expected, atol=1e-8)


def test_batches_go_through_in_one_call_where_their_size_is_known(monkeypatch):
    import bridges.tensorflow_inside as inside

    calls = []
    real = inside.HostFunction.evaluate
    monkeypatch.setattr(inside.HostFunction, "evaluate", lambda f, *a: calls.append(f.name) or real(f, *a))
    x = array(np.array([1.0, 2.0]))
    g = as_tensorflow(ReducedFunction(np.sin(x), Control(x)))
    rows = tf.reshape(tf.range(10, dtype=tf.float64), [5, 2])
    compare(tf.vectorized_map(g, rows), tf.sin(rows))
    assert calls[0] == "batch of sin"
    assert calls.count("batch of sin") == 1
    calls.clear()
    with tf.GradientTape() as tape:
        tape.watch(x := rows[0])
        y = g(x)
    compare(tape.jacobian(y, x), tf.linalg.diag(tf.cos(x)))
    assert calls[:2] == ["sin", "batch of vjp(sin)"]
    assert calls.count("batch of vjp(sin)") == 1


def test_unknown_shapes_are_settled_when_the_graph_runs():
    x = array(np.array([1.0, 2.0]))
    g = as_tensorflow(ReducedFunction(np.sin(x), Control(x)))
    graph = tf.function(g, input_signature=[tf.TensorSpec([None], tf.float64)])
    compare(graph(X[:2]), tf.sin(X[:2]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible with expected shape"):
        graph(X)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([X, A, A], ArgumentValueError, "one entry for each of the 2 controls; got 3"),
        (X, ArgumentTypeError, "controls must be a list of 2"),
        ([X[:2], A], ArgumentValueError, r"controls\[0\] .*float64\[3\]; got float64\[2\]"),
        ([tf.ones((2, 3), tf.float64), A], ArgumentValueError, r"map over leading axes with tf\.vectorized_map\."),
        ([tf.cast(X, tf.float32), A], ArgumentTypeError, r"controls\[0\] .*float64\[3\]; got float32\[3\]"),
        ([X, AdjFloat(1.0)], ArgumentTypeError, r"controls\[1\] must be a tf.Tensor.*; got AdjFloat"),
        ([array(np.ones(3)), A], ArgumentTypeError, r"controls\[0\] must be a tf.Tensor.*; got ndarray"),
    ],
)
def test_bad_arguments_are_refused_by_name(f, values, error, message):
    with pytest.raises(error, match=message):
        f(values)
    with pytest.raises(error, match=message):
        tf.function(lambda: f(values))()
    compare(f([X.numpy(), 0.8]), native([X, A]))


def test_an_error_inside_reaches_the_caller_and_the_next_call_works():
    def value(x):
        if x[0] < 0:
            raise ValueError("no root below zero")
        return np.sqrt(x)

    def pull(primals, yb):
        if primals[0][0] == 0:
            raise ZeroDivisionError("vertical tangent")
        return yb / (2 * np.sqrt(primals[0]))

    x = array(np.array([1.0, 2.0]))
    g = as_tensorflow(ReducedFunction(overload_numpy(value, vjp=pull)(x), Control(x)))
    graph = tf.function(g)
    below, zero, good = (tf.constant([v, 4.0], tf.float64) for v in (-1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="no root below zero"):
        g(below)
    with pytest.raises(tf.errors.OpError, match="no root below zero"):
        graph(below)
    with tf.GradientTape() as tape:
        tape.watch(zero)
        y = g(zero)
    with pytest.raises(ZeroDivisionError, match="vertical tangent"):
        tape.gradient(y, zero)
    for h in (g, graph):
        with tf.GradientTape() as tape:
            tape.watch(good)
            y = h(good)
        compare(tape.gradient(y, good), np.array([0.5, 0.25]))


def test_a_third_derivative_that_nobody_has_is_refused():
    x = array(np.array([1.0, 2.0]))
    square = overload_numpy(
        lambda x: x * x,
        jvp=lambda p, t: 2 * p[0] * t[0],
        vjp=lambda p, yb: 2 * p[0] * yb,
        hvp=lambda p, t, yb, dyb: 2 * (t[0] * yb + p[0] * dyb),
    )
    g = as_tensorflow(ReducedFunction(square(np.sin(x)), Control(x)))
    x = tf.constant([0.1, 0.2], tf.float64)
    with tf.GradientTape() as third:
        third.watch(x)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = g(x)
            first = tape.gradient(y, x)
        second = outer.gradient(first, x)
    np.testing.assert_allclose(second, 2 * np.cos(2 * x), atol=1e-6)
    with pytest.raises(NotDifferentiableError, match="a third one was asked for"):
        third.gradient(second, x)


def test_inputs_lists_and_outputs_are_those_of_the_reduced_function():
    x, b, k = array(np.array([1.0, 2.0])), array(np.array([3.0, 4.0])), array(np.array([1, 0]))
    g = as_tensorflow(ReducedFunction([x * x * b * k, x], [Control(x)], inputs=[b, k]))
    v = tf.Variable([0.1, 0.2], dtype=tf.float64)
    y, same = g([v])
    compare([y, same], [np.array([0.03, 0.0]), np.array([0.1, 0.2])])
    b = tf.constant([5.0, 6.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(b)
        y, same = g([v], [b, tf.constant([0, 1], tf.int64)])
    compare(tape.gradient([y, same], b), np.array([0.0, 0.04]))
    a = AdjFloat(2.0)
    assert float(as_tensorflow(ReducedFunctional(a * a, Control(a), scale=-2.0))(3)) == -18


def test_layers_train():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(6, 3))
    target = np.tanh(data @ [0.5, -1.0, 2.0])
    x, theta = array(data), array(np.array([0.1, 0.2, 0.3]))
    rf = ReducedFunction(np.tanh(x @ theta), [Control(x), Control(theta)])
    layer = as_tensorflow(rf, parameters={"theta": rf.controls[1]}, name="simulator")
    assert [(w.name, w.numpy().tolist()) for w in layer.trainable_weights] == [("theta", [0.1, 0.2, 0.3])]
    model = tf.keras.Sequential([tf.keras.Input(batch_shape=(6, 3), dtype="float64"), layer])
    model.compile(optimizer=tf.keras.optimizers.SGD(1.0), loss="mse")
    history = model.fit(data, target, batch_size=6, epochs=10, verbose=0)
    assert history.history["loss"][-1] < 0.2 * history.history["loss"][0]
    np.testing.assert_allclose(layer(data), np.tanh(data @ layer.trainable_weights[0].numpy()))
    with pytest.raises(ArgumentValueError, match=r"one value each for controls\[0\]; got 2"):
        layer(data, data)
    with pytest.raises(ArgumentValueError, match=r"must be one of the 2 control\(s\)"):
        as_tensorflow(rf, parameters={"theta": Control(array(1.0))})
    for name in ("a/b", "", 0):
        with pytest.raises(ArgumentValueError, match=f"got {name!r}"):
            as_tensorflow(rf, parameters={name: rf.controls[1]})


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras
def test_numbers_are_saved_and_tapes_are_not(tmp_path):
    x, theta = array(np.ones((2, 3))), array(np.ones(3))
    rf = ReducedFunction(x * theta, [Control(x), Control(theta)])
    layer = as_tensorflow(rf, parameters={"theta": rf.controls[1]})
    model = tf.keras.Sequential([tf.keras.Input(batch_shape=(2, 3), dtype="float64"), layer])
    savers = [
        pickle.dumps,
        copy.deepcopy,
        lambda m: m.save(tmp_path / "model.keras"),
        tf.keras.models.clone_model,
        lambda m: tf.saved_model.save(m, str(tmp_path)),
    ]
    for save in savers:
        with pytest.raises(UnsupportedError, match=r"cannot be saved as a whole.*model\.save_weights\(path\)"):
            save(model)
    with pytest.raises(UnsupportedError, match="Save the values of its controls"):
        pickle.dumps(as_tensorflow(rf))
    assert copy.copy(as_tensorflow(rf))([x.numpy(), theta.numpy()]).shape == (2, 3)
    model.save_weights(tmp_path / "numbers.weights.h5")
    layer.trainable_weights[0].assign(np.zeros(3))
    model.load_weights(tmp_path / "numbers.weights.h5")
    assert model(x.numpy()).numpy().tolist() == x.tolist()
