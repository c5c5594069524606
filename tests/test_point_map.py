"""Point maps: declared shapes, both ways to call, CRIKit's example."""

import autograd.numpy as anp
import numpy as np
import pytest

from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    Control,
    ReducedFunctional,
    array,
    point_map,
    taylor_test,
)

FLUX = (((-1,), (-1, 2), ()), (-1, 2))
U, G = np.array([1.0, 2.0, 3.0]), np.array([[1.0, 0.5], [0.2, 2.0], [1.5, -1.0]])


def p_laplace(u, g, p):
    mu = (anp.sum(g * g, axis=1) + 1.0e-12) ** ((p - 2.0) / 2.0)
    return anp.reshape(mu, (*mu.shape, 1)) * g


def expected(g, p):
    return ((g * g).sum(1) + 1e-12)[:, None] ** ((p - 2.0) / 2.0) * g


@pytest.mark.parametrize("p", [3.0, AdjFloat(3.0), np.array(3.0), np.float64(3.0), 3])
@pytest.mark.parametrize("as_tuple", [False, True])
def test_both_ways_to_call(p, as_tuple):
    bare = point_map(*FLUX, bare=True)(p_laplace)
    packed = point_map(*FLUX)(lambda args: p_laplace(*args))
    args = (array(U), array(G), p)
    for f in (bare, packed):
        y = f(args) if as_tuple else f(*args)
        np.testing.assert_allclose(y.numpy(), expected(G, 3.0))


def test_positional_options_and_name():
    f = point_map(FLUX[0], FLUX[1], True, True, None)(p_laplace)
    assert f.__name__ == "p_laplace"
    assert f(U, G, 3.0).shape == (3, 2)


def test_derivatives_by_field_and_parameter():
    f = point_map(*FLUX, bare=True)(p_laplace)
    total = point_map((-1, 2), (), pointwise=False)(lambda y: anp.sum(y**2))
    g, p = array(G), AdjFloat(3.0)
    J = total(f(array(U), g, p))
    rf = ReducedFunctional(J, [Control(g), Control(p)])
    m, h = [array(G + 0.1), AdjFloat(2.5)], [array(np.ones_like(G)), AdjFloat(0.7)]
    rf(m)
    assert taylor_test(rf, m, h) > 1.95


def test_a_single_shape_takes_the_array_itself():
    f = point_map((-1, 2), (-1,))(lambda g: anp.sum(g, axis=1))
    assert f(array(G)).shape == f((array(G),)).shape == (3,)
    assert point_map(((-1, 2),), (-1,))(lambda args: anp.sum(args[0], axis=1))(G).shape == (3,)


def test_several_outputs_and_scalars_alone():
    f = point_map(((-1,), ()), ((-1,), (-1, 2)), bare=True)(lambda u, s: (u * s, anp.stack([u, u], 1)))
    assert [y.shape for y in f(array(U), 2.0)] == [(3,), (3, 2)]
    assert float(point_map((), ())(lambda s: s**2)(AdjFloat(3.0))) == 9.0


def test_dtype_casts_constants_and_integers():
    seen = []

    def f(u, n, s):
        seen.append((u.dtype, n.dtype, s.dtype))
        return u * n * s

    mapped = point_map(((-1,), (-1,), ()), (-1,), bare=True, dtype=np.float32)(f)
    y = mapped(array(np.ones(3, np.float32)), array(np.arange(3)), 2)
    assert y.dtype == np.float32
    assert seen[0] == (np.float32,) * 3
    mapped(array(np.ones(3)), np.arange(3), 2.0)
    assert seen[-1] == (np.float64, np.float32, np.float32)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((U, G), "takes 3 argument"),
        (((U, G),), "takes 3 argument"),
        ((U, U, 3.0), r"args\[1\] has the shape \(3,\) \(float64\), but \(-1, 2\) is declared.*reshape it to \(3, 2\)"),
        ((U, np.ones((3, 3)), 3.0), r"args\[1\] has the shape \(3, 3\)"),
        ((U, np.ones((4, 2)), 3.0), r"args\[1\].*4 points, but another argument has 3"),
        ((U, G, U), r"args\[2\]"),
        ((2.0, G, 3.0), r"args\[0\] has the shape \(\)"),
    ],
)
def test_arguments_that_do_not_fit(args, message):
    f = point_map(*FLUX, bare=True)(p_laplace)
    with pytest.raises(ArgumentValueError, match=message):
        f(*args)


def test_lists_are_no_arrays():
    with pytest.raises(ArgumentTypeError, match=r"args\[1\] is an array or a number; got list"):
        point_map(*FLUX, bare=True)(p_laplace)(U, [[1.0, 2.0]], 3.0)


@pytest.mark.parametrize(
    ("target", "f", "message"),
    [
        ((-1, 2), lambda u: u, r"result\[0\] has the shape \(3,\)"),
        ((-1,), lambda u: u[:2], "2 points, but another argument has 3"),
        (((-1,), (-1,)), lambda u: u, "returns ndarray"),
        (((-1,), (-1,)), lambda u: (u,), r"returns 1 value"),
    ],
)
def test_results_that_do_not_fit(target, f, message):
    with pytest.raises(ArgumentValueError, match=message):
        point_map((-1,), target)(f)(array(U))


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ((-1, -1), (-1,), {}, "at most one axis of points"),
        ((-2,), (-1,), {}, "at most one"),
        ((2, -1), (-1,), {}, r"source\[0\] = \(2, -1\): the axis of points comes first"),
        ((-1,), (), {}, "pointwise=False"),
        ((), (-1,), {"pointwise": False}, "has an axis of points"),
    ],
)
def test_declarations_that_make_no_sense(source, target, options, message):
    with pytest.raises(ArgumentValueError, match=message):
        point_map(source, target, **options)


@pytest.mark.parametrize("source", [None, 3, ("a",), ((-1,), 2)])
def test_declarations_that_are_no_shapes(source):
    with pytest.raises(ArgumentTypeError, match="is a shape or a tuple of shapes"):
        point_map(source, (-1,))


def test_the_axis_of_points_may_be_elsewhere_when_not_pointwise():
    f = point_map((2, -1), (-1, 2), pointwise=False)(lambda x: x.T)
    assert f(np.ones((2, 5))).shape == (5, 2)


def test_the_face_for_crikit_users():
    from pyadjoint_utils import numpy_adjoint

    assert numpy_adjoint.point_map is point_map
    with pytest.raises(AttributeError):
        _ = numpy_adjoint.no_such_name
