"""What is special to PyTorch: ambient modes, its own graphs, modules with state, missing and wrong formulas."""

import threading

import numpy as np
import pytest

from pyadjoint_utils import (
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    ImmutableError,
    NotDifferentiableError,
    ReducedFunction,
    UnsupportedError,
    array,
    asarray,
    ndarray,
    overload_torch,
    parameters,
)
from pyadjoint_utils.registry import get_engine

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402
from torch.nn import functional  # noqa: E402

from bridges.torch_duals import forward_serves  # noqa: E402

engine = get_engine("torch")


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + 7 * len(shape) + sum(shape))
    return torch.randn(shape, dtype=dtype, generator=generator)


def compiled(f):
    return engine.compile(f, ())


def inner(a, b):
    return sum(float((x.conj() * y).sum().real) for x, y in zip(a, b, strict=True))


def check(f, x, depth):
    """Every chain of VJPs and JVPs up to ``depth``: the last JVP against differences, the last VJP against the JVP."""
    n, h = len(x), 1e-6
    y = compiled(f)(x, ())
    dx, yb = (
        tuple(normal(*t.shape, dtype=t.dtype, seed=1) for t in x),
        tuple(normal(*t.shape, dtype=t.dtype, seed=2) for t in y),
    )
    jvp, vjp = engine.jvp_of(f, n), engine.vjp_of(f, n)
    dy = compiled(jvp)((*x, *dx), ())[len(y) :]
    moved = [compiled(f)(tuple(a + s * h * b for a, b in zip(x, dx, strict=True)), ()) for s in (1, -1)]
    for after, before, t in zip(*moved, dy, strict=True):
        torch.testing.assert_close((after - before) / (2 * h), t, rtol=1e-5, atol=1e-6)
    xb = compiled(vjp)((*x, *yb), ())
    assert inner(dy, yb) == pytest.approx(inner(dx, xb), rel=1e-9, abs=1e-9)
    assert not any(t.requires_grad for t in (*dy, *xb))
    if depth > 1:
        check(jvp, (*x, *dx), depth - 1)
        check(vjp, (*x, *yb), depth - 1)


class Cube(torch.autograd.Function):
    """No forward formula."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class DetachedCube(Cube):
    """A backward that leaves torch, so that its own derivative is lost."""

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * x.detach().numpy() ** 2 * g.detach().numpy())


class WrongForward(Cube):
    """A forward formula that contradicts the reverse one."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    def jvp(ctx, dx):
        return 2 * dx


NORMS = {
    "layer": lambda x: functional.layer_norm(x, (4,), weight=x[0].sin(), bias=x[1]),
    "batch": lambda x: functional.batch_norm(x, None, None, weight=x[0].sin(), bias=x[1], training=True),
    "instance": lambda x: functional.instance_norm(x.reshape(1, 3, 4), weight=x[:, 0].sin()),
    "group": lambda x: functional.group_norm(x, 2),
}
FUNCTIONS = {
    "analytic": lambda x: x.sin() * x[0].exp(),
    "no forward formula": lambda x: Cube.apply(x.sin()) * x,
    "wrong forward formula": lambda x: WrongForward.apply(x.sin()) * x,
    "attention": lambda x: functional.scaled_dot_product_attention(x[None], x.sin()[None], x.cos()[None]),
    "softmax": lambda x: x.softmax(-1).log(),
    "determinant": lambda x: torch.linalg.slogdet(x[:, :3] @ x[:, 1:])[1].reshape(1),
    "cholesky inverse": lambda x: torch.cholesky_inverse(torch.linalg.cholesky(x @ x.T + torch.eye(3, dtype=x.dtype))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_nesting_is_right_to_third_order(name):
    check(lambda x, c: (FUNCTIONS[name](x[0]),), (normal(3, 4),), 3)


@pytest.mark.parametrize("name", NORMS)
def test_fused_normalizations_are_right_to_third_order(name):
    check(lambda x, c: (NORMS[name](x[0]),), (normal(3, 4),), 3)


def test_every_nesting_is_right_for_complex_numbers():
    def f(x, c):
        return x[0].sin() * x[0].conj(), (x[0] * x[1]).abs() ** 2 + x[1]

    check(f, (normal(3, dtype=torch.complex128), normal(3)), 3)


def test_checkpointed_functions_are_right_to_third_order():
    check(engine.checkpoint(lambda x, c: (x[0].sin() * x[1].exp(),)), (normal(3), normal(3, seed=5)), 3)


class WrongBatch(Cube):
    """Its adjoint has a rule for batches that contradicts single rows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return WrongBatchAdjoint.apply(*ctx.saved_tensors, g)


class WrongBatchAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(x, g):
        return 3 * x**2 * g

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, x, g):
        return x * g, 0


@pytest.mark.parametrize("name", ["no forward formula", "wrong forward formula", "wrong batch", "determinant", "group"])
def test_batches_of_rows_are_what_single_rows_are(name):
    g = {**FUNCTIONS, **NORMS, "wrong batch": lambda x: WrongBatch.apply(x.sin()) * x}[name]
    f, x = lambda x, c: (g(x[0]),), normal(3, 4)
    (y,) = f((x,), ())
    vjp, rows = engine.vjp_of(f, 1), normal(2, *y.shape)
    batched = compiled(engine.batch_of(vjp, [False, True]))
    for _ in range(2):
        torch.testing.assert_close(batched((x, rows), ())[0], torch.stack([vjp((x, r), ())[0] for r in rows]))
    if name != "wrong batch":
        hvp, dx = engine.jvp_of(vjp, 2), normal(2, 3, 4)
        found = compiled(engine.batch_of(hvp, [False, False, True, True]))((x, rows[0], dx, rows), ())[1]
        single = [compiled(hvp)((x, rows[0], d, r), ())[1] for d, r in zip(dx, rows, strict=True)]
        torch.testing.assert_close(found, torch.stack(single))


def test_a_backward_that_leaves_torch_is_refused_at_second_order():
    def f(x, c):
        return (DetachedCube.apply(x[0]),)

    x, one = normal(3), torch.ones(3, dtype=torch.float64)
    vjp = engine.vjp_of(f, 1)
    torch.testing.assert_close(compiled(vjp)((x, one), ())[0], 3 * x**2)
    for second in (engine.jvp_of(vjp, 2), lambda x, c: engine.vjp_of(vjp, 2)(x[:3], c)):
        with pytest.raises(NotDifferentiableError, match="outside of torch"):
            compiled(second)((x, one, one, one), ())


def test_leaving_torch_in_a_function_raises_in_both_modes():
    def f(x, c):
        return (torch.from_numpy(np.sin(x[0].numpy())),)

    for derived in (engine.vjp_of(f, 1), engine.jvp_of(f, 1)):
        with pytest.raises(RuntimeError, match="numpy"):
            compiled(derived)((normal(3), normal(3)), ())


@pytest.mark.parametrize("ambient", [torch.no_grad, torch.inference_mode, torch.enable_grad, forward_ad.dual_level])
def test_derivatives_do_not_depend_on_the_ambient_mode(ambient):
    f = overload_torch(lambda a, b: (a.sin() * b).sum())
    with ambient():
        x, w = array(normal(3)), normal(3, seed=3)
        rf = ReducedFunction(f(x, w), Control(x))
        dx, one = array(normal(3, seed=4)), array(torch.ones((), dtype=torch.float64))
        point = array(normal(3, seed=5))
        rf(point)
        tangent, adjoint = rf.jac_action(dx), rf.adj_jac_action(one)
        second = rf.hess_action(dx, one)
    t, d = point.value.clone(), dx.value.clone()
    torch.testing.assert_close(tangent.value.clone(), (t.cos() * w * d).sum())
    torch.testing.assert_close(adjoint.value.clone(), t.cos() * w)
    torch.testing.assert_close(second.value.clone(), -t.sin() * w * d)
    assert not adjoint.value.requires_grad


def test_maps_inside_torch_func_agree():
    def f(x, c):
        return (x[0].sin() * c[0],)

    x, c, one = normal(3), normal(3, seed=1), torch.ones(3, dtype=torch.float64)
    value, vjp, jvp = compiled(f), compiled(engine.vjp_of(f, 1)), compiled(engine.jvp_of(f, 1))
    jacobian = torch.diag(x.cos() * c)
    curvature = torch.diag(-x.sin() * c)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(lambda t: value((t,), (c,))[0])(x), jacobian)
        torch.testing.assert_close(transform(lambda t: vjp((t, one), (c,))[0])(x), curvature)
        torch.testing.assert_close(transform(lambda t: jvp((t, one), (c,))[1])(x), curvature)


def test_derivatives_inside_an_autograd_function_are_not_lost():
    jvp = compiled(engine.jvp_of(lambda x, c: (x[0].sin(),), 1))

    class Outer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return jvp((x, torch.ones_like(x)), ())[1]

    x = normal(3)
    torch.testing.assert_close(Outer.apply(x), x.cos())


def test_threads_share_the_only_dual_level():
    x, one = normal(50), torch.ones(50, dtype=torch.float64)
    jvp, wrong = compiled(engine.jvp_of(lambda x, c: (x[0].sin(),), 1)), []

    def work():
        for _ in range(50):
            if not torch.allclose(jvp((x, one), ())[1], x.cos()):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert forward_ad._current_level == -1


@pytest.mark.parametrize(
    ("f", "size", "expected"),
    [
        (lambda x: x.sin() * x, 10, True),
        (lambda x: x.sin() * 1.01, 10, False),
        (lambda x: x.sin() * 1.01, 200_000, True),
        (lambda x: x @ torch.ones(10, 3, dtype=x.dtype), 10, True),
    ],
)
def test_forward_mode_is_left_where_constants_make_it_slow(f, size, expected):
    def local(x, c):
        return (f(x[0]),)

    x, dx = normal(size), normal(size, seed=1)
    assert forward_serves(local, (x,), (), 1, engine.vjp_of(local, 1)) is expected
    _, dy = compiled(engine.jvp_of(local, 1))((x, dx), ())
    torch.testing.assert_close(dy, torch.func.jvp(f, (x,), (dx,))[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_second_derivatives_in_one_sweep_are_tangents_of_adjoints(dtype):
    def f(x, c):  # neither holomorphic nor of every input
        return x[0].exp() * c[0] * x[1].conj(), 2.0 * x[0]

    x, dx = ([normal(3, dtype=dtype, seed=k + s) for k in range(3)] for s in (0, 10))
    yb, dyb = ([normal(3, dtype=dtype, seed=k + s) for k in range(2)] for s in (20, 30))
    c = (normal(3, dtype=dtype, seed=40),)
    both = compiled(engine.hvp_of(f, 3, 2))((*x, *yb, *dx, *dyb), c)
    h, vjp = 1e-6, compiled(engine.vjp_of(f, 3))
    ahead, behind = (vjp(tuple(a + s * h * b for a, b in zip((*x, *yb), (*dx, *dyb), strict=True)), c) for s in (1, -1))
    torch.testing.assert_close(both[:3], vjp((*x, *yb), c))
    for after, before, found in zip(ahead, behind, both[3:], strict=True):
        torch.testing.assert_close(found, (after - before) / (2 * h), rtol=1e-6, atol=1e-7)
    one = compiled(engine.vjp_tangent_of(f, 3, 2))((*x, *dx), (*yb, *c))
    still = compiled(engine.hvp_of(f, 3, 2))((*x, *yb, *dx, *map(torch.zeros_like, dyb)), c)[3:]
    torch.testing.assert_close(one, still)


# Arrays in and out


def test_exchange_aliases_memory():
    data = np.arange(3.0)
    tensor = engine.enter(data)
    assert tensor.data_ptr() == data.ctypes.data == engine.to_numpy(tensor).ctypes.data
    data.flags.writeable = False
    assert engine.enter(data).data_ptr() == data.ctypes.data  # and without torch's warning
    assert np.from_dlpack(engine.export(tensor)).ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize(
    "data", [np.arange(6.0)[::-1], np.arange(6.0)[::2], np.arange(3, dtype=">f8"), np.zeros((0, 2))]
)
def test_layouts_that_torch_lacks_enter_right(data):
    np.testing.assert_array_equal(engine.to_numpy(engine.enter(data)), data)


@pytest.mark.parametrize("n", [3, 5000])
def test_lazy_conjugation_and_negation_leave_resolved(n):
    z = normal(n, dtype=torch.complex128)
    for lazy in (z.conj(), z.conj().imag):
        wanted = lazy.resolve_conj().resolve_neg().numpy()
        np.testing.assert_array_equal(np.from_dlpack(engine.export(lazy)), wanted)
        np.testing.assert_array_equal(engine.to_numpy(lazy), wanted)
    x = array(z.conj())
    y = overload_torch(torch.conj)(x)
    np.testing.assert_array_equal(np.from_dlpack(engine.export(y.value)), z.numpy())


def test_bfloat16_goes_through_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = array(torch.ones(3, dtype=torch.bfloat16))
    assert x.dtype == ml_dtypes.bfloat16
    assert x.numpy().dtype == ml_dtypes.bfloat16
    assert engine.enter(x.numpy()).dtype == torch.bfloat16


def test_dtypes_and_layouts_without_a_counterpart_are_refused():
    with pytest.raises(ArgumentTypeError, match="no dtype"):
        engine.enter(np.zeros(2, np.longdouble))
    with pytest.raises(ArgumentTypeError, match="to_dense"):
        engine.to_numpy(torch.eye(2).to_sparse())


def test_parameters_and_tensors_that_require_grad_enter_detached():
    weight = torch.nn.Parameter(normal(3))
    x = array(weight)
    assert type(x.value) is torch.Tensor
    assert not x.value.requires_grad
    assert x.value.data_ptr() != weight.data_ptr()
    rf = ReducedFunction(overload_torch(torch.sin)(x), Control(x))
    torch.testing.assert_close(
        rf.adj_jac_action(array(torch.ones(3, dtype=torch.float64))).value, weight.detach().cos()
    )
    y = overload_torch(torch.sin)(asarray(weight))
    assert not y.value.requires_grad


# Transparent calls


def test_calls_in_the_users_own_graph_are_transparent():
    f = overload_torch(lambda x: (x**3).sum())
    leaf = normal(3).requires_grad_()
    for x in (leaf, leaf * 1, torch.nn.Parameter(normal(3))):
        (gradient,) = torch.autograd.grad(f(x), x)
        torch.testing.assert_close(gradient, 3 * x.detach() ** 2)
    x = leaf.detach()
    torch.testing.assert_close(torch.func.hessian(f)(x), torch.diag(6 * x))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    torch.testing.assert_close(tangent, (3 * x**2).sum())
    assert isinstance(f(x), ndarray)


def test_overloaded_functions_nest():
    inner_function = overload_torch(lambda x: x**2)
    x = array(normal(3))
    rf = ReducedFunction(overload_torch(lambda t: inner_function(t).sum())(x), Control(x))
    torch.testing.assert_close(rf.adj_jac_action(array(torch.ones((), dtype=torch.float64))).value, 2 * x.value)


# What cannot be replayed


def test_random_numbers_are_refused_and_leave_the_generator_alone():
    f, state = overload_torch(lambda x: functional.dropout(x, 0.5)), torch.get_rng_state()
    with pytest.raises(UnsupportedError, match="random"):
        f(array(normal(3)))
    assert torch.equal(state, torch.get_rng_state())


def test_changing_an_argument_in_place_is_refused_and_changes_nothing():
    x = array(normal(3))
    before = x.value.clone()
    with pytest.raises(ImmutableError, match="in place"):
        overload_torch(lambda t: t.mul_(2))(x)
    assert torch.equal(x.value, before)


def test_changing_running_statistics_is_refused_though_torch_does_not_count_it():
    f = overload_torch(lambda x, mean, var: functional.batch_norm(x, mean, var, training=True))
    with pytest.raises(ImmutableError, match="in place"):
        f(array(normal(3, 2)), array(torch.zeros(2, dtype=torch.float64)), array(torch.ones(2, dtype=torch.float64)))


# Modules


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = torch.nn.Linear(3, 4, dtype=torch.float64)
            self.norm = torch.nn.BatchNorm1d(4, dtype=torch.float64)
            self.last = torch.nn.Linear(4, 4, dtype=torch.float64)
        self.tied = self.last
        self.first.bias.requires_grad_(False)

    def forward(self, x, *, scale=1.0):
        return self.tied(functional.dropout(self.norm(self.first(x)), 0.5, self.training)).sum() * scale


def test_parameters_are_detached_copies_without_frozen_or_tied_ones():
    net = Net()
    found = parameters(net)
    assert set(found) == {"first.weight", "norm.weight", "norm.bias", "last.weight", "last.bias"}
    bare = found["first.weight"].value
    assert not bare.requires_grad
    assert bare.data_ptr() != net.first.weight.data_ptr()


def test_a_module_in_evaluation_mode():
    net = Net().eval()
    f = overload_torch(net)
    params = {name: array(p) for name, p in engine.parameters(net).items()}
    x = normal(5, 3)
    rf = ReducedFunction(f(params, x, scale=2.0), Control(params["last.weight"]))
    (expected,) = torch.autograd.grad(net(x, scale=2.0), net.last.weight)
    torch.testing.assert_close(rf.adj_jac_action(array(torch.ones((), dtype=torch.float64))).value, expected)


def test_a_module_in_training_mode_replays_its_record_and_has_its_effects_once():
    net, twin, x = Net(), Net(), normal(5, 3)
    f = overload_torch(net)
    params = {name: array(p) for name, p in engine.parameters(net).items()}
    torch.manual_seed(1)
    y = f(params, x)
    drawn = torch.get_rng_state()
    torch.manual_seed(1)
    expected = twin(x)
    assert torch.equal(drawn, torch.get_rng_state())
    assert y.item() == pytest.approx(expected.item(), rel=1e-14)
    for mine, theirs in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)

    weight = params["first.weight"]
    rf = ReducedFunction(y, Control(weight))
    net.eval()  # what happens to the module later does not reach the record
    with torch.no_grad():
        net.norm.running_mean.fill_(100.0)
        net.first.bias.fill_(100.0)
    one, state = array(torch.ones((), dtype=torch.float64)), torch.get_rng_state()
    assert rf(weight).item() == pytest.approx(expected.item(), rel=1e-14)
    (gradient,) = torch.autograd.grad(expected, twin.first.weight)
    torch.testing.assert_close(rf.adj_jac_action(one).value, gradient)
    h, direction = 1e-6, normal(4, 3, seed=9)
    second = rf.hess_action(array(direction), one).value
    gradients = []
    for s in (1, -1):
        rf(array(weight.value + s * h * direction))
        gradients.append(rf.adj_jac_action(one).value)
    torch.testing.assert_close(second, (gradients[0] - gradients[1]) / (2 * h), rtol=1e-5, atol=1e-7)
    assert torch.equal(state, torch.get_rng_state())
    assert not net.training
    assert net.norm.num_batches_tracked == 1
    assert bool((net.norm.running_mean == 100.0).all())


def test_two_calls_of_a_module_draw_two_masks():
    f, params = overload_torch(torch.nn.Dropout(0.5)), {}
    x = array(torch.ones(64, dtype=torch.float64))
    first, second = f(params, x), f(params, x)
    assert not np.array_equal(first.numpy(), second.numpy())
    rf = ReducedFunction(second, Control(x))
    torch.testing.assert_close(rf.adj_jac_action(array(torch.ones(64, dtype=torch.float64))).value, second.value)


def test_a_module_called_with_tensors_that_require_grad_is_transparent():
    net = Net().eval()
    f, x = overload_torch(net), normal(5, 3)
    own = {name: p for name, p in net.named_parameters() if p.requires_grad}
    (gradient,) = torch.autograd.grad(f(own, x), net.last.weight)
    (expected,) = torch.autograd.grad(net(x), net.last.weight)
    torch.testing.assert_close(gradient, expected)


def test_a_module_wants_its_parameters_as_a_dict():
    with pytest.raises(ArgumentTypeError, match="parameters"):
        overload_torch(Net())(array(normal(5, 3)))
    with pytest.raises(ArgumentValueError, match="no parameter 'no such'"):
        overload_torch(Net())({"no such": array(normal(3))}, normal(5, 3))


# Functions by NumPy's names


@pytest.mark.parametrize(
    "index",
    [
        0,
        (Ellipsis, None, 1),
        slice(None, None, -1),
        (slice(None), slice(3, 0, -2)),
        (0, slice(None), np.array([1, 2, 2])),
        np.array([1, 0], dtype=np.uint8),
        [0, 2],
        np.array([True, False, True]),
    ],
    ids=str,
)
def test_indexing_means_what_it_means_in_numpy(index):
    data = np.arange(60.0).reshape(3, 4, 5)
    np.testing.assert_array_equal(array(engine.enter(data))[index].numpy(), data[index])


def test_linear_algebra_promotes_as_numpy_does():
    a, b = np.eye(2, dtype=np.float32), np.ones(2)
    y = array(engine.enter(a)) @ array(engine.enter(b))
    assert y.engine == "torch"
    assert y.dtype == np.float64
    with pytest.raises(ArgumentTypeError, match="refuses to mix precisions"):
        overload_torch(torch.matmul)(array(engine.enter(a)), array(engine.enter(b)))


def test_solve_takes_a_matrix_for_a_matrix():
    a, b = np.random.default_rng(0).standard_normal((2, 2, 2)), np.ones((2, 2))
    np.testing.assert_allclose(
        engine.to_numpy(engine.function("linalg.solve")(*map(engine.enter, (a, b)))), np.linalg.solve(a, b)
    )
