"""ONNX models: what onnxruntime computes, and derivatives by inputs and initializers that belong to it."""

import subprocess
import sys

import numpy as np
import pytest

from pyadjoint_utils import (
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    NotDifferentiableError,
    ReducedFunction,
    ReducedFunctional,
    Tape,
    UnsupportedError,
    array,
    compute_gradient,
    get_engine,
    overload_autograd,
    parameters,
    push_tape,
    verify,
)

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx2fx")
torch = pytest.importorskip("torch")

import onnxruntime  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import bridges.onnx  # noqa: E402
from pyadjoint_utils import overload_onnx, overload_torch  # noqa: E402

node = helper.make_node
TYPES = {
    np.dtype(k): v for k, v in {"f4": TensorProto.FLOAT, "f8": TensorProto.DOUBLE, "i8": TensorProto.INT64}.items()
}


def value(name, dtype, shape):
    return helper.make_tensor_value_info(name, TYPES[np.dtype(dtype)], shape)


def build(nodes, inputs, outputs, weights=None, name="net", ir_version=10, functions=(), opset=21):
    initializers = [numpy_helper.from_array(v, k) for k, v in (weights or {}).items()]
    opsets = [helper.make_opsetid("", opset), *[helper.make_opsetid(f.domain, 1) for f in functions]]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=functions)


def normal(*shape, dtype="f8", seed=0):
    return np.random.default_rng(seed + 7 * len(shape) + sum(shape)).normal(size=shape).astype(dtype)


def mlp_weights(dtype="f8"):
    shapes = {"w1": (3, 8), "b1": (8,), "w2": (8, 2), "b2": (2,)}
    return {k: 0.4 * normal(*s, dtype=dtype, seed=i) for i, (k, s) in enumerate(shapes.items())}


def mlp(dtype="f8", **options):
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["a"]),
        node("Tanh", ["a"], ["z"]),
        node("MatMul", ["z", "w2"], ["m"]),
        node("Add", ["m", "b2"], ["y"]),
    ]
    return build(nodes, [value("x", dtype, ["N", 3])], [value("y", dtype, ["N", 2])], mlp_weights(dtype), **options)


def conv():
    """Convolution, batch normalization, pooling and a linear layer, as image networks are."""
    weights = {
        "k": 0.3 * normal(4, 2, 3, 3),
        "c": normal(4),
        "scale": normal(4),
        "shift": normal(4),
        "mean": normal(4),
        "variance": np.abs(normal(4)) + 0.5,
        "w": normal(4, 3),
    }
    nodes = [
        node("Conv", ["x", "k", "c"], ["a"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["n"]),
        node("Sigmoid", ["n"], ["s"]),
        node("MaxPool", ["s"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["p"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("MatMul", ["f", "w"], ["l"]),
        node("Softmax", ["l"], ["y"], axis=-1),
    ]
    weights = {k: v.astype("f4") for k, v in weights.items()}
    return build(nodes, [value("x", "f4", ["N", 2, 4, 4])], [value("y", "f4", ["N", 3])], weights)


def squared(y):
    return (y * y).mean()


# Values ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("source", ["file", "files", "ModelProto"])
def test_the_value_is_onnxruntimes(dtype, source, tmp_path):
    model = path = mlp(dtype)
    x = normal(5, 3, dtype=dtype)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    if source != "ModelProto":
        path = tmp_path / "law.onnx"
        onnx.save(model, path, save_as_external_data=source == "files", size_threshold=0)
    f = overload_onnx(path)
    y = f(array(x))
    np.testing.assert_array_equal(y.numpy(), expected)
    assert y.dtype == dtype
    assert (f.name, f.inputs, f.outputs) == ("net" if source == "ModelProto" else "law", ("x",), ("y",))


def test_a_batch_of_any_size_runs_and_each_size_is_compared_once(monkeypatch):
    compared = []
    compare = bridges.onnx._Model._compare
    monkeypatch.setattr(bridges.onnx._Model, "_compare", lambda *args: compared.append(args) or compare(*args))
    f = overload_onnx(mlp())
    for n in (1, 4, 1, 4, 1):
        assert f(array(normal(n, 3))).shape == (n, 2)
    assert len(compared) == 2


def test_inputs_may_be_of_any_engine_and_given_by_name():
    f = overload_onnx(mlp("f4"))
    x = normal(2, 3, dtype="f4")
    expected = f(x).numpy()
    for given in (torch.from_numpy(x), array(x)):
        np.testing.assert_array_equal(f(x=given).numpy(), expected)


def test_weights_can_be_replaced_all_or_some():
    f = overload_onnx(mlp())
    x, w = normal(2, 3), mlp_weights()
    y = f(x, params={"b2": w["b2"] + 1.0})
    np.testing.assert_allclose(y.numpy(), f(x).numpy() + 1.0)
    np.testing.assert_allclose(f(x, params=parameters(f)).numpy(), f(x).numpy(), rtol=1e-12)


def test_weights_that_older_files_list_among_the_inputs_are_weights():
    model = mlp(ir_version=3)
    for k, v in mlp_weights().items():
        model.graph.input.append(value(k, "f8", v.shape))
    f = overload_onnx(model)
    assert f.inputs == ("x",)
    y = f(array(normal(2, 3)), params=(p := parameters(f)))
    assert verify(ReducedFunctional(squared(y), Control(p["w1"])), p["w1"]).passed


def test_the_users_model_is_left_alone():
    model = mlp()
    before = model.SerializeToString()
    f = overload_onnx(model)
    f(normal(2, 3), params=parameters(f))
    assert model.SerializeToString() == before


# Derivatives -------------------------------------------------------------------------------------------------------------


def test_derivatives_by_inputs_and_weights_to_second_order():
    f = overload_onnx(mlp())
    x, p = array(normal(5, 3)), parameters(f)
    rf = ReducedFunctional(squared(f(x, params=p)), [Control(x), *map(Control, p.values())])
    assert verify(rf, [x, *p.values()]).passed
    assert verify(rf, [array(normal(5, 3, seed=5)), *p.values()]).passed


def test_derivatives_are_those_of_the_same_network_in_torch():
    f = overload_onnx(mlp())
    g = overload_torch(lambda x, p: torch.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"])
    results = []
    for call in (lambda x, p: f(x, params=p), g):
        x, p = array(normal(5, 3)), parameters(f)
        rf = ReducedFunctional(squared(call(x, p)), [Control(x), *map(Control, p.values())])
        directions = [array(normal(*v.shape, seed=3)) for v in (x, *p.values())]
        results.append([float(rf([x, *p.values()])), *rf.derivative(), *rf.hessian(directions)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(np.asarray(getattr(a, "value", a)), np.asarray(getattr(b, "value", b)), rtol=1e-10)


def test_jacobians_and_tangents_are_those_of_the_same_network_in_jax():
    jax = pytest.importorskip("jax")
    w = mlp_weights("f4")
    f, x, dx = overload_onnx(mlp("f4")), normal(2, 3, dtype="f4"), normal(2, 3, dtype="f4", seed=4)
    control = array(x)
    rf = ReducedFunction(f(control), Control(control))
    network = lambda x: jax.numpy.tanh(x @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]
    expected, tangent = jax.jvp(network, (x,), (dx,))
    np.testing.assert_allclose(rf(array(x)).numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rf.jac_action(array(dx)).numpy(), tangent, rtol=1e-5, atol=1e-6)
    _, pull_back = jax.vjp(network, x)
    ybar = normal(2, 2, dtype="f4")
    np.testing.assert_allclose(rf.adj_jac_action(array(ybar)).numpy(), pull_back(ybar)[0], rtol=1e-5, atol=1e-6)


def test_a_float32_image_network_stays_float32_to_second_order():
    f = overload_onnx(conv())
    x, p = array(normal(2, 2, 4, 4, dtype="f4")), parameters(f)
    # The statistics of the normalization are no parameters: PyTorch passes no derivative to them.
    assert set(p) == {"k", "c", "scale", "shift", "w"}
    y = f(x, params=p)
    rf = ReducedFunctional(squared(y), [Control(x), *map(Control, p.values())])
    gradient = rf.derivative()
    hessian = rf.hessian([x, *p.values()])
    assert {str(v.dtype) for v in (y, *gradient, *hessian)} == {"float32"}
    assert verify(rf, [x, *p.values()]).passed


def test_several_inputs_and_outputs_integers_among_them():
    nodes = [
        node("Gather", ["table", "i"], ["e"]),
        node("Mul", ["e", "x"], ["y"]),
        node("ReduceSum", ["y", "axes"], ["total"], keepdims=0),
        node("ArgMax", ["y"], ["k"], axis=-1, keepdims=0),
    ]
    inputs = [value("i", "i8", ["N"]), value("x", "f8", ["N", 3])]
    outputs = [value("total", "f8", ["N"]), value("k", "i8", ["N"]), value("y", "f8", ["N", 3])]
    f = overload_onnx(build(nodes, inputs, outputs, {"table": normal(4, 3), "axes": np.array([1])}))
    x, p, i = array(normal(2, 3)), parameters(f), np.array([3, 1], dtype=np.int32)
    total, k, y = f(i, x, params=p)
    assert list(p) == ["table"]
    assert (total.shape, k.dtype, y.shape) == ((2,), np.int64, (2, 3))
    J = squared(total) + squared(y)
    assert verify(ReducedFunctional(J, [Control(x), Control(p["table"])]), [x, p["table"]]).passed


def test_a_model_stands_on_a_tape_between_blocks_of_other_engines():
    import autograd.numpy as anp

    f = overload_onnx(mlp())
    x = array(normal(2, 3))
    y = overload_autograd(anp.sin)(f(overload_autograd(anp.cos)(x)))
    assert verify(ReducedFunctional(squared(y), Control(x)), x).passed
    g = compute_gradient(squared(y), Control(x), record=True)
    assert verify(ReducedFunctional(squared(g), Control(x)), x).passed


def test_argnums_choose_the_inputs_that_pass_a_derivative():
    nodes = [node("Mul", ["a", "b"], ["y"])]
    model = build(nodes, [value("a", "f8", [2]), value("b", "f8", [2])], [value("y", "f8", [2])])
    a, b = array([1.0, 2.0]), array([3.0, 4.0])
    J = squared(overload_onnx(model, argnums=0)(a, b))
    da, db = ReducedFunctional(J, [Control(a), Control(b)]).derivative()
    assert da.numpy().any()
    assert not db.numpy().any()


def test_tensors_in_a_graph_of_torchs_own_pass_through():
    x = torch.tensor(normal(2, 3), requires_grad=True)
    f = overload_onnx(mlp())
    f(x).sum().backward()
    assert x.grad.shape == (2, 3)
    inner = overload_torch(lambda v: f(v) * 2.0)
    control = array(normal(2, 3))
    assert verify(ReducedFunctional(squared(inner(control)), Control(control)), control).passed


def test_functions_of_the_model_itself_are_expanded():
    opset = [helper.make_opsetid("", 21)]
    twice = helper.make_function("mine", "Twice", ["u"], ["v"], [node("Add", ["u", "u"], ["v"])], opset)
    io = [value("x", "f8", [2])], [value("y", "f8", [2])]
    model = build([node("Twice", ["x"], ["y"], domain="mine")], *io, functions=[twice])
    assert overload_onnx(model)(array([1.0, 2.0])).tolist() == [2.0, 4.0]


def test_branches_are_differentiated():
    def branch(op):
        return helper.make_graph([node(op, ["x", "w"], ["z"])], op, [], [value("z", "f8", [2])])

    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=branch("Mul"), else_branch=branch("Sub")),
    ]
    weights = {"w": normal(2), "zero": np.array(0.0)}
    f = overload_onnx(build(nodes, [value("x", "f8", [2])], [value("y", "f8", [2])], weights))
    for x in (array([1.0, 2.0]), array([-1.0, -2.0])):
        with push_tape(Tape()):
            p = parameters(f)["w"]
            J = squared(f(x, params={"w": p}))
            assert verify(ReducedFunctional(J, [Control(x), Control(p)]), [x, p]).passed


# Refusals ----------------------------------------------------------------------------------------------------------------


def one(*nodes, weights=None, **options):
    return build(nodes, [value("x", "f8", ["N"])], [value("y", "f8", ["N"])], weights, **options)


def normalization(**attributes):
    nodes = [node("BatchNormalization", ["x", "s", "s", "m", "s"], ["y"], **attributes)]
    return nodes, {"s": np.ones(2), **({} if attributes.get("name") == "computed" else {"m": np.zeros(2)})}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            one(node("Unique", ["x"], ["u"]), node("CumProd", ["u", "k"], ["y"]), weights={"k": np.array(0)}, opset=26),
            "CumProd",
        ),
        (one(node("RandomNormalLike", ["x"], ["y"], name="noise")), r"RandomNormalLike \(node 'noise'\) draws random"),
        (one(node("Dropout", ["x", "", "t"], ["y"]), weights={"t": np.array(True)}), "Dropout is in training mode"),
        (
            one(
                node("Neg", ["w"], ["m"]),
                *normalization(name="computed")[0],
                weights={"s": np.ones(2), "w": np.ones(2)},
            ),
            "statistics that are no constants of the model",
        ),
    ],
    ids=["no rule", "random", "training", "statistics"],
)
def test_operators_without_a_right_derivative_are_refused_by_name(model, message, monkeypatch):
    monkeypatch.setattr(bridges.onnx, "_session", lambda *_: onnxruntime.InferenceSession(mlp().SerializeToString()))
    with pytest.raises(UnsupportedError, match=message):
        overload_onnx(model)


def test_an_operator_that_only_onnxruntime_could_know_is_named():
    with pytest.raises(ArgumentValueError, match="Nonsense"):
        overload_onnx(one(node("Nonsense", ["x"], ["y"], domain="mine"), functions=()))


def test_a_conversion_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(bridges.onnx, "converted", lambda *_: lambda x: torch.tanh(x) * (1 + 1e-6))
    f = overload_onnx(one(node("Tanh", ["x"], ["y"])))
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=r"'y'.* would belong to another function"):
            f(array([1.0, 2.0]))


def test_a_setting_that_is_taped_is_refused_when_it_is_differentiated():
    nodes = [node("Pad", ["x", "p", "v"], ["y"])]
    inputs = [value("x", "f8", [2]), value("v", "f8", [])]
    f = overload_onnx(build(nodes, inputs, [value("y", "f8", [3])], {"p": np.array([0, 1])}))
    x, v = array([1.0, 2.0]), array(0.5)
    rf = ReducedFunctional(squared(f(x, v)), [Control(x), Control(v)])
    with pytest.raises(NotDifferentiableError, match="number out of a tensor"):
        rf.derivative()


X = normal(2, 3, dtype="f4")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(), ArgumentTypeError, r"net takes 1 input\(s\): x; got 0 by position"),
        (lambda f: f(X, X), ArgumentTypeError, "got 2 by position"),
        (lambda f: f(X, z=X), ArgumentTypeError, "and 'z' by name"),
        (
            lambda f: f(X.astype("f8")),
            ArgumentTypeError,
            r"'x' takes float32\[\?,3\]; got float64.*astype\('float32'\)",
        ),
        (lambda f: f(X[0]), ArgumentValueError, r"takes float32\[\?,3\]; got float32\[3\]"),
        (lambda f: f(X[:, :2]), ArgumentValueError, r"got float32\[2, 2\]"),
        (lambda f: f(X, params=[1.0]), ArgumentTypeError, "params is a dict"),
        (lambda f: f(X, params={"w": X}), ArgumentValueError, "no parameter 'w'. It has: w1, b1, w2, b2"),
        (lambda f: f(X, params={"b2": X}), ArgumentValueError, r"parameter 'b2' takes float32\[2\]"),
        (lambda f: f("x"), ArgumentTypeError, r"'x' takes .* got str"),
        (lambda f: f([1.0, 2.0]), ArgumentTypeError, "got list. Write array"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    f = overload_onnx(mlp("f4"))
    with pytest.raises(error, match=message):
        call(f)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ArgumentValueError, match=r"no file .*missing\.onnx"):
        overload_onnx(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("this is no model")
    with pytest.raises(ArgumentValueError, match=r"text\.onnx' is no ONNX model"):
        overload_onnx(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ArgumentValueError, match="cannot load this model"):
        overload_onnx(str(tmp_path / "empty.onnx"))
    with pytest.raises(ArgumentTypeError, match=r"path of an ONNX file .* got int"):
        overload_onnx(3)


def test_the_engine_overloads_models_alone():
    with pytest.raises(UnsupportedError, match="overload_onnx"):
        get_engine("onnx").enter(X)
    with pytest.raises(ArgumentTypeError, match="parameters"):
        parameters(object())


@pytest.mark.parametrize("package", ["onnxruntime", "onnx2fx", "onnx"])
def test_a_missing_package_names_the_extra(package):
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "try:\n    from pyadjoint_utils import overload_onnx\n"
        "except ImportError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert package in said
    assert "pyadjoint-utils[onnx]" in said
