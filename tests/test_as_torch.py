"""A tape inside PyTorch: every mode of differentiation, against the same program written in PyTorch."""

import concurrent.futures
import copy
import pickle

import numpy as np
import pytest

import pyadjoint_utils
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
    overload_numpy,
)

torch = pytest.importorskip("torch")

import torch.autograd.forward_ad as forward_ad  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap  # noqa: E402

from pyadjoint_utils import as_torch, overload_torch  # noqa: E402


def tensor(values, **options):
    return torch.tensor(values, dtype=options.pop("dtype", torch.float64), **options)


X, A = tensor([0.3, -0.7, 1.1]), tensor(0.8)


def mixed():
    """``(x, a) -> (sum(sin(y) x) a, y^2)`` with ``y = exp(a x)``: NumPy, then torch, then numbers, then NumPy."""
    x, a = array(np.array([1.0, 2.0, 3.0])), AdjFloat(1.5)
    y = np.exp(x * a)
    z = overload_torch(lambda y, x: torch.sum(torch.sin(y) * x))(y, x)
    return ReducedFunction([np.sin(z * a), y * y], [Control(x), Control(a)])


def native(values):
    x, a = values
    y = torch.exp(x * a)
    return [torch.sin(torch.sum(torch.sin(y) * x) * a), y * y]


def joined(f):
    """A function of two tensors to one vector."""
    return lambda x, a: torch.cat([y.reshape(-1) for y in f([x, a])])


def scalar(f):
    """Not linear in what the tape returns, and with two calls at different points."""

    def g(x, a):
        z, y = f([x, a])
        return (y * y).sum() * z + f([torch.sin(x), a * x[0]])[0]

    return g


@pytest.fixture(scope="module")
def f():
    return as_torch(mixed())


def test_gradcheck_and_gradgradcheck(f):
    x = (X.clone().requires_grad_(), A.clone().requires_grad_())
    options = {"check_batched_grad": True, "check_undefined_grad": True}
    assert gradcheck(joined(f), x, check_forward_ad=True, check_batched_forward_grad=True, **options)
    assert gradgradcheck(joined(f), x, check_fwd_over_rev=True, check_rev_over_rev=True, **options)


MODES = {
    "grad": lambda f: grad(scalar(f), (0, 1)),
    "jacrev": lambda f: jacrev(joined(f), (0, 1)),
    "jacfwd": lambda f: jacfwd(joined(f), (0, 1)),
    "hessian": lambda f: hessian(joined(f), (0, 1)),
    "jacrev(jacrev)": lambda f: jacrev(jacrev(joined(f), (0, 1)), (0, 1)),
    "jacrev(jacfwd)": lambda f: jacrev(jacfwd(joined(f), (0, 1)), (0, 1)),
    "jacfwd(jacfwd)": lambda f: jacfwd(jacfwd(joined(f), (0, 1)), (0, 1)),
    "jacfwd(grad)": lambda f: jacfwd(grad(scalar(f)), (0, 1)),
    "vjp": lambda f: lambda x, a: vjp(joined(f), x, a)[1](torch.arange(4.0, dtype=torch.float64)),
    "jvp": lambda f: lambda x, a: jvp(joined(f), (x, a), (x * 0.3, a * 2.0)),
    "vmap": lambda f: lambda x, a: vmap(joined(f), (0, None))(torch.stack([x, 2 * x]), a),
    "vmap of a last axis": lambda f: (
        lambda x, a: vmap(joined(f), (-1, 0))(torch.stack([x, 2 * x], -1), torch.stack([a, -a]))
    ),
    "vmap(vmap)": lambda f: (
        lambda x, a: vmap(vmap(joined(f), (0, None)), (None, 0))(torch.stack([x, 2 * x]), torch.stack([a, -a, 3 * a]))
    ),
    "vmap(grad)": lambda f: lambda x, a: vmap(grad(scalar(f)), (0, None))(torch.stack([x, 2 * x]), a),
    "grad(vmap)": lambda f: grad(
        lambda x, a: vmap(scalar(f), (0, None))(torch.stack([x, 2 * x]), a).square().sum(), (0, 1)
    ),
    "hessian(vmap)": lambda f: hessian(
        lambda x, a: vmap(scalar(f), (0, None))(torch.stack([x, 2 * x]), a).square().sum(), (0, 1)
    ),
    "vmap(hessian)": lambda f: lambda x, a: vmap(hessian(scalar(f)), (0, None))(torch.stack([x, 2 * x]), a),
    "third order": lambda f: jacfwd(jacrev(jacrev(scalar(f))), (0, 1)),
    "third order forwards": lambda f: jacfwd(jacfwd(jacfwd(scalar(f)))),
}


@pytest.mark.parametrize("mode", MODES)
def test_transformations(f, mode):
    found, expected = MODES[mode](f)(X, A), MODES[mode](native)(X, A)
    for a, b in zip(torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def dual_of_gradient(f, x, t):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone().requires_grad_(), t)
        (g,) = torch.autograd.grad(f(dual, A), dual)
        return forward_ad.unpack_dual(g).tangent


def gradient_of_tangent(f, x, t):
    with forward_ad.dual_level():
        x = x.clone().requires_grad_()
        dy = forward_ad.unpack_dual(f(forward_ad.make_dual(x, t), A)).tangent
        return torch.autograd.grad(dy, x)[0]


@pytest.mark.parametrize("mode", [dual_of_gradient, gradient_of_tangent])
def test_dual_numbers_and_graphs_together(f, mode):
    t = tensor([0.4, 1.0, -2.0])
    torch.testing.assert_close(mode(scalar(f), X, t), hessian(scalar(native))(X, A) @ t)


Z, C = tensor([0.3 + 0.5j, -0.2 + 1.0j], dtype=torch.complex128), tensor([1.0 - 0.5j, 0.7j], dtype=torch.complex128)


def holomorphic():
    z, c = array(np.array([1.0, 1.0j])), array(np.array([1j, 2.0]))
    y = np.sin(z) * c * c
    return ReducedFunction([y, (y * np.conj(y)).real.sum()], [Control(z), Control(c)])


def native_complex(values):
    z, c = values
    y = torch.sin(z) * c * c
    return [y, (y * torch.conj(y)).real.sum()]


def test_complex_numbers_follow_torch():
    f = as_torch(holomorphic())
    z = (Z.clone().requires_grad_(), C.clone().requires_grad_())
    assert gradcheck(lambda *v: tuple(f(list(v))), z, check_forward_ad=True)
    assert gradgradcheck(lambda *v: tuple(f(list(v))), z, check_fwd_over_rev=True)
    for k, seed in enumerate([tensor([1.0 + 2.0j, -1j], dtype=torch.complex128), tensor(1.0)]):
        found = torch.autograd.grad(f(list(z))[k], z, seed)
        for a, b in zip(found, torch.autograd.grad(native_complex(z)[k], z, seed), strict=True):
            torch.testing.assert_close(a, b)
    lazy = torch.conj(Z)
    torch.testing.assert_close(f([lazy, C]), native_complex([lazy, C]))


def test_single_precision_stays_single():
    x = array(np.array([1.0, 2.0], np.float32))
    f = as_torch(ReducedFunction(np.sin(x) * x, Control(x)))
    x = tensor([0.5, 0.7], dtype=torch.float32, requires_grad=True)
    (g,) = torch.autograd.grad(f(x).sum(), x)
    assert f(x).dtype == g.dtype == torch.float32
    torch.testing.assert_close(g, (torch.cos(x) * x + torch.sin(x)).detach())


def square(x, **options):
    return overload_numpy(
        lambda x: x * x, vjp=lambda p, yb: 2 * p[0] * yb, jvp=lambda p, t: 2 * p[0] * t[0], **options
    )(x)


def test_a_call_keeps_its_own_point():
    a = AdjFloat(1.0)
    rf = ReducedFunction(a * a, Control(a))
    g = as_torch(rf)
    assert grad(lambda a: g(a) + g(2 * a))(tensor(3.0)) == 30
    a = tensor(3.0, requires_grad=True)
    y = g(a) + g(2 * a)
    rf(100.0)
    g(tensor(7.0))
    rf.tape.clear_tape()
    y.backward()
    assert a.grad == 30


def test_threads_do_not_disturb_each_other():
    x = array(np.array([1.0, 2.0]))
    y = overload_numpy(lambda x: x * x, method="central")(np.sin(x))
    f = as_torch(ReducedFunction(y.sum(), Control(x)))

    def gradient(k):
        return grad(f)(tensor([0.1 * k, 1.0])), torch.autograd.functional.vhp(
            f, tensor([0.1 * k, 1.0]), tensor([1.0, 0.0])
        )[1]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for k, (g, h) in enumerate(pool.map(gradient, range(64))):
            np.testing.assert_allclose(g, np.sin([0.2 * k, 2.0]), atol=1e-8)
            np.testing.assert_allclose(h, [2 * np.cos(0.2 * k), 0.0], atol=1e-5)


def test_batches_go_through_in_one_pass_where_the_steps_allow_it(monkeypatch):
    calls = []
    x = array(np.array([1.0, 2.0]))

    def opaque(x):
        calls.append(x.shape)
        return x * x

    slow = overload_numpy(opaque, vjp=lambda p, yb: 2 * p[0] * yb)
    f = as_torch(ReducedFunction(slow(np.sin(x)), Control(x)))
    calls.clear()
    rows = torch.arange(10.0, dtype=torch.float64).reshape(5, 2)
    torch.testing.assert_close(vmap(f)(rows), torch.sin(rows) ** 2)
    assert calls == [(2,)] * 5
    jax = pytest.importorskip("jax")
    seen = []
    sine = pyadjoint_utils.overload_jax(lambda x: seen.append(x.shape) or jax.numpy.sin(x))
    f = as_torch(ReducedFunction(sine(x), Control(x)))
    seen.clear()
    torch.testing.assert_close(vmap(f)(rows), torch.sin(rows))
    torch.testing.assert_close(vmap(grad(lambda x: f(x).sum()))(rows), torch.cos(rows))
    assert len(seen) == 2  # traced once for values and once for gradients, whatever the number of rows


def test_steps_of_torch_are_in_the_callers_graph():
    x = array(np.array([1.0, 2.0]))
    f = as_torch(ReducedFunction(overload_torch(lambda x: torch.exp(x) * 3)(x), Control(x)))
    assert type(f(X[:2].clone().requires_grad_()).grad_fn).__name__ == "MulBackward0"
    assert torch.compile(f, backend="eager")(X[:2]).tolist() == (torch.exp(X[:2]) * 3).tolist()


M = tensor([[2.0, 0.3, -0.5], [0.1, 1.5, 0.4], [-0.6, 0.2, 1.0]])
DELICATE = {
    "det": torch.linalg.det,
    "solve": lambda m: torch.linalg.solve(m, m @ m * m),
    "layer_norm": lambda m: torch.nn.functional.layer_norm(m, (3,)),
}


@pytest.mark.parametrize("name", DELICATE)
def test_forward_mode_is_right_where_torch_has_it_wrong(name):
    def loss(m):
        return torch.tanh(DELICATE[name](m)).square().sum()

    m = array(np.eye(3) * 2 + 0.1)
    f = as_torch(ReducedFunction(overload_torch(loss)(m), Control(m)))
    expected = jacrev(jacrev(loss))(M)
    for second in (hessian, lambda f: jacrev(jacfwd(f))):
        torch.testing.assert_close(second(f)(M), expected)


def test_lists_and_inputs_are_those_of_the_reduced_function():
    x, b, k = array(np.array([1.0, 2.0])), array(np.array([3.0, 4.0])), array(np.array([1, 0]))
    y = x * x * b * k
    f = as_torch(ReducedFunction([y], [Control(x)], inputs=[b, k]))
    (z,) = f([X[:2]])
    torch.testing.assert_close(z, X[:2] ** 2 * tensor([3.0, 0.0]))
    b = tensor([5.0, 6.0], requires_grad=True)
    (z,) = f([X[:2]], [b, torch.tensor([0, 1])])
    torch.testing.assert_close(torch.autograd.grad(z.sum(), b)[0], X[:2] ** 2 * tensor([0.0, 1.0]))
    a = AdjFloat(2.0)
    assert as_torch(ReducedFunctional(a * a, Control(a), scale=-2.0))(3) == -18


def test_what_a_caller_does_to_tensors_changes_nothing():
    x, c = array(np.array([1.0, 2.0])), array(np.array([5.0, 6.0]))
    tape = overload_torch(lambda x: x + 0)(x)
    f = as_torch(ReducedFunction([np.sin(x), tape, x, c, x], [Control(x), Control(c)]))
    v, w = tensor([0.1, 0.2]), tensor([0.3, 0.4])
    for _ in range(2):
        outputs = f([v, w])
        expected = [torch.sin(v), v, v, w, v]
        torch.testing.assert_close(outputs, expected)
        for k, y in enumerate(outputs):
            y.mul_(3.0).requires_grad_()
            torch.testing.assert_close(y.detach(), 3 * expected[k])
    assert v.tolist() == [0.1, 0.2]
    p = v.clone().requires_grad_()
    for scale in (1.0, 2.0):
        with torch.no_grad():
            p.mul_(scale)  # the same object with other numbers, as an optimizer leaves it
        p.grad = None
        for _ in range(2):
            f([p, w])[0].sum().backward()  # the second gradient is added in place
        torch.testing.assert_close(p.grad, 2 * torch.cos(p.detach()))


def test_a_result_does_not_share_the_memory_of_a_value():
    x = array(np.array([1.0, 2.0, 3.0]))
    f = as_torch(ReducedFunction(x[1:], Control(x)))  # NumPy's result is a view
    v = tensor([0.1, 0.2, 0.3])
    f(v).mul_(3.0)
    assert v.tolist() == [0.1, 0.2, 0.3]


def test_a_view_of_a_value_or_of_a_constant_is_a_result_of_its_own():
    x, c = array(np.array([[1.0, 2.0], [3.0, 4.0]])), array(np.array([5.0, 6.0]))
    f = as_torch(ReducedFunction(list(overload_torch(lambda x, c: (x.T, x[0], c.view(-1)))(x, c)), Control(x)))
    v = tensor([[0.1, 0.2], [0.3, 0.4]])

    def write(v):
        outputs = f(v)
        for y in outputs:
            y.mul_(3.0)
        return outputs

    torch.testing.assert_close(write(v), [3 * v.T, 3 * v[0], tensor([15.0, 18.0])])
    torch.testing.assert_close(torch.func.vmap(write)(v[None])[0][0], 3 * v.T)
    torch.testing.assert_close(f(v), [v.T, v[0], tensor([5.0, 6.0])])
    assert v.tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert c.numpy().tolist() == [5.0, 6.0]


def test_a_tensor_that_was_written_to_between_is_noticed():
    x = array(np.array([1.0, 2.0]))
    f = as_torch(ReducedFunction(np.sin(x).sum(), Control(x)))
    leaf = X[:2].clone().requires_grad_()
    v = leaf * 1
    y = f(v)
    v.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_gradients_in_batches_of_the_older_kind():
    x = array(np.array([1.0, 2.0]))
    f = as_torch(ReducedFunction(square(np.sin(x)), Control(x)))
    v = X[:2].clone().requires_grad_()
    (rows,) = torch.autograd.grad(f(v), v, torch.eye(2, dtype=torch.float64), is_grads_batched=True)
    torch.testing.assert_close(rows, torch.diag(torch.sin(2 * X[:2])))
    for strategy in ("reverse-mode", "forward-mode"):
        found = torch.autograd.functional.jacobian(f, X[:2], vectorize=True, strategy=strategy)
        torch.testing.assert_close(found, torch.diag(torch.sin(2 * X[:2])))


def test_modules_train():
    rng = np.random.default_rng(0)
    data = torch.from_numpy(rng.normal(size=(6, 3)))
    target = torch.tanh(data @ tensor([0.5, -1.0, 2.0]))
    x, theta = array(rng.normal(size=(6, 3))), array(np.array([0.1, 0.2, 0.3]))
    rf = ReducedFunction(np.tanh(x @ theta), [Control(x), Control(theta)])
    layer = as_torch(rf, parameters={"theta": rf.controls[1]})
    assert {name: p.tolist() for name, p in layer.named_parameters()} == {"theta": [0.1, 0.2, 0.3]}
    start = copy.deepcopy(layer)
    net = torch.nn.Sequential(layer, torch.nn.Identity())
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=200, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = (net(data) - target).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose(layer.theta.detach(), [0.5, -1.0, 2.0], atol=1e-6)
    assert start.theta.tolist() == theta.tolist() == [0.1, 0.2, 0.3]
    start.load_state_dict(layer.state_dict())
    torch.testing.assert_close(start(data), layer(data))
    with pytest.raises(ArgumentValueError, match=r"one value each for controls\[0\]; got 2"):
        layer(data, data)
    with pytest.raises(ArgumentTypeError, match=r"controls\[1\] must have the dtype .*float64\[3\]; got float32\[3\]"):
        copy.deepcopy(layer).float()(data)
    everything = as_torch(rf, parameters={"x": rf.controls[0], "theta": rf.controls[1]})
    torch.testing.assert_close(everything().detach(), torch.tanh(everything.x @ everything.theta).detach())
    with pytest.raises(ArgumentValueError, match=r"must be one of the 2 control\(s\)"):
        as_torch(rf, parameters={"theta": Control(array(1.0))})


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (lambda c: {"a.b": c}, ArgumentValueError, r"without '\.' and '/'; got 'a\.b'"),
        (lambda c: {"": c}, ArgumentValueError, "got ''"),
        (lambda c: {0: c}, ArgumentValueError, "got 0"),
        (lambda c: {"forward": c}, ArgumentValueError, "have an attribute 'forward'"),
        (lambda c: {"training": c}, ArgumentValueError, "have an attribute 'training'"),
        (lambda c: {"a": c, "b": c}, ArgumentValueError, r"controls\[0\] can be one parameter; 'b' would"),
        (lambda c: [c], ArgumentTypeError, "controls by name.*got list"),
    ],
)
def test_parameters_that_a_module_cannot_have_are_refused(parameters, error, message):
    c = Control(array(np.ones(3)))
    with pytest.raises(error, match=message):
        as_torch(ReducedFunction(c.control * c.control, c), parameters=parameters(c))


def test_numbers_are_saved_and_tapes_are_not(tmp_path):
    c = Control(array(np.ones(3)))
    rf = ReducedFunction(c.control * c.control, c)
    module = as_torch(rf, parameters={"theta": c})
    for save in (pickle.dumps, lambda f: torch.save(f, tmp_path / "module.pt")):
        for f in (module, torch.nn.Sequential(module), as_torch(rf)):
            with pytest.raises(UnsupportedError, match=r"cannot be saved as a whole.*module\.state_dict\(\)"):
                save(f)
    torch.save({"theta": torch.full((3,), 2.0, dtype=X.dtype)}, tmp_path / "numbers.pt")
    module.load_state_dict(torch.load(tmp_path / "numbers.pt"))
    for same in (copy.copy(module), copy.deepcopy(module), copy.copy(as_torch(rf))):
        y = same() if isinstance(same, torch.nn.Module) else same(module.theta)
        assert y.tolist() == [4.0, 4.0, 4.0]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile's own, on its way to the graph break
def test_torch_compile_leaves_the_tape_out(f):
    runs = []
    x = array(np.array([1.0, 2.0, 3.0]))
    g = as_torch(
        ReducedFunction(
            overload_numpy(lambda x: runs.append(x) or x * x, vjp=lambda p, yb: 2 * p[0] * yb)(x), Control(x)
        )
    )

    def loss(x):
        return g(torch.sin(x)).sum() * 2

    compiled = torch.compile(loss, backend="eager")
    for scale in (1.0, 2.0, 3.0):
        x = (scale * X).requires_grad_()
        before = len(runs)
        (found,) = torch.autograd.grad(compiled(x), x)
        assert len(runs) > before
        torch.testing.assert_close(found, 2 * torch.sin(2 * x.detach()))


def test_traces_that_would_take_the_tape_for_a_constant_are_refused(f):
    from torch.fx.experimental.proxy_tensor import make_fx

    x = array(np.array([1.0, 2.0, 3.0]))
    g = as_torch(ReducedFunction(np.sin(x), Control(x)))
    for trace in (
        lambda: make_fx(g)(X),
        lambda: make_fx(g, tracing_mode="fake")(X),
        lambda: torch.func.linearize(g, X),
    ):
        with pytest.raises(UnsupportedError, match="a trace would take its results for constants"):
            trace()
        torch.testing.assert_close(g(X), torch.sin(X))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([X, A, A], ArgumentValueError, "one entry for each of the 2 controls; got 3"),
        (X, ArgumentTypeError, "controls must be a list of 2; got Tensor"),
        ([X[:2], A], ArgumentValueError, r"controls\[0\] .*float64\[3\]; got float64\[2\]"),
        ([torch.ones(2, 3, dtype=X.dtype), A], ArgumentValueError, r"map over leading axes with torch\.func\.vmap\."),
        ([X.float(), A], ArgumentTypeError, r"controls\[0\] .*float64\[3\]; got float32\[3\]"),
        ([X, A + 0j], ArgumentTypeError, r"controls\[1\] .*float64\[\]; got complex128\[\]"),
        ([X, AdjFloat(1.0)], ArgumentTypeError, r"controls\[1\] must be a torch.Tensor.*; got AdjFloat"),
        ([array(np.ones(3)), A], ArgumentTypeError, r"controls\[0\] must be a torch.Tensor.*; got ndarray"),
        ([[0.0, 1.0, 2.0], A], ArgumentTypeError, r"controls\[0\] must be a torch.Tensor.*; got list"),
    ],
)
def test_bad_arguments_are_refused_by_name(f, values, error, message):
    with pytest.raises(error, match=message):
        f(values)
    torch.testing.assert_close(f([X, A]), native([X, A]))
    torch.testing.assert_close(f([X.numpy(), 0.8]), native([X, A]))


def test_an_error_inside_reaches_the_caller_and_the_next_call_works():
    def value(x):
        if x[0] < 0:
            raise ValueError("no root below zero")
        return np.sqrt(x)

    def pull(primals, yb):
        (x,) = primals
        if x[0] == 0:
            raise ZeroDivisionError("vertical tangent")
        return yb / (2 * np.sqrt(x))

    x = array(np.array([1.0, 2.0]))
    f = as_torch(ReducedFunction(overload_numpy(value, vjp=pull)(x).sum(), Control(x)))
    below = tensor([-1.0, 1.0])
    for call in (
        lambda: f(below),
        lambda: grad(f)(below),
        lambda: vmap(f)(below[None]),
        lambda: vmap(grad(f))(below[None]),
    ):
        with pytest.raises(ValueError, match="no root below zero"):
            call()
    with pytest.raises(ZeroDivisionError, match="vertical tangent"):
        grad(f)(tensor([0.0, 1.0]))
    leaf = tensor([0.0, 1.0], requires_grad=True)
    with pytest.raises(ZeroDivisionError, match="vertical tangent"):
        f(leaf).backward()
    assert leaf.grad is None
    assert not forward_ad._current_level >= 0
    torch.testing.assert_close(grad(f)(tensor([1.0, 4.0])), tensor([0.5, 0.25]))


def test_a_third_derivative_that_nobody_has_is_refused():
    x = array(np.array([1.0, 2.0]))
    f = as_torch(ReducedFunction(square(np.sin(x)).sum(), Control(x)))
    v = X[:2].clone().requires_grad_()
    torch.testing.assert_close(hessian(f)(X[:2]), torch.diag(2 * torch.cos(2 * X[:2])), atol=1e-6, rtol=1e-6)
    for third in (lambda: jacrev(hessian(f))(X[:2]), lambda: jacfwd(hessian(f))(X[:2])):
        with pytest.raises(NotDifferentiableError, match="a third one was asked for"):
            third()
    (g,) = torch.autograd.grad(f(v), v, create_graph=True)
    torch.testing.assert_close(g.detach(), torch.sin(2 * X[:2]))


def test_a_tape_within_torch_within_a_tape():
    x = array(np.array([0.2, 0.4]))
    inner = as_torch(ReducedFunction(np.sin(x) * x, Control(x)))
    x = array(np.array([1.0, 2.0]))
    rf = ReducedFunctional((overload_torch(lambda x: inner(x) * inner(2 * x))(x) ** 2).sum(), Control(x))
    at, direction = np.array([0.3, -0.7]), np.array([1.0, 0.5])

    def plain(x):
        return ((torch.sin(x) * x * torch.sin(2 * x) * 2 * x) ** 2).sum()

    t = torch.from_numpy(at)
    np.testing.assert_allclose(rf(array(at)), plain(t))
    np.testing.assert_allclose(rf.derivative().numpy(), grad(plain)(t))
    np.testing.assert_allclose(rf.hessian(array(direction)).numpy(), hessian(plain)(t) @ torch.from_numpy(direction))
