"""What is special to TensorFlow: eager tensors, tracing, Keras models, and what TensorFlow would compute wrongly."""

import gc

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from pyadjoint_utils import (  # noqa: E402
    CapturedValueError,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    UnsupportedError,
    array,
    asarray,
    get_engine,
    overload_tensorflow,
    parameters,
)

ENGINE = get_engine("tensorflow")
RNG = np.random.default_rng(7)
STEP = 1e-6


def random(*shape, dtype=np.float64):
    real = RNG.uniform(0.3, 0.9, shape)
    return (
        (real + 1j * RNG.uniform(0.3, 0.9, shape)).astype(dtype) if np.dtype(dtype).kind == "c" else real.astype(dtype)
    )


def like(a):
    return np.asarray(random(*a.shape, dtype=a.dtype))


def pairing(a, b):
    return sum(float(np.real(np.vdot(p, q))) for p, q in zip(a, b, strict=True))


def entered(arrays):
    return tuple([ENGINE.enter(np.array(a)) for a in arrays])


def left(tensors):
    return [ENGINE.to_numpy(t) for t in tensors]


def apply(f, *arrays):
    return left(ENGINE.compile(f, [])(entered(arrays), ()))


def shifted(x, dx, h):
    return [a + h * d for a, d in zip(x, dx, strict=True)]


def check_to_second_order(f, x, tolerance=1e-6):
    """Tangent against differences, adjoint against tangent, Hessian piece against differences of the adjoint."""
    n = len(x)
    y = apply(f, *x)
    dx, yb, dyb = [like(a) for a in x], [like(a) for a in y], [like(a) for a in y]
    vjp = ENGINE.vjp_of(f, n)
    dy = apply(ENGINE.jvp_of(f, n), *x, *dx)[len(y) :]
    ahead, behind = apply(f, *shifted(x, dx, STEP)), apply(f, *shifted(x, dx, -STEP))
    for a, p, m in zip(dy, ahead, behind, strict=True):
        np.testing.assert_allclose(a, (p - m) / (2 * STEP), rtol=tolerance, atol=tolerance)
    xb = apply(vjp, *x, *yb)
    assert [b.dtype for b in xb] == [a.dtype for a in x]
    assert pairing(dy, yb) == pytest.approx(pairing(dx, xb), rel=1e-10)
    result = apply(ENGINE.jvp_of(vjp, n + len(y)), *x, *yb, *dx, *dyb)
    ahead = apply(vjp, *shifted(x, dx, STEP), *shifted(yb, dyb, STEP))
    behind = apply(vjp, *shifted(x, dx, -STEP), *shifted(yb, dyb, -STEP))
    for a, p, m in zip(result[n:], ahead, behind, strict=True):
        np.testing.assert_allclose(a, (p - m) / (2 * STEP), rtol=10 * tolerance, atol=10 * tolerance)


# Maps --------------------------------------------------------------------------------------------------------------------

MAPS = {
    "two in, two out": (lambda x, c: (x[0] * tf.sin(x[1]), x[0] + x[1] ** 3), [random(3), random(3)]),
    "unused input": (lambda x, c: (x[0] ** 3,), [random(3), random(2)]),
    "independent output": (lambda x, c: (x[0] ** 3, tf.ones((2,), tf.float64)), [random(3)]),
    "returns its input": (lambda x, c: (x[0], x[0] * x[0]), [random(3)]),
    "complex": (
        lambda x, c: (x[0] ** 2 * tf.math.conj(x[1]), tf.exp(x[0])),
        [random(3, dtype=complex), random(3, dtype=complex)],
    ),
    "complex of real": (lambda x, c: (tf.complex(x[0], x[0] ** 2),), [random(3)]),
    "real of complex": (lambda x, c: (tf.abs(x[0]) ** 3, tf.math.imag(x[0] ** 2)), [random(3, dtype=complex)]),
    "gather twice": (lambda x, c: (tf.gather(x[0], [0, 0, 2]) ** 3,), [random(4)]),
    "while": (
        lambda x, c: (tf.while_loop(lambda i, s: i < 3, lambda i, s: (i + 1, tf.sin(s) * x[0]), (0, x[0]))[1],),
        [random(3)],
    ),
    "scan": (lambda x, c: (tf.scan(lambda s, a: s * a + tf.sin(s), x[0]),), [random(4)]),
    "custom gradient": (
        lambda x, c: (tf.custom_gradient(lambda a: (tf.sin(a), lambda g: g * tf.cos(a)))(x[0]),),
        [random(3)],
    ),
    "inner function": (lambda x, c: (tf.function(lambda a: a * tf.sin(a))(x[0]),), [random(3)]),
    "convolution": (
        lambda x, c: (tf.nn.max_pool2d(tf.nn.conv2d(x[0], x[1], 1, "SAME"), 2, 1, "VALID"),),
        [random(1, 4, 4, 1), random(2, 2, 1, 2)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MAPS)
def test_maps_to_second_order(name):
    check_to_second_order(*MAPS[name])


def test_third_order_against_the_closed_form():
    f = lambda x, c: (x[0] ** 4,)
    x, one = np.array(1.3), np.array(1.0)
    third = ENGINE.vjp_of(ENGINE.jvp_of(ENGINE.vjp_of(f, 1), 2), 4)
    zero = np.array(0.0)
    # The cotangent selects d/dx of the second output of (xb, dxb) = (4 x^3 yb, 12 x^2 yb dx + 4 x^3 dyb).
    found = apply(third, x, one, one, zero, zero, one)
    assert float(found[0]) == pytest.approx(24 * 1.3)


def test_the_same_tensor_passed_twice():
    f = lambda x, c: (x[0] * x[1] ** 2 * c[0],)
    x = tf.constant([2.0], tf.float64)
    xb = ENGINE.vjp_of(f, 2)((x, x, tf.ones_like(x)), (x,))
    assert [float(b[0]) for b in xb] == [8.0, 16.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_dtypes_stay(dtype):
    f = overload_tensorflow(lambda x: tf.reduce_sum(x * x * x))
    x = array(random(3, dtype=dtype))
    y = f(x)
    rf = ReducedFunction(y, Control(x))
    direction = array(random(3, dtype=dtype))
    assert y.dtype == dtype
    assert rf.adj_jac_action(array(np.ones((), dtype))).dtype == dtype
    assert rf.jac_action(direction).dtype == dtype
    assert rf.hess_action(direction, array(np.ones((), dtype))).dtype == dtype


def test_nothing_is_traced_twice():
    traces = []

    def f(x, scale):
        traces.append(1)
        return tf.reduce_sum(scale * x**3)

    g = overload_tensorflow(f)
    x = array(random(3))
    rf = ReducedFunction(g(x, 2.0), Control(x))
    g(array(random(3)), 3.0)
    assert len(traces) == 1

    def sweep():
        m = array(random(3))
        rf(m)
        np.testing.assert_allclose(rf.adj_jac_action(array(1.0)).numpy(), 6 * m.numpy() ** 2)
        np.testing.assert_allclose(rf.hess_action(array([1.0, 0.0, 0.0]), array(1.0)).numpy()[0], 12 * m.numpy()[0])

    sweep()
    once = len(traces)
    sweep()
    assert len(traces) == once


def test_another_shape_is_another_graph():
    mean = lambda x, c: (tf.reduce_mean(x[0] ** 2),)
    compiled = ENGINE.compile(mean, [])
    assert float(compiled(entered([np.ones(100)]), ())[0]) == 1.0
    assert float(compiled(entered([np.ones(3)]), ())[0]) == 1.0


def test_containers_and_keywords():
    f = overload_tensorflow(lambda p, *, scale: {"a": scale * p["w"][0] ** 2, "b": [p["w"][1], None]})
    w = array([1.0, 2.0]), array(3.0)
    out = f({"w": list(w)}, scale=array(2.0))
    np.testing.assert_allclose(out["a"].numpy(), [2.0, 8.0])
    assert out["b"][1] is None
    np.testing.assert_allclose(
        ReducedFunction(out["a"], Control(w[0])).adj_jac_action(array([1.0, 1.0])).numpy(), [4.0, 8.0]
    )


def test_runs_inside_the_users_own_tf_function_and_overloaded_function():
    square = overload_tensorflow(lambda x: x * x)
    assert float(tf.function(lambda x: square(x) + 1.0)(tf.constant(3.0))) == 10.0
    outer = overload_tensorflow(lambda x: tf.reduce_sum(square(x) * x))
    x = array(2.0)
    assert float(ReducedFunction(outer(x), Control(x)).adj_jac_action(array(1.0))) == 12.0


def test_jit_false_evaluates_eagerly_and_traces_derivatives():
    seen = []
    f = overload_tensorflow(lambda x: (seen.append(tf.executing_eagerly()), x**3)[1], jit=False)
    x = array(2.0)
    rf = ReducedFunction(f(x), Control(x))
    assert rf(array(3.0)).item() == 27.0
    assert seen == [True, True]
    assert float(rf.hess_action(array(1.0), array(1.0))) == 18.0
    assert seen[-1] is False


def test_a_number_taken_out_of_an_eager_tensor_is_no_silent_zero():
    x = array([0.3, 0.7])
    rf = ReducedFunction(overload_tensorflow(lambda v: v * v[0].numpy(), jit=False)(x), Control(x))
    with pytest.raises((AttributeError, NotImplementedError)):
        rf.jac_action(x)


# Arrays in and out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::-2],
        np.broadcast_to(1.0, (2, 2)),
        np.arange(3, dtype=">f8"),
        np.frombuffer(bytes(33), np.uint8)[1:].view(np.float64),
        np.array(2.0),
        np.array([True, False]),
        np.zeros((0, 3)),
        np.arange(3) + 1j,
    ],
    ids=["transposed", "reversed", "broadcast", "big-endian", "unaligned", "0-d", "bool", "empty", "complex"],
)
def test_numpy_arrays_enter(source):
    tensor = ENGINE.enter(source)
    assert ENGINE.aval(tensor).shape == source.shape
    np.testing.assert_array_equal(ENGINE.to_numpy(tf.identity(tensor)), source)
    # A kernel that runs on unaligned memory would end the process.
    if source.dtype.kind == "f":
        np.testing.assert_allclose(ENGINE.to_numpy(tf.exp(tensor)), np.exp(source))


def test_aligned_memory_is_shared_both_ways():
    raw = np.zeros(100 + 8)
    offset = (-raw.ctypes.data % 64) // 8
    source = raw[offset : offset + 100]
    back = ENGINE.to_numpy(ENGINE.enter(source))
    assert back.ctypes.data == source.ctypes.data
    assert not back.flags.writeable


def test_arrays_of_torch():
    torch = pytest.importorskip("torch")
    source = torch.tensor([1 + 2j, 3 - 1j, 5j]).conj()[1:]
    tensor = ENGINE.enter(get_engine("torch").export(source))
    np.testing.assert_array_equal(tensor.numpy(), source.numpy(force=True))
    unaligned = torch.arange(5.0)[1:]
    np.testing.assert_allclose(tf.exp(ENGINE.enter(unaligned)).numpy(), np.exp(unaligned.numpy()), rtol=1e-6)


def test_bfloat16():
    t = tf.constant([1.5, 2.0], tf.bfloat16)
    assert ENGINE.aval(t).dtype.name == "bfloat16"
    assert ENGINE.enter(ENGINE.to_numpy(t)).dtype == tf.bfloat16


def test_a_variable_gives_its_present_value():
    v = tf.Variable([1.0, 2.0])
    x = array(v)
    v.assign([5.0, 5.0])
    np.testing.assert_array_equal(x.numpy(), [1.0, 2.0])
    assert x.engine == "tensorflow"
    f = overload_tensorflow(lambda x, v: tf.reduce_sum(x * v))
    y = f(x, v)
    gradient = ReducedFunction(y, Control(x))
    np.testing.assert_array_equal(asarray(v).numpy(), [5.0, 5.0])
    v.assign([7.0, 7.0])
    np.testing.assert_array_equal(gradient.adj_jac_action(array(np.float32(1.0))).numpy(), [5.0, 5.0])
    taken = ENGINE.copy(v)
    v.assign_add([1.0, 1.0])
    np.testing.assert_array_equal(taken.numpy(), [7.0, 7.0])


# Functions of NumPy names ------------------------------------------------------------------------------------------------

X3 = random(3, 4, 5)
INDICES = [
    0, -1, (0, 1), (slice(None), 1), slice(None, None, -1), (slice(2, 0, -1), Ellipsis, slice(0, 5, 2)),
    (None, 0, None, Ellipsis), np.array([0, 2, -1]), (slice(None), np.array([0, 2])), (np.array([0, 1]), np.array([1, 2])),
    (np.array([0, 1]), slice(None), np.array([1, 2])), (slice(None), np.array([[0, 1], [1, 1]]), np.array([1, 2])),
    (0, slice(None), np.array([1, 2])), (slice(None), 0, np.array([1, 2])), X3 > 0.5, [0, 2], np.int64(1),
    (slice(None), np.array([True, False, True, True])), (None, np.array([1, 1]), None, slice(1, 4)), (),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=[str(k) for k in range(len(INDICES))])
def test_indexing(index):
    taken = ENGINE.function("getitem")
    f = lambda x, c: (taken(x[0], index) ** 2,)
    np.testing.assert_array_equal(apply(f, X3)[0], X3[index] ** 2)
    vjp, seed = ENGINE.vjp_of(f, 1), like(np.asarray(X3[index]))
    expected = np.zeros_like(X3)
    np.add.at(expected, index, 2 * X3[index] * seed)
    np.testing.assert_allclose(apply(vjp, X3, seed)[0], expected)


def test_indexing_out_of_bounds_raises():
    x = array(tf.constant([1.0, 2.0]))
    with pytest.raises(IndexError, match="too many"):
        x[0, 0]
    with pytest.raises(Exception, match=r"(?i)bound|invalid|index"):
        x[np.array([5])].numpy()


SQUARE = random(3, 3) + 2 * np.eye(3)
COMPLEX = random(3, 3, dtype=complex) + 2 * np.eye(3)
FUNCTIONS = [
    ("power", [random(3), 3]), ("power", [random(3), -2]), ("power", [random(3), random(3)]), ("sqrt", [random(3)]),
    ("maximum", [random(3), random(3)]), ("hypot", [random(3), random(3)]), ("arctan2", [random(3), random(3)]),
    ("matmul", [random(2, 3), random(3, 4, dtype=complex)]), ("dot", [random(3), random(3)]),
    ("var", [random(3, 4), 1]), ("std", [random(3, dtype=complex)]),
    ("prod", [random(3)]), ("prod", [np.array([1.0, 0.0, 2.0, 0.5])]), ("prod", [random(2, 3, 3), (0, -1)]),
    ("prod", [np.zeros((2, 0))]), ("prod", [random(3, dtype=complex)]), ("cumprod", [random(2, 2)]),
    ("cumprod", [np.array([1.0, 0.0, 2.0, 0.0, 3.0])]), ("cumprod", [random(2, 5, dtype=complex), 1]),
    ("logaddexp", [np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])]), ("logaddexp2", [random(3), random(3)]),
    ("cumsum", [random(3, 2), 0]),
    ("vdot", [random(3, dtype=complex), random(3, dtype=complex)]), ("multiply", [random(2), random(2, dtype=complex)]),
    ("linalg.norm", [random(3, 4)]), ("linalg.norm", [random(3, dtype=complex)]), ("linalg.solve", [SQUARE, random(3)]),
    ("linalg.solve", [COMPLEX, random(3, 2, dtype=complex)]), ("linalg.inv", [COMPLEX]), ("linalg.det", [SQUARE]),
    ("linalg.slogdet", [SQUARE]), ("fft.fft", [random(6)]), ("fft.ifft", [random(3, 4, dtype=complex), 5, 0, "ortho"]),
    ("fft.fft2", [random(3, 4, dtype=complex)]), ("abs", [random(3, dtype=complex)]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args"), FUNCTIONS, ids=[f"{k}-{name}" for k, (name, _) in enumerate(FUNCTIONS)])
def test_functions_of_numpy_names(name, args):
    function, reference = ENGINE.function(name), np
    for part in name.split("."):
        reference = getattr(reference, part)
    x = [a for a in args if isinstance(a, np.ndarray)]
    rest = args[len(x) :]

    def f(x, c):
        y = function(*x, *rest)
        return tuple(y) if isinstance(y, tuple) else (y,)

    expected = reference(*x, *rest)
    for found, y in zip(apply(f, *x), expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_allclose(found, y)
        assert found.dtype == y.dtype
    check_to_second_order(f, x)


def test_integer_powers_are_smooth_at_zero():
    x = array(tf.constant([0.0, 2.0], tf.float64))
    rf = ReducedFunction((x**2).sum(), Control(x))
    np.testing.assert_array_equal(rf.hess_action(array([1.0, 1.0]), array(1.0)).numpy(), [2.0, 2.0])


def test_arithmetic_of_tensors_is_recorded():
    x = array(tf.constant([1.0, 2.0]))
    y = (2 * x[1:] + np.sin(x[:1])).sum()
    assert y.engine == "tensorflow"
    assert y.dtype == np.float32
    gradient = ReducedFunction(y, Control(x)).adj_jac_action(array(np.float32(1.0)))
    np.testing.assert_allclose(gradient.numpy(), [np.cos(1.0), 2.0], rtol=1e-6)


# What is refused ---------------------------------------------------------------------------------------------------------


def first_derivative(f, *args):
    x = array(args[0])
    y = overload_tensorflow(f)(x, *args[1:])
    return ReducedFunction(y, Control(x)).adj_jac_action(array(np.ones(y.shape, y.dtype)))


def test_captured_variables():
    v = tf.Variable(2.0)
    with pytest.raises(CapturedValueError, match="overload_tensorflow\\(model\\)"):
        overload_tensorflow(lambda x: v * x)(array(np.float32(1.0)))
    x = array(np.float32(3.0))
    y = overload_tensorflow(lambda x: v * x, jit=False)(x)
    with pytest.raises(CapturedValueError):
        ReducedFunction(y, Control(x)).adj_jac_action(array(np.float32(1.0)))
    constant = tf.Variable(2.0, trainable=False)
    assert float(first_derivative(lambda x: constant * x, np.float32(3.0))) == 2.0


@pytest.mark.parametrize("inner", [lambda f: f, tf.function], ids=["plain", "nested"])
def test_functions_that_cannot_be_replayed(inner):
    state = tf.Variable(0.0, trainable=False)
    with pytest.raises(UnsupportedError, match="stateless"):
        overload_tensorflow(inner(lambda x: x * tf.random.normal([3], dtype=tf.float64)))(array(random(3)))
    with pytest.raises(UnsupportedError, match="changes a variable"):
        overload_tensorflow(inner(lambda x: (state.assign_add(1.0), x)[1]))(array(random(3)))


REFUSED = {
    "numpy_function": (lambda x: tf.numpy_function(np.sin, [x], tf.float64), random(3)),
    "py_function": (lambda x: tf.py_function(tf.sin, [x], tf.float64), random(3)),
    "complex squared difference": (lambda x: tf.math.squared_difference(x, 1j), random(3, dtype=complex)),
    "complex determinant": (lambda x: tf.linalg.det(x), COMPLEX),
    "zeta": (lambda x: tf.math.zeta(x + 2, x), random(3)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_derivatives_that_tensorflow_gets_wrong(name):
    with pytest.raises(NotDifferentiableError):
        first_derivative(*REFUSED[name])


def test_tangents_and_second_derivatives_that_tensorflow_gets_wrong():
    x = array(random(1, 2, 2, 1))
    y = overload_tensorflow(lambda x: tf.image.resize(x, [4, 4]))(x)
    rf = ReducedFunction(y, Control(x))
    assert float(rf.adj_jac_action(array(np.ones(y.shape, y.dtype))).numpy().sum()) == pytest.approx(16.0)
    with pytest.raises(NotDifferentiableError, match="ResizeBilinearGrad"):
        rf.jac_action(array(random(1, 2, 2, 1)))
    x = array(random(4))
    rf = ReducedFunction(overload_tensorflow(lambda x: tf.nn.moments(x, 0)[1])(x), Control(x))
    np.testing.assert_allclose(rf.adj_jac_action(array(1.0)).numpy(), (x.numpy() - x.numpy().mean()) / 2)
    with pytest.raises(NotDifferentiableError, match="moments"):
        rf.hess_action(array(random(4)), array(1.0))
    x = array(random(3))
    rf = ReducedFunction(overload_tensorflow(lambda x: tf.math.lgamma(x))(x), Control(x))
    assert rf.hess_action(array(np.ones(3)), array(np.ones(3))).shape == (3,)


def test_derivatives_that_divide_by_factors_are_refused():
    x = array(tf.constant([1.0, 0.0, 3.0], tf.float64))
    count = tf.constant([2, 3])
    product = overload_tensorflow(
        lambda x: tf.reduce_prod(x) * tf.cast(tf.reduce_prod(count + tf.shape(x)[0] - 3), x.dtype)
    )
    J = ReducedFunction(product(x), Control(x))
    assert J.derivative().tolist() == [0.0, 18.0, 0.0]
    with pytest.raises(NotDifferentiableError, match=r"of Prod .* where a factor is zero"):
        J.hessian(x)
    products = overload_tensorflow(tf.math.cumprod)
    with pytest.raises(NotDifferentiableError, match=r"of Cumprod .* where a factor is zero"):
        ReducedFunction(products(x).sum(), Control(x)).derivative()
    assert ReducedFunction(np.prod(x), Control(x)).hessian(array(tf.ones(3, tf.float64))).tolist() == [3.0, 4.0, 1.0]


def test_a_default_graph_is_refused():
    f = overload_tensorflow(lambda x: x * x)
    with tf.Graph().as_default(), pytest.raises(UnsupportedError, match="as_default"):
        f(array([1.0]))


# Keras -------------------------------------------------------------------------------------------------------------------


def network(**options):
    keras = pytest.importorskip("keras")
    layers = [keras.layers.Dense(4, activation="tanh"), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    with_dtype = [type(layer).from_config({**layer.get_config(), "dtype": "float64"}) for layer in layers]
    return keras.Sequential([keras.layers.Input((3,), dtype="float64"), *with_dtype], **options)


def test_keras_model_in_float64():
    model = network()
    f, params, x = overload_tensorflow(model), parameters(model), array(random(5, 3))
    y = f(params, x)
    np.testing.assert_allclose(y.numpy(), model(x.numpy()).numpy())
    assert y.dtype == np.float64
    rf = ReducedFunction(y, [Control(p) for p in (*params, x)])
    seed = array(np.ones((5, 1)))
    direction = [array(random(*p.shape)) for p in (*params, x)]
    h = 1e-6
    shifted_by = lambda s: [array(p.numpy() + s * d.numpy()) for p, d in zip((*params, x), direction, strict=True)]
    rf(shifted_by(h))
    ahead = [g.numpy() for g in rf.adj_jac_action(seed)]
    rf(shifted_by(-h))
    behind = [g.numpy() for g in rf.adj_jac_action(seed)]
    rf([*params, x])
    for found, p, m in zip(rf.hess_action(direction, seed), ahead, behind, strict=True):
        np.testing.assert_allclose(found.numpy(), (p - m) / (2 * h), atol=1e-7)


def test_keras_state_is_taken_and_never_changed():
    model = network()
    f, params, x = overload_tensorflow(model), parameters(model), array(random(5, 3))
    before = [v.numpy() for v in model.non_trainable_variables]
    y = f(params, x, training=True)
    rf = ReducedFunction(y, Control(x))
    # Dropout draws the same numbers in every replay, also after somebody else has used the model.
    model(x.numpy(), training=True)
    after = [v.numpy() for v in model.non_trainable_variables]
    np.testing.assert_array_equal(rf(x).numpy(), y.numpy())
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    assert all((a == v.numpy()).all() for a, v in zip(after, model.non_trainable_variables, strict=True))
    assert (f(params, x, training=True).numpy() != y.numpy()).any()


def test_keras_bad_input():
    model = network()
    with pytest.raises(TypeError, match="trainable parameters"):
        overload_tensorflow(model)(array(random(5, 3)))
    import keras

    with pytest.raises(ValueError, match="build"):
        parameters(keras.Sequential([keras.layers.Dense(2)]))


def test_functions_are_freed():
    gc.collect()
    import weakref

    f = overload_tensorflow(lambda x: x * x)
    f(array(random(3)))
    alive = weakref.ref(f)
    del f
    gc.collect()
    from pyadjoint import get_working_tape

    get_working_tape().clear_tape()
    assert alive() is None
