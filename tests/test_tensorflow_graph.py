"""TensorFlow 1 graphs and sessions."""

import gc
import weakref

import numpy as np
import pytest

tf2 = pytest.importorskip("tensorflow")
tf = tf2.compat.v1

from pyadjoint import get_working_tape  # noqa: E402
from pyadjoint.overloaded_type import create_overloaded_object  # noqa: E402

from pyadjoint_utils import (  # noqa: E402
    AdjFloat,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    RemovedOptionError,
    UnsupportedError,
    array,
    get_params_feed_dict,
    run_tensorflow_graph,
)

RNG = np.random.default_rng(3)


def random(*shape):
    return RNG.uniform(0.3, 0.9, shape)


class Model:
    """y = tanh(x w) v + b, s = sum(y^2), and a count of the graph's operations."""

    def __init__(self, use_resource=True, dtype=tf.float64):
        self.graph = tf.Graph()
        with self.graph.as_default():
            self.x = tf.placeholder(dtype, (None, 2), name="x")
            self.a = tf.placeholder(dtype, (), name="a")
            self.w = tf.Variable(random(2, 3), dtype=dtype, use_resource=use_resource)
            self.v = tf.Variable(random(3, 1), dtype=dtype, use_resource=use_resource)
            hidden = tf.tanh(tf.matmul(self.x, self.w))
            # The variable is read twice: both readings have to be fed.
            self.y = self.a * tf.matmul(hidden, self.v) + tf.reduce_sum(self.w**2)
            self.s = tf.reduce_sum(self.y**2)
            self.singular = tf.sqrt(self.x - self.x)
            initialize = tf.global_variables_initializer()
        self.sess = tf.Session(graph=self.graph)
        self.sess.run(initialize)

    @property
    def size(self):
        return len(self.graph.get_operations())


@pytest.fixture
def model():
    model = Model()
    with model.sess.as_default():
        yield model
    model.sess.close()


def check(rf, controls, seeds):
    """Tangent, adjoint and Hessian action against differences, at a point other than the recorded one."""
    as_list = lambda items: items if isinstance(items, (list, tuple)) else [items]
    numbers = lambda items: [np.asarray(i.numpy() if hasattr(i, "numpy") else float(i)) for i in as_list(items)]
    point = [np.asarray(c) * 1.1 for c in numbers(controls)]
    direction = [np.asarray(RNG.uniform(0.3, 0.9, p.shape)) for p in point]
    wrap = lambda values: [
        array(v) if not isinstance(c, AdjFloat) else AdjFloat(float(v)) for c, v in zip(controls, values, strict=True)
    ]

    def at(h, evaluate):
        y = rf(wrap([p + h * d for p, d in zip(point, direction, strict=True)]))
        return numbers(y if evaluate is None else evaluate())

    h = 1e-6
    seeds = [array(s) for s in seeds]
    seed = seeds if len(seeds) > 1 else seeds[0]
    difference = [(p - m) / (2 * h) for p, m in zip(at(h, None), at(-h, None), strict=True)]
    adjoint = lambda: rf.adj_jac_action(seed)
    second = [(p - m) / (2 * h) for p, m in zip(at(h, adjoint), at(-h, adjoint), strict=True)]
    rf(wrap(point))
    for found, expected in zip(numbers(rf.jac_action(wrap(direction))), difference, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    left = sum(np.vdot(a, b) for a, b in zip(numbers(adjoint()), direction, strict=True))
    assert left == pytest.approx(sum(np.vdot(a, b) for a, b in zip(difference, numbers(seeds), strict=True)), rel=1e-6)
    for found, expected in zip(numbers(rf.hess_action(wrap(direction), seed)), second, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_placeholders_to_second_order(model):
    x, a = array(random(5, 2)), array(1.5)
    y, s = run_tensorflow_graph((model.y, model.s), {model.x: x, model.a: a})
    np.testing.assert_allclose(y.numpy(), model.sess.run(model.y, {model.x: x.numpy(), model.a: 1.5}))
    check(ReducedFunction([y, s], [Control(x), Control(a)]), [x, a], [random(5, 1), np.array(0.7)])
    check(ReducedFunction([s], [Control(x), Control(a)]), [x, a], [np.array(0.7)])


def test_an_adjfloat(model):
    a = AdjFloat(1.5)
    s = run_tensorflow_graph(model.s, {model.x: random(5, 2), model.a: a})
    check(ReducedFunction([s], [Control(a)]), [a], [np.array(1.0)])


@pytest.mark.parametrize("use_resource", [True, False])
def test_variables_are_fed_and_keep_their_values(use_resource):
    model = Model(use_resource)
    before = model.sess.run([model.w, model.v])
    with model.sess.as_default():
        params = get_params_feed_dict()
        assert [p.shape for p in params.values()] == [(2, 3), (3, 1)]
        data = random(5, 2)
        s = run_tensorflow_graph(model.s, {model.x: data, model.a: 1.0, **params})
    check(ReducedFunction([s], [Control(p) for p in params.values()]), list(params.values()), [np.array(1.0)])
    for value, kept in zip(model.sess.run([model.w, model.v]), before, strict=True):
        np.testing.assert_array_equal(value, kept)
    # Changing the copies does not change the session's values, nor the other way round.
    model.sess.run(tf2.nest.flatten(model.s), {model.x: data, model.a: 1.0})


def test_a_variable_that_the_output_does_not_depend_on(model):
    with model.graph.as_default():
        unused = tf.Variable(random(4), dtype=tf.float64)
    z, x = array(random(4)), array(random(5, 2))
    s = run_tensorflow_graph(model.s, {model.x: x, model.a: 1.0, unused.ref(): z})
    gradient = ReducedFunction(s, [Control(z)]).adj_jac_action(array(1.0))
    np.testing.assert_array_equal(np.asarray(gradient[0].numpy()), np.zeros(4))


def test_operations_are_added_once(model):
    def sweep(n, sess):
        with sess.as_default():
            x = array(random(n, 2))
            s = run_tensorflow_graph(model.s, {model.x: x, model.a: 1.0})
            rf = ReducedFunction(s, Control(x))
            rf.jac_action(array(random(n, 2)))
            rf.adj_jac_action(array(1.0))
            rf.hess_action(array(random(n, 2)), array(1.0))

    sweep(5, model.sess)
    size = model.size
    sweep(7, model.sess)
    second = tf.Session(graph=model.graph)
    second.run([op for op in model.graph.get_operations() if op.type == "NoOp"])
    sweep(3, second)
    assert model.size == size


def test_containers_and_unseeded_outputs(model):
    x = array(random(5, 2))
    out = run_tensorflow_graph({"s": model.s, "more": [model.singular, model.x]}, {model.x: x, model.a: 2.0})
    np.testing.assert_array_equal(out["more"][1].numpy(), x.numpy())
    # The derivative of sqrt at 0 is not finite; nobody asks for it.
    gradient = ReducedFunction(out["s"], Control(x)).adj_jac_action(array(1.0))
    assert np.isfinite(gradient.numpy()).all()
    same = ReducedFunction(out["more"][1], Control(x)).adj_jac_action(array(np.full((5, 2), 3.0)))
    np.testing.assert_array_equal(same.numpy(), np.full((5, 2), 3.0))


def test_feeding_the_middle_of_a_graph(model):
    y, x = array(random(5, 1)), array(random(5, 2))
    s = run_tensorflow_graph(model.s, {model.y: y, model.x: x, "a:0": 1.0})
    gy, gx = ReducedFunction(s, [Control(y), Control(x)]).adj_jac_action(array(1.0))
    np.testing.assert_allclose(gy.numpy(), 2 * y.numpy())
    np.testing.assert_array_equal(gx.numpy(), np.zeros((5, 2)))


def test_dtypes_are_cast_and_come_back():
    model = Model(dtype=tf.float32)
    with model.sess.as_default():
        x = array(random(5, 2))
        s = run_tensorflow_graph(model.s, {model.x: x, model.a: 1})
        assert s.dtype == np.float32
        assert ReducedFunction(s, Control(x)).adj_jac_action(array(np.float32(1.0))).dtype == np.float64


def test_integers_pass_no_derivative():
    graph = tf.Graph()
    with graph.as_default():
        x, k = tf.placeholder(tf.float64, (3,)), tf.placeholder(tf.int32, ())
        y = tf.gather(x, k) ** 2
    with tf.Session(graph=graph).as_default():
        value, index = array(random(3)), array(np.int32(1))
        out = run_tensorflow_graph(y, {x: value, k: index})
        gradient = ReducedFunction(out, Control(value)).adj_jac_action(array(1.0))
        np.testing.assert_allclose(gradient.numpy(), [0, 2 * value.numpy()[1], 0])
        with pytest.raises(TypeError, match="dtype"):
            run_tensorflow_graph(y, {x: value, k: array(1.5)})


def test_complex_adjoint_is_the_conjugate_transpose():
    graph = tf.Graph()
    with graph.as_default():
        z = tf.placeholder(tf.complex128, ())
        y = z**2
    with tf.Session(graph=graph).as_default():
        value = array(1 + 1j)
        out = run_tensorflow_graph(y, {z: value})
    assert complex(ReducedFunction(out, Control(value)).adj_jac_action(array(1 + 0j))) == pytest.approx(2 - 2j)


def test_dropout_draws_once_per_call():
    graph = tf.Graph()
    with graph.as_default():
        x = tf.placeholder(tf.float64, (None,))
        y = tf.nn.dropout(x**2, rate=0.5)
    with tf.Session(graph=graph).as_default():
        value = array(random(50))
        first = run_tensorflow_graph(y, {x: value})
        mask = (first.numpy() != 0) * 2.0
        rf = ReducedFunction(first, Control(value))
        np.testing.assert_array_equal(rf(value).numpy(), first.numpy())
        gradient = rf.adj_jac_action(array(np.ones(50)))
        np.testing.assert_allclose(gradient.numpy(), mask * 2 * value.numpy())
        assert (run_tensorflow_graph(y, {x: value}).numpy() != first.numpy()).any()


def test_derivatives_that_tensorflow_loses():
    graph = tf.Graph()
    with graph.as_default():
        x = tf.placeholder(tf.float64, (3,))
        y = tf.py_func(np.sin, [x], tf.float64) + x
    with tf.Session(graph=graph).as_default():
        value = array(random(3))
        out = run_tensorflow_graph(y, {x: value})
        with pytest.raises(NotDifferentiableError, match="PyFunc"):
            ReducedFunction(out, Control(value)).adj_jac_action(array(np.ones(3)))


def test_assignments_are_refused():
    graph = tf.Graph()
    with graph.as_default():
        v = tf.Variable(1.0)
        with tf.control_dependencies([v.assign_add(1.0)]):
            y = tf.identity(tf.placeholder_with_default(1.0, ())) * 2.0
    with tf.Session(graph=graph).as_default(), pytest.raises(UnsupportedError, match="changes a variable"):
        run_tensorflow_graph(y, {})


def test_bad_input(model):
    x = random(5, 2)
    with pytest.raises(ValueError, match="shape"):
        run_tensorflow_graph(model.s, {model.x: random(5, 3), model.a: 1.0})
    with pytest.raises(ValueError, match="feed_dict"):
        run_tensorflow_graph(model.s, {"nowhere:0": x, model.a: 1.0})
    with pytest.raises(ValueError, match="feed_dict"):
        run_tensorflow_graph(model.s, {Model().x: x, model.a: 1.0})
    with pytest.raises(TypeError, match="feed_dict"):
        run_tensorflow_graph(model.s, {1.5: x, model.a: 1.0})
    with pytest.raises(TypeError, match="value for 'x:0'"):
        run_tensorflow_graph(model.s, {model.x: model.y, model.a: 1.0})
    with pytest.raises(TypeError, match="dtype"):
        run_tensorflow_graph(model.s, {model.x: array(x + 1j), model.a: 1.0})
    with pytest.raises(TypeError, match="output"):
        run_tensorflow_graph([1.0], {model.x: x, model.a: 1.0})
    with pytest.raises(RemovedOptionError, match="return_shapes"):
        run_tensorflow_graph(model.s, {model.x: x, model.a: 1.0}, return_shapes=[()])
    with pytest.raises(tf2.errors.InvalidArgumentError, match="feed a value"):
        run_tensorflow_graph(model.s, {model.x: x})


def test_no_session():
    with pytest.raises(ValueError, match="as_default"):
        run_tensorflow_graph(Model().s, {})
    with pytest.raises(ValueError, match="as_default"):
        get_params_feed_dict()


def test_eager_mode_stays_on(model):
    run_tensorflow_graph(model.s, {model.x: array(random(5, 2)), model.a: 1.0})
    assert tf2.executing_eagerly()


def test_graphs_are_freed():
    model = Model()
    with model.sess.as_default():
        x = array(random(5, 2))
        s = run_tensorflow_graph(model.s, {model.x: x, model.a: 1.0})
        ReducedFunction(s, Control(x)).adj_jac_action(array(1.0))
    model.sess.close()
    alive = weakref.ref(model.graph)
    get_working_tape().clear_tape()
    del model, s
    gc.collect()
    assert alive() is None


def test_keras_layers_in_a_graph():
    """The example of the documentation, with its calls unchanged."""
    layers = pytest.importorskip("tensorflow.keras").layers
    g = tf.Graph()
    with g.as_default():
        g_input = tf.placeholder(dtype=tf.float64, shape=(None, 2), name="input_data")
        z = g_input
        for layer_size in [40, 30, 20]:
            z = layers.Dense(layer_size, activation="tanh")(z)
        g_output = layers.Dense(1, activation="linear")(z)
        init = tf.global_variables_initializer()
        sess = tf.Session()
        sess.run(init)
    input = np.random.rand(15, 2)
    expected = sess.run(g_output, {g_input: input})
    from pyadjoint_utils.tensorflow_adjoint import run_tensorflow_graph

    with sess.as_default():
        pyadjoint_input = create_overloaded_object(input)
        output = run_tensorflow_graph(g_output, {g_input: pyadjoint_input})
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-6)
    gradient = ReducedFunction(output, Control(pyadjoint_input)).adj_jac_action(array(np.ones((15, 1), np.float32)))
    with g.as_default():
        reference = sess.run(tf.gradients(g_output, g_input)[0], {g_input: input})
    np.testing.assert_allclose(gradient.numpy(), reference, rtol=1e-5)
    assert len(get_params_feed_dict(sess)) == 8
