"""Blocks over points against closed forms and dense columns: in every engine, through several, and refused where untrue."""

import autograd.numpy as anp
import numpy as np
import pytest

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    ReducedFunction,
    ReducedFunctional,
    array,
    compute_gradient,
    compute_jacobian_matrix,
    get_engine,
    overload,
    overload_numpy,
    point_map,
    to_adjfloat,
)

ENGINES = ["jax", "torch", "tensorflow", "autograd"]
RNG = np.random.default_rng(11)
N = 4
F, G, P = RNG.standard_normal((N, 2, 3)), RNG.standard_normal((N, 3)), RNG.standard_normal(2)


def functions(engine):
    pytest.importorskip(engine)
    return get_engine(engine).function


def stretch(engine, **options):
    """(n, 2, 3), parameters (2,) -> (n, 2, 3): entries times sums of rows, so that each block is full."""
    of = functions(engine)
    sin, matmul = of("sin"), of("matmul")
    mix = np.arange(9.0).reshape(3, 3) / 7
    e = get_engine(engine)

    def f(x, p):
        m = e.enter(mix) if engine != "autograd" else mix
        return sin(x) * matmul(x, m) * p[0] + x * p[1]

    return overload(f, engine, **{"pointwise": (True, False), "name": "stretch", **options})


def stretch_blocks(x, p):
    mix = np.arange(9.0).reshape(3, 3) / 7
    blocks = np.zeros((len(x), 2, 3, 2, 3))
    for a in range(2):
        blocks[:, a, :, a, :] = np.sin(x[:, a, :, None]) * mix.T * p[0]
        for b in range(3):
            blocks[:, a, b, a, b] += np.cos(x[:, a, b]) * (x[:, a] @ mix)[:, b] * p[0] + p[1]
    return blocks


def dense(rf, point):
    """The Jacobian of one output by one control, one direction at a time."""
    parts = [rf.jac_action(e.reshape(point.shape)).numpy() for e in np.eye(point.size)]
    return np.stack(parts, axis=-1).reshape((*parts[0].shape, *point.shape))


def diagonal(matrix, ndim):
    """The blocks on the diagonal of a dense matrix; what is outside of them must be zero."""
    n = matrix.shape[0]
    moved = np.moveaxis(matrix, ndim, 1)
    assert np.all(moved[~np.eye(n, dtype=bool)] == 0)
    return moved[np.arange(n), np.arange(n)]


@pytest.mark.parametrize("engine", ENGINES)
def test_blocks_equal_closed_forms_at_another_point_and_parameters_stay_dense(engine):
    x, p = array(F), array(P)
    rf = ReducedFunction(stretch(engine)(x, p), [Control(x), Control(p)])
    point = [F + 0.3, P - 0.5]
    rf(point)
    by_x, by_p = rf.jac_matrix()
    assert by_x.shape == (N, 2, 3, 2, 3)
    np.testing.assert_allclose(by_x.numpy(), stretch_blocks(*point), rtol=1e-12, atol=1e-14)
    expected = np.stack([(rf([point[0], e]).numpy()) for e in np.eye(2)], axis=-1)  # linear in p
    np.testing.assert_allclose(by_p.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("wide", [False, True], ids=["by rows", "by columns"])
def test_a_chain_through_engines_arithmetic_and_conversions_stays_in_blocks(engine, wide):
    of = functions(engine)
    last = engine == "autograd"
    x = array(F)
    y = stretch("autograd")(x, P) + 2.0 * x
    z = overload(lambda y: of("sum")(y, -1) if not wide else of("stack")([y, y * y], 1), engine, pointwise=True)(y)
    w = np.exp(0.1 * z) if last else overload(of("sin"), engine, pointwise=True)(z) * RNG.standard_normal((1,) * z.ndim)
    rf = ReducedFunction(w, Control(x))
    rf(F - 0.2)
    matrix = rf.jac_matrix()
    assert matrix.shape == (*w.shape, 2, 3)
    np.testing.assert_allclose(matrix.numpy(), diagonal(dense(rf, F), w.ndim), rtol=1e-11, atol=1e-13)


def test_each_pair_has_the_layout_of_its_paths():
    x, y, s = array(F), array(G), AdjFloat(0.7)
    f = stretch("autograd")
    field = f(x, P) * s
    total = (field * field).sum()
    mixed = f(np.flip(x, 0), P) + field
    other = overload(lambda y: y * y, "autograd", pointwise=True)(y)
    rf = ReducedFunction([field, total, mixed, other, x * x], [Control(x), Control(s), Control(y)])
    shapes = [[block.shape for block in row] for row in rf.jac_matrix()]
    assert shapes == [
        [(N, 2, 3, 2, 3), (N, 2, 3), (N, 2, 3, 3)],  # zeros between fields of as many points are blocks as well
        [(N, 2, 3), (), (N, 3)],
        [(N, 2, 3, N, 2, 3), (N, 2, 3), (N, 2, 3, N, 3)],
        [(N, 3, 2, 3), (N, 3), (N, 3, 3)],
        [(N, 2, 3, N, 2, 3), (N, 2, 3), (N, 2, 3, N, 3)],  # nobody declared that
    ]


def test_values_of_mixed_layouts_equal_their_columns():
    x, p = array(F), array(P)
    y = stretch("autograd")(x, p)
    outputs = [y, np.flip(y, 0), (y * y).sum(axis=(1, 2))]
    single = [ReducedFunction(out, Control(x)) for out in outputs]
    rf = ReducedFunction(outputs, [Control(x), Control(p)])
    point = [F * 0.5, P]
    rf(point)
    found = [row[0].numpy() for row in rf.jac_matrix()]
    for out in single:
        out(point[0])
    assert [block.shape for block in found] == [(N, 2, 3, 2, 3), (N, 2, 3, N, 2, 3), (N, N, 2, 3)]
    np.testing.assert_allclose(found[0], diagonal(dense(single[0], F), 3), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found[1], dense(single[1], F), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found[2], dense(single[2], F), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "through",
    [
        lambda y: y[::-1],
        lambda y: np.cumsum(y, axis=0),
        lambda y: np.ones((N, N)) @ y,
        lambda y: y - y.sum(axis=0),
        lambda y: y * to_adjfloat(y.sum()),
        lambda y: overload(get_engine("autograd").function("sin"), "autograd")(y),
        lambda y: y.reshape(3, N).T,
        lambda y: y[:, 0] * RNG.standard_normal((N, N)),
        lambda y: (y * y).sum(axis=1) * y.T,
    ],
    ids=["index", "cumsum", "matmul", "mean", "float", "undeclared", "reshape", "broadcast", "transposed"],
)
def test_what_is_not_provably_pointwise_gives_the_dense_matrix(through):

    x = array(G)
    y = overload(lambda x: anp.sin(x) * x, "autograd", pointwise=True)(x)
    rf = ReducedFunction(through(y), Control(x))
    matrix = rf.jac_matrix()
    assert matrix.shape == (*rf.outputs[0].shape, *G.shape)
    np.testing.assert_allclose(matrix.numpy(), dense(rf, G), rtol=1e-12, atol=1e-13)


def test_one_number_is_no_field():
    x = array(np.array([0.3]))
    s = to_adjfloat(overload(lambda x: x * x, "autograd", pointwise=True)(x))
    assert compute_jacobian_matrix(s, Control(x)).tolist() == [0.6]


def test_a_vector_that_is_broadcast_along_another_axis_mixes_points():
    x = array(P)
    y = overload(lambda x: x * x, "autograd", pointwise=True)(x) * np.array([[1.0, 2.0], [3.0, 4.0]])
    found = compute_jacobian_matrix(y, Control(x)).numpy()
    np.testing.assert_allclose(found, 2 * P * np.array([[1.0, 2.0], [3.0, 4.0]])[:, :, None] * np.eye(2))


def test_what_is_broadcast_along_the_points_is_a_parameter():
    x, w, c = array(F), array(P[:, None]), array(F[:1])
    y = stretch("autograd")(x, P)
    rf = ReducedFunction(y * w + c, [Control(x), Control(w), Control(c)])
    shapes = [block.shape for block in rf.jac_matrix()]
    assert shapes == [(N, 2, 3, 2, 3), (N, 2, 3, 2, 1), (N, 2, 3, 1, 2, 3)]
    np.testing.assert_allclose(rf.jac_matrix()[0].numpy(), stretch_blocks(F, P) * P[:, None, None, None])


def test_a_single_point_is_a_field_of_one():
    x = array(F[:1])
    matrix = ReducedFunction(stretch("autograd")(x, P), Control(x)).jac_matrix()
    np.testing.assert_allclose(matrix.numpy(), stretch_blocks(F[:1], P), atol=1e-14)


def test_no_point_at_all():
    x = array(F[:0])
    assert ReducedFunction(stretch("autograd")(x, P), Control(x)).jac_matrix().shape == (0, 2, 3, 2, 3)


@pytest.mark.parametrize("engine", ENGINES)
def test_complex_points(engine):
    of = functions(engine)
    z = array(F + 1j * F[::-1])
    f = overload(
        lambda z: of("matmul")(of("conj")(of("conj")(z)) * z, get_engine(engine).enter(np.eye(3) + 2j)),
        engine,
        pointwise=True,
    )
    rf = ReducedFunction(f(z), Control(z))
    found = rf.jac_matrix().numpy()
    expected = np.zeros((N, 2, 3, 2, 3), complex)
    for a in range(2):
        expected[:, a, :, a, :] = (np.eye(3) + 2j).T * 2 * z.numpy()[:, a, None, :]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("wide", [False, True], ids=["by rows", "by columns"])
def test_a_false_claim_is_refused_with_the_argument_named(engine, wide):
    of = functions(engine)

    def f(x, other):
        y = x * of("sum")(x, 0) + other["y"]
        return of("stack")([y, y], 1) if wide else of("sum")(y, -1)

    x, y = array(F), array(F)
    mean = overload(f, engine, pointwise=True, name="centred")
    rf = ReducedFunction(mean(x, {"y": y}), [Control(x), Control(y)])
    with pytest.raises(
        ArgumentValueError, match=r"centred: args\[0\] is declared pointwise, but output 0 at one point"
    ):
        rf.jac_matrix()
    honest = ReducedFunction(mean(F, {"y": y}), Control(y)).jac_matrix()
    assert honest.shape == ((N, 2, 2, 3, 2, 3) if wide else (N, 2, 2, 3))


def test_a_claim_that_holds_at_one_point_alone_is_refused_at_the_others():
    x = array(np.zeros((N, 3)))
    rf = ReducedFunction(overload(lambda x: x * x.sum(), "autograd", pointwise=True)(x), Control(x))
    np.testing.assert_array_equal(rf.jac_matrix().numpy(), 0.0)
    rf(G)
    with pytest.raises(ArgumentValueError, match=r"args\[0\] is declared pointwise"):
        rf.jac_matrix()


@pytest.mark.parametrize("k", range(N))
def test_one_point_that_acts_on_all_is_seen(k):
    x = array(G)
    f = overload(lambda x: x * x[k : k + 1], "autograd", pointwise=True)
    with pytest.raises(ArgumentValueError, match=r"args\[0\] is declared pointwise"):
        compute_jacobian_matrix(f(x), Control(x))


def test_a_single_wrong_neighbour_among_many_points_is_seen():
    def f(x):
        return x * x + 1e-9 * np.eye(300)[4][:, None] * x[11]

    x = array(RNG.standard_normal((300, 3)))
    with pytest.raises(ArgumentValueError, match="is declared pointwise"):
        compute_jacobian_matrix(overload(f, "autograd", pointwise=True)(x), Control(x))


@pytest.mark.parametrize("engine", ENGINES)
def test_large_numbers_that_cancel_are_not_mistaken_for_a_false_claim(engine):
    sin = functions(engine)("sin")
    f = overload(lambda x: (x * 1e6 + sin(x)) - x * 1e6, engine, pointwise=True)
    x = array(F.astype(np.float32))
    rf = ReducedFunction(f(x), Control(x))
    found = rf.jac_matrix().numpy().reshape(N, 6, 6)
    np.testing.assert_allclose(found, np.cos(F).reshape(N, 6, 1) * np.eye(6), atol=0.2)
    np.testing.assert_array_equal(found[:, ~np.eye(6, dtype=bool)], 0.0)


def test_a_claim_about_rules_by_hand_for_adjoints_alone():
    f = overload_numpy(lambda x: x * x.sum(0), vjp=lambda x, yb: yb * x[0].sum(0) + (yb * x[0]).sum(0), pointwise=True)
    g = overload(lambda y: y.sum(axis=1), "autograd", pointwise=True)
    x = array(G)
    with pytest.raises(ArgumentValueError, match=r"args\[0\] is declared pointwise"):
        ReducedFunction(g(f(x)), Control(x)).jac_matrix()


def test_points_of_very_different_size_are_not_mistaken_for_a_false_claim():
    x = array(np.logspace(-12, 12, 50)[:, None] * np.array([1.0, -2.0]))
    matrix = compute_jacobian_matrix(
        overload(lambda x: x**3 - x.sum(1, keepdims=True), "autograd", pointwise=True)(x), Control(x)
    )
    expected = 3 * x.numpy()[:, :, None] ** 2 * np.eye(2) - 1.0
    np.testing.assert_allclose(matrix.numpy(), expected, rtol=1e-12)


def test_numbers_that_are_not_finite_stay_where_they_are():
    data = np.array([[1.0], [0.0], [4.0]])
    x = array(data)
    with np.errstate(divide="ignore", invalid="ignore"):
        matrix = compute_jacobian_matrix(overload(lambda x: anp.sqrt(x), "autograd", pointwise=True)(x), Control(x))
    assert matrix.tolist() == [[[0.5]], [[np.inf]], [[0.25]]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("engine", ENGINES)
def test_precision_is_kept(engine, dtype):
    x = array(F.astype(dtype))
    of = functions(engine)
    matrix = compute_jacobian_matrix(overload(of("sin"), engine, pointwise=True)(x), Control(x))
    assert matrix.dtype == dtype
    np.testing.assert_allclose(matrix.numpy().reshape(N, 6, 6), np.cos(F).reshape(N, 6, 1) * np.eye(6), rtol=1e-4)


def test_a_matrix_to_multiply_may_be_made_of_blocks():
    """A block form has the shape that such a matrix has, and the product is the block form of the composition."""
    x = array(F)
    y = stretch("autograd")(x, P)
    inner = compute_jacobian_matrix(y, Control(x))
    z = array(y.numpy())
    outer = ReducedFunction(stretch("autograd")(z, P), Control(z))
    whole = ReducedFunction(stretch("autograd")(y, P), Control(x))
    np.testing.assert_allclose(outer.jac_matrix(inner).numpy(), whole.jac_matrix().numpy(), rtol=1e-12, atol=1e-13)


def test_directions_do_not_grow_with_the_points():
    calls = []

    @overload_numpy(pointwise=True, jvp=lambda x, d: (calls.append(1), 2 * x[0] * d[0])[1])
    def square(x):
        return x * x

    x = array(RNG.standard_normal((1000, 3)))
    found = compute_jacobian_matrix(square(x), Control(x)).numpy()
    np.testing.assert_allclose(found, 2 * x.numpy()[:, :, None] * np.eye(3))
    assert len(calls) == 4  # three entries of a point, and the random direction


def test_black_boxes_and_their_probing():
    x = array(G)
    f = overload_numpy(lambda x: np.exp(-x) * x[:, ::-1], method="complex-step", pointwise=True)
    found = compute_jacobian_matrix(f(x), Control(x)).numpy()
    expected = -np.exp(-G)[:, :, None] * G[:, ::-1, None] * np.eye(3) + np.exp(-G)[:, :, None] * np.eye(3)[::-1]
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15)


def test_point_maps_are_pointwise():
    @point_map(((-1, 3), ()), (-1,), bare=True)
    def norm(g, p):
        return (g * g).sum(1) ** p

    x, p = array(G), AdjFloat(1.5)
    rf = ReducedFunction(norm(x, p), [Control(x), Control(p)])
    by_x, by_p = rf.jac_matrix()
    np.testing.assert_allclose(by_x.numpy(), 1.5 * (G * G).sum(1, keepdims=True) ** 0.5 * 2 * G)
    assert by_p.shape == (N,)
    spread = point_map((-1, 3), (-1,), pointwise=False)(lambda g: g.sum(1))
    assert compute_jacobian_matrix(spread(x), Control(x)).shape == (N, N, 3)


def test_a_tensorflow_1_graph():
    tf = pytest.importorskip("tensorflow").compat.v1
    from pyadjoint_utils import run_tensorflow_graph

    graph = tf.Graph()
    with graph.as_default():
        x, w = tf.placeholder(tf.float64, (None, 3)), tf.placeholder(tf.float64, (3, 3))
        noise = tf.random.normal((), dtype=tf.float64)
        y = tf.sin(tf.matmul(x, w)) + 0.0 * noise
    g, m = array(G), array(np.arange(9.0).reshape(3, 3))
    with tf.Session(graph=graph).as_default():
        z = run_tensorflow_graph(y, {x: g, w: m}, pointwise=(True, False))
        found = compute_jacobian_matrix(z, [Control(g), Control(m)])
        assert run_tensorflow_graph(y, {x: g, w: m}).shape == (N, 3)
    expected = np.cos(G @ m.numpy())[:, :, None] * m.numpy().T
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-12)
    expected = np.cos(G @ m.numpy())[:, :, None, None] * G[:, None, :, None] * np.eye(3)[:, None, :]
    np.testing.assert_allclose(found[1].numpy(), expected, rtol=1e-12)


def test_a_recorded_derivative_of_a_pointwise_function_is_pointwise():

    energy = overload(lambda g: anp.sum(g**4, axis=1) + g[:, 0] * g[:, 1], "autograd", pointwise=True)
    x = array(G)
    stress = compute_gradient(energy(x), Control(x), adj_value=np.ones(N), record=True)
    found = ReducedFunction(stress, Control(x)).jac_matrix().numpy()
    expected = 12 * G[:, :, None] ** 2 * np.eye(3)
    expected[:, 0, 1] += 1
    expected[:, 1, 0] += 1
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_derivative_of_what_all_points_share_is_not_pointwise():
    f = overload(lambda g: (g * g, (g.sum() ** 2)), "autograd", pointwise=True, out_pointwise=(True, False))
    x = array(G)
    field, total = f(x)
    for energy, expected in ((field.sum() + total, 2 * np.eye(3 * N) + 2.0), (total, 2.0)):
        forces = compute_gradient(energy, Control(x), record=True)
        matrix = ReducedFunction(forces, Control(x)).jac_matrix().numpy()
        np.testing.assert_allclose(matrix.reshape(3 * N, 3 * N), np.broadcast_to(expected, (3 * N, 3 * N)))


def test_containers_and_keywords_are_marked_as_a_whole():
    f = overload(lambda state, scale: {"y": state["a"] * state["b"][0] * scale}, "autograd", pointwise=(True, False))
    a, b, s = array(G), array(G + 1), array(np.array([2.0]))
    y = f({"a": a, "b": (b, None)}, scale=s)["y"]
    matrices = ReducedFunction(y, [Control(a), Control(b), Control(s)]).jac_matrix()
    assert [m.shape for m in matrices] == [(N, 3, 3), (N, 3, 3), (N, 3, 1)]
    np.testing.assert_allclose(matrices[1].numpy(), 2 * G[:, :, None] * np.eye(3))


@pytest.mark.parametrize(
    ("options", "args", "message"),
    [
        ({"pointwise": True}, (F, G[:2]), r"args\[0\] is float64\[4,2,3\] and args\[1\] is float64\[2,3\]"),
        (
            {"pointwise": (True, True)},
            (F, 2.0),
            r"args\[1\] is declared pointwise, but float64\[\] has no axis of points",
        ),
        ({"pointwise": (True,)}, (F, G), r"pointwise has 1 entries, but the function is called with 2"),
        ({"pointwise": (True, False, True)}, (F, G), r"pointwise has 3 entries"),
        ({"pointwise": (False, True)}, (F, G[:2]), r"output 0 is float64\[4,2,3\], but args\[1\] is float64\[2,3\]"),
        ({"pointwise": True, "out_pointwise": (True, True)}, (F, G), r"out_pointwise has 2 entries"),
    ],
)
def test_axes_that_disagree(options, args, message):
    f = overload(lambda x, y: x * 2.0, "autograd", **options)
    with pytest.raises(ArgumentValueError, match=message):
        f(*args)
    assert f(F, G + 0).shape == F.shape if "entries" not in message and "axis" not in message else True


@pytest.mark.parametrize("option", ["pointwise", "out_pointwise"])
@pytest.mark.parametrize("value", [1, (0, 1), "True", ("True",)])
def test_marks_are_bools(option, value):
    with pytest.raises(ArgumentTypeError, match=f"{option} takes a bool"):
        overload(lambda x, y: x, "autograd", **{option: value})


def test_an_output_that_is_no_field_is_named():
    f = overload(lambda x: (x * x, x.sum()), "autograd", pointwise=True)
    with pytest.raises(
        ArgumentValueError, match=r"output 1 is float64\[\], but args\[0\] is float64\[4,2,3\].*out_pointwise"
    ):
        f(F)
    declared = overload(lambda x: (x * x, x.sum()), "autograd", pointwise=True, out_pointwise=(True, False))
    x = array(F)
    assert [b.shape for b in ReducedFunction(list(declared(x)), Control(x)).jac_matrix()] == [
        (N, 2, 3, 2, 3),
        (N, 2, 3),
    ]


def test_numbers_are_parameters_of_a_function_that_is_declared_as_a_whole():
    f = overload(lambda x, s, t: x * s * t, "autograd", pointwise=True)
    x, s = array(F), AdjFloat(2.0)
    matrices = ReducedFunction(f(x, s, t=3.0), [Control(x), Control(s)]).jac_matrix()
    assert [m.shape for m in matrices] == [(N, 2, 3, 2, 3), (N, 2, 3)]


def test_functionals_of_fields_are_as_before():
    x = array(F)
    J = ReducedFunctional((stretch("autograd")(x, P) ** 2).sum(), Control(x))
    y = stretch("autograd")(F, P).numpy()
    np.testing.assert_allclose(J.derivative().numpy(), np.einsum("nab,nabcd->ncd", 2 * y, stretch_blocks(F, P)))


def test_an_onnx_model():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx2fx")
    from pyadjoint_utils import overload_onnx

    x, y = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, ["N", 3]) for n in "xy"]
    weights = onnx.numpy_helper.from_array(np.arange(9.0).reshape(3, 3) / 9, "w")
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["h"]), onnx.helper.make_node("Tanh", ["h"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "layer", [x], [y], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    g, w = array(G), np.arange(9.0).reshape(3, 3) / 9
    by_input = compute_jacobian_matrix(overload_onnx(model, pointwise=True)(g), Control(g))
    expected = (1 - np.tanh(G @ w) ** 2)[:, :, None] * w.T
    np.testing.assert_allclose(by_input.numpy(), expected, rtol=1e-12)


def test_a_module_of_torch_is_pointwise_in_its_input_alone():
    torch = pytest.importorskip("torch")
    from pyadjoint_utils import overload_torch, parameters

    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh()).double()
    weights, g = parameters(net), array(G)
    f = overload_torch(net, pointwise=(False, True))
    rf = ReducedFunction(f(weights, g), [Control(g), Control(weights["0.weight"])])
    by_input, by_weight = rf.jac_matrix()
    w, b = (p.detach().numpy() for p in net.parameters())
    slope = 1 - np.tanh(G @ w.T + b) ** 2
    np.testing.assert_allclose(by_input.numpy(), slope[:, :, None] * w, rtol=1e-12)
    np.testing.assert_allclose(by_weight.numpy(), np.einsum("no,op,ni->nopi", slope, np.eye(2), G), rtol=1e-12)
