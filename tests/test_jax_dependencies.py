"""Patterns of traced programs against the derivatives at several points: never too few entries, and seldom too many."""

import numpy as np
import pytest

from pyadjoint_utils import Aval, get_engine
from pyadjoint_utils.jacobians.patterns import DensePatternError

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
patterns = pytest.importorskip("bridges.jax_patterns")
dependencies = pytest.importorskip("bridges.jax_dependencies")
lax = jax.lax
N = 12
INDEX = np.array([1, 3, 5, 3])
BAND = np.eye(N) + np.eye(N, k=1)
RNG = np.random.default_rng(0)


def stencil(x):
    return jnp.concatenate([x[:1], x[:-2] - 2 * x[1:-1] ** 2 + x[2:], x[-1:]])


def padded(x):
    p = jnp.pad(x, 1)
    return jnp.sin(p[2:]) - 2 * p[1:-1] ** 3 + jax.nn.relu(p[:-2])


def accumulated(x):
    return lax.scan(lambda c, t: (c * 0.5, t * t + jnp.sum(c)), x[:2], x)[1]


def carried(x):
    return lax.scan(lambda c, t: (c * t, c), x[0], x[:4])[1]


def grown(x):
    return lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] * jnp.roll(s[1], 1)), (0, x))[1]


@jax.custom_jvp
def straight_through(x):
    return jnp.round(x)


straight_through.defjvp(lambda x, dx: (jnp.round(x[0]), dx[0] * jnp.cos(x[0]) + jnp.roll(dx[0], 1)))


@jax.custom_vjp
def only_backwards(x):
    return x[1:] * x[:-1]


only_backwards.defvjp(
    lambda x: (only_backwards(x), x),
    lambda x, g: (jnp.concatenate([g * x[1:], jnp.zeros(1)]) + jnp.concatenate([jnp.zeros(1), g * x[:-1]]),),
)


def convolved(**options):
    def f(x):
        image = x.reshape(1, 2, 6)
        return lax.conv_general_dilated(image, jnp.ones((4, 2, 2)), (1,), [(1, 0)], **options)

    return f


EXACT = {
    "elementwise": lambda x: jnp.sin(x) * x / (2 + jnp.exp(x)),
    "stencil": stencil,
    "roll": lambda x: jnp.roll(x, 1) - 2 * x * x + jnp.roll(x, -2),
    "pad and relu": padded,
    "diff": jnp.diff,
    "reversed and strided": lambda x: x[::-2] * x[1::2],
    "gather": lambda x: x[INDEX] ** 2,
    "scatter add": lambda x: x.at[INDEX].add(jnp.sin(x[:4])),
    "dropped updates": lambda x: x[:3].at[np.array([0, 7])].add(x[3:5] ** 2, mode="drop"),
    "axes": lambda x: x.reshape(2, 3, 2).transpose(2, 0, 1)[..., None].squeeze(-1) ** 2,
    "axes in another order": lambda x: lax.reshape(x.reshape(4, 3), (2, 6), dimensions=(1, 0)) ** 2,
    "products over an axis": lambda x: jnp.prod(x.reshape(4, 3), axis=1),
    "broadcast": lambda x: x[:3, None] * x[None, 3:7],
    "scalars": lambda x: x[0] * x[1:],
    "stack and unstack": lambda x: jnp.stack([a * b for a, b in zip(x[:3], x[3:6], strict=True)]),
    "unstack": lambda x: jnp.multiply(*jnp.unstack(x.reshape(2, 6))),
    "split": lambda x: jnp.multiply(*jnp.split(x, 2)),
    "tile": lambda x: jnp.tile(x[:3], 2) ** 2,
    "expanded": lambda x: jnp.expand_dims(x, (0, 2)) ** 2,
    "sum over an axis": lambda x: jnp.sum(x.reshape(4, 3) ** 2, axis=0),
    "mean of all": lambda x: jnp.mean(x**2),
    "segments": lambda x: jax.ops.segment_sum(x * x, np.repeat([0, 2, 1], 4), 4),
    "known band": lambda x: jnp.asarray(BAND) @ jnp.sin(x),
    "known band on the right": lambda x: jnp.sin(x) @ jnp.asarray(BAND),
    "matrices": lambda x: x.reshape(3, 4) @ x.reshape(4, 3),
    "batched matrices": lambda x: jnp.einsum("pij,pj->pi", x[:12].reshape(3, 2, 2), x[:6].reshape(3, 2)),
    "vmap": lambda x: jax.vmap(lambda a: jnp.array([a[0] * a[1], jnp.sin(a[2])]))(x.reshape(4, 3)),
    "norms": lambda x: jnp.linalg.norm(x.reshape(4, 3), axis=1),
    "determinants": lambda x: jnp.linalg.det(3 * jnp.eye(2) + x.reshape(3, 2, 2)),
    "solves of a batch": lambda x: jnp.linalg.solve(3 * jnp.eye(2) + x[:8].reshape(2, 2, 2), x[8:].reshape(2, 2, 1)),
    "convolve": lambda x: jnp.convolve(x, jnp.array([1.0, 2.0, 1.0]), "same"),
    "convolution": convolved(),
    "strided convolution of dilated numbers": lambda x: lax.conv_general_dilated(
        x.reshape(1, 1, 12), jnp.ones((1, 1, 3)), (2,), [(1, 0)], lhs_dilation=(2,)
    ),
    "dynamic slice at a known place": lambda x: lax.dynamic_slice(x, (2,), (3,)) ** 2,
    "dynamic update at a known place": lambda x: lax.dynamic_update_slice(x, x[:2] ** 2, (5,)),
    "fori": lambda x: lax.fori_loop(0, 3, lambda k, y: y * x, x),
    "scan": accumulated,
    "map": lambda x: lax.map(lambda t: t * t + x[0], x),
    "remat": jax.checkpoint(stencil),
    "jit": jax.jit(stencil),
    "interpolation": lambda x: jnp.interp(x, jnp.arange(-3.0, 4.0), jnp.arange(7.0) ** 2),
    "float32 inside": lambda x: (x.astype(jnp.float32) * 2).astype(x.dtype),
    "complex inside": lambda x: jnp.real(jnp.conj(x[1:] + 1j * x[:-1]) * 2j) + jnp.imag(lax.complex(x[1:], x[1:])),
    "lost derivative": lambda x: lax.stop_gradient(x[1:]) * x[:-1],
    "rule by hand": straight_through,
    "rounding of numbers": lambda x: lax.reduce_precision(x, 8, 20),
    "barrier": lambda x: jnp.add(*lax.optimization_barrier((x[1:], x[:-1]))),
    "copies": lambda x: jnp.copy(x),
    "negated": lambda x: -2 * x - (x - 1),
    "nothing": lambda x: jnp.ones(3),
}
CONSERVATIVE = {
    "carried": carried,
    "triangular solves": lambda x: lax.linalg.triangular_solve(
        3 * jnp.eye(2) + x[:8].reshape(2, 2, 2), x[8:].reshape(2, 2, 1), left_side=True
    ),
    "maximum over an axis": lambda x: jnp.max(x.reshape(4, 3), axis=1),
    "where": lambda x: jnp.where(x > 100.0, x[::-1], x),  # no point tried is beyond 100
    "branches": lambda x: lax.cond(x[0] > 100.0, lambda x: x * x, lambda x: x[::-1] * 2.0, x),
    "sorted": jnp.sort,
    "gather at computed places": lambda x: jnp.take(x, jnp.argsort(x)),
    "rows at computed places": lambda x: jnp.take(x.reshape(4, 3), jnp.argsort(x[:4]), axis=0),
    "scatter to computed places": lambda x: x.at[jnp.argsort(x)[:2]].add(x[:2]),
    "slice at a computed place": lambda x: lax.dynamic_slice(x, (jnp.int32(x[0]),), (3,)) ** 2,
    "slice at a known and a computed place": lambda x: (
        lax.dynamic_slice(x.reshape(4, 3), (jnp.int32(1), jnp.int32(x[0] > 0)), (2, 2)) ** 2
    ),
    "update at a computed place": lambda x: lax.dynamic_update_slice(x, x[:2] ** 2, (jnp.int32(x[0]),)),
    "overwritten once": lambda x: x.at[INDEX[:3]].set(x[:3] ** 2, unique_indices=True),
    "overwritten": lambda x: x.at[INDEX[:3]].set(x[:3] ** 2),
    "cumulated": lambda x: jnp.cumsum(x.reshape(4, 3), axis=1) ** 2,
    "while": grown,
    "unknown primitive": lambda x: jnp.real(jnp.fft.fft(x)) ** 2,
    "convolution in groups": lambda x: lax.conv_general_dilated(
        x.reshape(1, 2, 6), jnp.ones((4, 1, 2)), (1,), [(1, 0)], feature_group_count=2
    ),
    "learned convolution": lambda x: lax.conv_general_dilated(
        jnp.ones((1, 1, 9)), x[:3].reshape(1, 1, 3), (1,), [(0, 0)]
    ),
    "nonlinear in the matrix": lambda x: jnp.linalg.inv(3 * jnp.eye(2) + x[:4].reshape(2, 2)),
}


def asked(f, dtype=np.float64):
    """The pattern of the JVP of f, in its tangent."""
    rules = get_engine("jax")
    jvp = rules.jvp_of(lambda x, c: (f(*x),), 1)
    return rules.dependencies_of(lambda x, c: jvp(x, c)[1:], [Aval((N,), np.dtype(dtype))] * 2, (), 1)


def entries(f, transform=None):
    """Where the Jacobian is not zero at any of several points."""
    with jax.enable_x64(True):
        points = [scale * RNG.uniform(-1, 1, N) for scale in (0.5, 1.0, 3.0, 3.0, 3.0)]
        jacobian = jax.jit((transform or jax.jacfwd)(f))
        return sum(np.abs(np.nan_to_num(np.asarray(jacobian(x)).reshape(-1, N), nan=1.0)) for x in points) != 0


@pytest.mark.parametrize("name", EXACT)
def test_exact(name):
    np.testing.assert_array_equal(asked(EXACT[name]).toarray(), entries(EXACT[name]))


@pytest.mark.parametrize("name", CONSERVATIVE)
def test_conservative(name):
    found, there = asked(CONSERVATIVE[name]).toarray(), entries(CONSERVATIVE[name])
    assert np.all(found | ~there)


def test_values_decide_nothing():
    found = asked(CONSERVATIVE["where"]).toarray()
    np.testing.assert_array_equal(found, np.eye(N, dtype=bool) | np.eye(N, dtype=bool)[::-1])
    assert np.all(asked(CONSERVATIVE["branches"]).toarray() == found)
    rows = asked(CONSERVATIVE["rows at computed places"]).toarray()
    np.testing.assert_array_equal(rows, np.tile(np.eye(3, dtype=bool), (4, 4)))


def test_every_rule_is_tested():
    """Each primitive that has a rule stands, with something to pass on, in one of the programs above."""
    seen = set()
    rules = dependencies._RULES
    watched = {name: (lambda *a, name=name, rule=rule: (seen.add(name), rule(*a))[1]) for name, rule in rules.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dependencies, "_RULES", watched)
        for f in (*EXACT.values(), *CONSERVATIVE.values()):
            asked(f)
    elsewhere = {
        "sub",
        "copy_p",
        "pjit",
        "closed_call",
        "core_call",
        "checkpoint",
        "remat",
        "expand_dims",
        "custom_lin",
    }
    assert set(rules) - seen <= elsewhere


def test_backward_rules_alone():
    """What has no JVP is asked for its VJP by the caller."""
    assert asked(only_backwards) is None
    rules = get_engine("jax")
    vjp = rules.vjp_of(lambda x, c: (only_backwards(*x),), 1)
    avals = [Aval((N,), np.dtype(float)), Aval((N - 1,), np.dtype(float))]
    found = rules.dependencies_of(vjp, avals, (), 1)
    np.testing.assert_array_equal(found.toarray().T, entries(only_backwards, jax.jacrev))


def test_programs_that_look_at_values_are_not_traced():
    assert asked(lambda x: x * 2 if x[0] > 0 else x[::-1]) is None
    assert asked(lambda x: x[x > 0]) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_callers_precision(dtype):
    seen = []

    def f(x):
        seen.append((x.dtype, jnp.arange(3.0).dtype))
        return lax.fori_loop(0, 2, lambda k, y: y * jnp.asarray(2.0, x.dtype), x)

    assert asked(f, dtype).nnz == N
    assert set(seen) == {(np.dtype(dtype),) * 2}


def test_constants_that_may_change_and_that_do_not():
    rules = get_engine("jax")
    jvp = rules.jvp_of(lambda x, c: (x[0][c[0]],), 1)
    avals = [Aval((N,), np.dtype(float))] * 2
    index = rules.enter(np.array([4, 2]))
    known = rules.dependencies_of(lambda x, c: jvp(x, c)[1:], avals, (index,), 1).toarray()
    np.testing.assert_array_equal(known, np.eye(N, dtype=bool)[[4, 2]])
    assert rules.dependencies_of(lambda x, c: jvp(x, c)[1:], avals, (rules.aval(index),), 1).nnz == 2 * N


def test_what_is_dense_is_not_stored():
    rules, n = get_engine("jax"), 10**5
    jvp = rules.jvp_of(lambda x, c: (x[0] / jnp.sum(x[0]),), 1)
    with pytest.raises(DensePatternError):
        rules.dependencies_of(lambda x, c: jvp(x, c)[1:], [Aval((n,), np.dtype(float))] * 2, (), 1)
