"""The table of scenarios: one function each, with closed forms of its value, JVP, VJP and the derivative of its VJP.

The closed forms are NumPy, written down by hand. Adjoints are those under ``<a, b> = Re(sum(conj(a) b))``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

INDEX = np.array([2, 0, 2])
MATRIX = np.array([[2.0, -1.0, 0.5], [0.3, 1.5, 0.0], [-0.7, 0.2, 3.0]])
CONSTANT = np.array([3.0, -4.0])


@dataclass(frozen=True, eq=False)
class Scenario:
    """A function of an engine, how it is called, and what it must give.

    Attributes:
        function: ``function(e, *args, **kwargs)`` for a :class:`Namespace` ``e``.
        inputs: ``(shape, kind)`` of each control, kind ``"r"`` for real or ``"c"`` for complex.
        value: closed form ``value(*x) -> outputs``, one tuple of arrays.
        jvp: ``jvp(x, h) -> tangents``.
        vjp: ``vjp(x, v) -> cotangents``.
        hvp: ``hvp(x, h, v) -> `` the derivative of ``vjp(x, v)`` in direction ``h``.
        call: how an overloaded function is called with the controls; returns the list of its differentiable outputs.
        options: of ``overload``.
    """

    name: str
    function: Callable[..., Any]
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    value: Callable[..., tuple[Any, ...]]
    jvp: Callable[..., tuple[Any, ...]]
    vjp: Callable[..., tuple[Any, ...]]
    hvp: Callable[..., tuple[Any, ...]]
    call: Callable[..., list[Any]] = lambda f, *x: _listed(f(*x))
    options: dict[str, Any] = field(default_factory=dict)

    def point(self, seed: int, precision: str, scale: float = 1.0) -> list[np.ndarray]:
        """Random controls of a precision, ``"double"`` or ``"single"``."""
        rng = np.random.default_rng(seed)
        return [random(rng, shape, dtype_of(kind, precision), scale) for shape, kind in self.inputs]

    def cotangent(self, seed: int, precision: str) -> list[np.ndarray]:
        """One random array like each output."""
        rng = np.random.default_rng(seed)
        outputs = [np.asarray(y) for y in self.value(*self.point(0, precision))]
        return [random(rng, y.shape, dtype_of("c" if y.dtype.kind == "c" else "r", precision)) for y in outputs]


def bend(x: Any) -> Any:
    """``x + x^2 / 8``, in the arithmetic of whatever array ``x`` is."""
    return x + x * x * 0.125


_BENT = Scenario(
    "bend",
    lambda e, *x: [bend(part) for part in x],
    (),
    lambda *x: tuple([bend(part) for part in x]),
    lambda x, h: tuple([(1 + part / 4) * dx for part, dx in zip(x, h, strict=True)]),
    lambda x, v: tuple([np.conj(1 + part / 4) * yb for part, yb in zip(x, v, strict=True)]),
    lambda x, h, v: tuple([np.conj(dx / 4) * yb for dx, yb in zip(h, v, strict=True)]),
)


def bent(scenario: Scenario, call: Callable[..., list[Any]]) -> Scenario:
    """Return a scenario with two curved functions before it and two after it.

    Args:
        scenario: the one in the middle.
        call: how it is called, as ``Scenario.call``, with :func:`bend` twice on each control and each output.
    """
    forms = _BENT
    for outer in (_BENT, scenario, _BENT, _BENT):
        forms = _composed(outer, forms)
    return replace(forms, name=f"bent {scenario.name}", inputs=scenario.inputs, call=call)


def _composed(outer: Scenario, inner: Scenario) -> Scenario:
    """The closed forms of ``outer(inner(x))`` by the chain rule."""

    def hvp(x: Sequence[Any], h: Sequence[Any], v: Sequence[Any]) -> tuple[Any, ...]:
        y, dy = inner.value(*x), inner.jvp(x, h)
        curvature, propagated = inner.hvp(x, h, outer.vjp(y, v)), inner.vjp(x, outer.hvp(y, dy, v))
        return tuple([a + b for a, b in zip(curvature, propagated, strict=True)])

    return replace(
        inner,
        value=lambda *x: outer.value(*inner.value(*x)),
        jvp=lambda x, h: outer.jvp(inner.value(*x), inner.jvp(x, h)),
        vjp=lambda x, v: inner.vjp(x, outer.vjp(inner.value(*x), v)),
        hvp=hvp,
    )


def _listed(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def dtype_of(kind: str, precision: str) -> np.dtype:
    """The dtype of a kind and a precision."""
    return np.dtype({"rd": "float64", "rs": "float32", "cd": "complex128", "cs": "complex64"}[kind + precision[0]])


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, scale: float = 1.0) -> np.ndarray:
    """Numbers of modulus between about 0.3 and 1.3, so that no point is special."""
    size = scale * rng.uniform(0.3, 1.3, shape)
    phase = np.exp(1j * rng.uniform(-np.pi, np.pi, shape)) if dtype.kind == "c" else rng.choice([-1.0, 1.0], shape)
    return np.asarray(size * phase).astype(dtype)


def _scattered(values: np.ndarray) -> np.ndarray:
    result = np.zeros(3, values.dtype)
    np.add.at(result, INDEX, values)
    return result


# Functions that take more than a line -------------------------------------------------------------------------------------


def _containers(e, params, data, *, scale):
    (x,) = data
    return {"product": params["w"] * x, "parts": [e.sum(params["b"][0] * x * x), (scale * params["w"],)]}


def _call_containers(f, w, b, x, scale):
    result = f({"w": w, "b": [b]}, (x,), scale=scale)
    assert set(result) == {"product", "parts"}
    assert isinstance(result["parts"], list)
    assert isinstance(result["parts"][1], tuple)
    return [result["product"], result["parts"][0], result["parts"][1][0]]


def _containers_vjp(x, v):
    w, b, d, s = x
    return v[0] * d + s * v[2], v[1] * d * d, v[0] * w + 2 * v[1] * b * d, np.sum(v[2] * w)


def _containers_jvp(x, h):
    w, b, d, s = x
    hw, hb, hd, hs = h
    return hw * d + w * hd, np.sum(hb * d * d + 2 * b * d * hd), hs * w + s * hw


def _containers_hvp(x, h, v):
    _w, b, d, _s = x
    hw, hb, hd, hs = h
    return (
        v[0] * hd + hs * v[2],
        2 * v[1] * d * hd,
        v[0] * hw + 2 * v[1] * (hb * d + b * hd),
        np.sum(v[2] * hw),
    )


def _power(e, x, order, how):
    y = x
    for _ in range(order - 1):
        y = y * x
    return y + y if how == "twice" else y


def _call_integer(f, x):
    y, index = f(x)
    assert index.dtype.kind == "i"
    assert index.shape == ()
    assert int(index) == np.argmax(x.numpy())
    return [y]


def _layer(x):
    w, b, d = x
    t = np.tanh(d @ w + b)
    return t, 1 - t * t


def _layer_jvp(x, h):
    (w, _b, d), (hw, hb, hd) = x, h
    return (_layer(x)[1] * (hd @ w + d @ hw + hb),)


def _layer_vjp(x, v):
    w, _b, d = x
    g = v[0] * _layer(x)[1]
    return d.T @ g, g.sum(0), g @ w.T


def _layer_hvp(x, h, v):
    (w, _b, d), (hw, hb, hd) = x, h
    t, s = _layer(x)
    g, dg = v[0] * s, v[0] * -2 * t * s * (hd @ w + d @ hw + hb)
    return hd.T @ g + d.T @ dg, dg.sum(0), dg @ w.T + g @ hw.T


def _constant_matrix(f, x):
    return [f(x, MATRIX.astype(x.dtype))]


_S = (MATRIX + MATRIX.T) / 2
V3, S0 = ((3,), "r"), ((), "r")
C3 = ((3,), "c")

SCENARIOS = [
    Scenario(
        "elementwise",
        lambda e, x: e.sin(x) * x,
        (V3,),
        lambda x: (np.sin(x) * x,),
        lambda x, h: ((np.sin(x[0]) + x[0] * np.cos(x[0])) * h[0],),
        lambda x, v: ((np.sin(x[0]) + x[0] * np.cos(x[0])) * v[0],),
        lambda x, h, v: ((2 * np.cos(x[0]) - x[0] * np.sin(x[0])) * h[0] * v[0],),
    ),
    Scenario(
        "quadratic form",
        lambda e, x, a: 0.5 * e.sum(x * e.sum(a * x, -1)),
        (V3,),
        lambda x: (0.5 * x @ MATRIX @ x,),
        lambda x, h: (h[0] @ _S @ x[0],),
        lambda x, v: (v[0] * (_S @ x[0]),),
        lambda x, h, v: (v[0] * (_S @ h[0]),),
        call=_constant_matrix,
    ),
    Scenario(
        "two in, two out",
        lambda e, x, y: (x * y, e.sum(x * x * y)),
        (V3, V3),
        lambda x, y: (x * y, np.sum(x * x * y)),
        lambda x, h: (h[0] * x[1] + x[0] * h[1], np.sum(2 * x[0] * x[1] * h[0] + x[0] ** 2 * h[1])),
        lambda x, v: (v[0] * x[1] + 2 * v[1] * x[0] * x[1], v[0] * x[0] + v[1] * x[0] ** 2),
        lambda x, h, v: (
            v[0] * h[1] + 2 * v[1] * (h[0] * x[1] + x[0] * h[1]),
            v[0] * h[0] + 2 * v[1] * x[0] * h[0],
        ),
    ),
    Scenario(
        "containers and keywords",
        _containers,
        (V3, V3, V3, S0),
        lambda w, b, x, s: (w * x, np.sum(b * x * x), s * w),
        _containers_jvp,
        _containers_vjp,
        _containers_hvp,
        call=_call_containers,
    ),
    Scenario(
        "static argument",
        _power,
        (V3,),
        lambda x: (2 * x**3,),
        lambda x, h: (6 * x[0] ** 2 * h[0],),
        lambda x, v: (6 * x[0] ** 2 * v[0],),
        lambda x, h, v: (12 * x[0] * h[0] * v[0],),
        call=lambda f, x: [f(x, 3, how="twice")],
        options={"static_argnums": 1},
    ),
    Scenario(
        "unused input",
        lambda e, x, y: e.exp(x),
        (V3, V3),
        lambda x, y: (np.exp(x),),
        lambda x, h: (np.exp(x[0]) * h[0],),
        lambda x, v: (np.exp(x[0]) * v[0], np.zeros_like(x[1])),
        lambda x, h, v: (np.exp(x[0]) * h[0] * v[0], np.zeros_like(x[1])),
    ),
    Scenario(
        "independent outputs",
        lambda e, x, y, c: (e.exp(x), y * y, c + c),
        (V3, S0),
        lambda x, y: (np.exp(x), y * y, 2 * CONSTANT),
        lambda x, h: (np.exp(x[0]) * h[0], 2 * x[1] * h[1], np.zeros(2)),
        lambda x, v: (np.exp(x[0]) * v[0], 2 * x[1] * v[1]),
        lambda x, h, v: (np.exp(x[0]) * h[0] * v[0], 2 * h[1] * v[1]),
        call=lambda f, x, y: list(f(x, y, CONSTANT.astype(x.dtype))),
    ),
    Scenario(
        "scalar",
        lambda e, x: e.exp(e.sin(x)),
        (S0,),
        lambda x: (np.exp(np.sin(x)),),
        lambda x, h: (np.cos(x[0]) * np.exp(np.sin(x[0])) * h[0],),
        lambda x, v: (np.cos(x[0]) * np.exp(np.sin(x[0])) * v[0],),
        lambda x, h, v: ((np.cos(x[0]) ** 2 - np.sin(x[0])) * np.exp(np.sin(x[0])) * h[0] * v[0],),
    ),
    Scenario(
        "network layer",
        lambda e, w, b, x: e.tanh(e.matmul(x, w) + b),
        (((3, 2), "r"), ((2,), "r"), ((4, 3), "r")),
        lambda *x: (_layer(x)[0],),
        _layer_jvp,
        _layer_vjp,
        _layer_hvp,
    ),
    Scenario(
        "gather",
        lambda e, x, index: e.take(x, index) * e.take(x, index),
        (V3,),
        lambda x: (x[INDEX] ** 2,),
        lambda x, h: (2 * x[0][INDEX] * h[0][INDEX],),
        lambda x, v: (_scattered(2 * x[0][INDEX] * v[0]),),
        lambda x, h, v: (_scattered(2 * h[0][INDEX] * v[0]),),
        call=lambda f, x: [f(x, INDEX)],
    ),
    Scenario(
        "indexing and stacking",
        lambda e, x: e.stack([x[0] * x[1:], e.sin(x[:2])]),
        (V3,),
        lambda x: (np.stack([x[0] * x[1:], np.sin(x[:2])]),),
        lambda x, h: (np.stack([h[0][0] * x[0][1:] + x[0][0] * h[0][1:], np.cos(x[0][:2]) * h[0][:2]]),),
        lambda x, v: (np.array([v[0][0] @ x[0][1:], *(x[0][0] * v[0][0])]) + np.append(np.cos(x[0][:2]) * v[0][1], 0),),
        lambda x, h, v: (
            np.array([v[0][0] @ h[0][1:], *(h[0][0] * v[0][0])]) - np.append(np.sin(x[0][:2]) * h[0][:2] * v[0][1], 0),
        ),
    ),
    Scenario(
        "one value twice",
        lambda e, x, y: x * e.sin(y),
        (V3,),
        lambda x: (x * np.sin(x),),
        lambda x, h: ((np.sin(x[0]) + x[0] * np.cos(x[0])) * h[0],),
        lambda x, v: ((np.sin(x[0]) + x[0] * np.cos(x[0])) * v[0],),
        lambda x, h, v: ((2 * np.cos(x[0]) - x[0] * np.sin(x[0])) * h[0] * v[0],),
        call=lambda f, x: [f(x, x)],
    ),
    Scenario(
        "integer output",
        lambda e, x: (x * x, e.argmax(x)),
        (V3,),
        lambda x: (x * x,),
        lambda x, h: (2 * x[0] * h[0],),
        lambda x, v: (2 * x[0] * v[0],),
        lambda x, h, v: (2 * h[0] * v[0],),
        call=_call_integer,
    ),
    Scenario(
        "holomorphic",
        lambda e, z: z * z * e.exp(z),
        (C3,),
        lambda z: (z * z * np.exp(z),),
        lambda z, h: ((2 * z[0] + z[0] ** 2) * np.exp(z[0]) * h[0],),
        lambda z, v: (np.conj((2 * z[0] + z[0] ** 2) * np.exp(z[0])) * v[0],),
        lambda z, h, v: (np.conj((2 + 4 * z[0] + z[0] ** 2) * np.exp(z[0]) * h[0]) * v[0],),
    ),
    Scenario(
        "squared modulus",
        lambda e, z: e.sum(e.abs(z) * e.abs(z)),
        (C3,),
        lambda z: (np.sum(np.abs(z) ** 2),),
        lambda z, h: (np.sum(2 * np.real(np.conj(z[0]) * h[0])),),
        lambda z, v: (2 * z[0] * v[0],),
        lambda z, h, v: (2 * h[0] * v[0],),
    ),
    Scenario(
        "conjugate",
        lambda e, z: e.conj(z) * e.flip(z),
        (C3,),
        lambda z: (np.conj(z) * z[::-1],),
        lambda z, h: (np.conj(h[0]) * z[0][::-1] + np.conj(z[0]) * h[0][::-1],),
        lambda z, v: (np.conj(v[0]) * z[0][::-1] + (v[0] * z[0])[::-1],),
        lambda z, h, v: (np.conj(v[0]) * h[0][::-1] + (v[0] * h[0])[::-1],),
    ),
    Scenario(
        "real to complex",
        lambda e, x: e.exp(1j * e.complex(x)),
        (V3,),
        lambda x: (np.exp(1j * x),),
        lambda x, h: (1j * np.exp(1j * x[0]) * h[0],),
        lambda x, v: (np.real(np.conj(1j * np.exp(1j * x[0])) * v[0]),),
        lambda x, h, v: (np.real(np.conj(-np.exp(1j * x[0])) * h[0] * v[0]),),
    ),
    Scenario(
        "real and imaginary part",
        lambda e, z: e.real(z) * e.imag(z),
        (C3,),
        lambda z: (z.real * z.imag,),
        lambda z, h: (h[0].real * z[0].imag + z[0].real * h[0].imag,),
        lambda z, v: (v[0] * (z[0].imag + 1j * z[0].real),),
        lambda z, h, v: (v[0] * (h[0].imag + 1j * h[0].real),),
    ),
    Scenario(
        "complex times real",
        lambda e, z, p: e.complex(p) * z * z,
        (C3, V3),
        lambda z, p: (p * z * z,),
        lambda x, h: (h[1] * x[0] ** 2 + 2 * x[1] * x[0] * h[0],),
        lambda x, v: (np.conj(2 * x[1] * x[0]) * v[0], np.real(np.conj(x[0] ** 2) * v[0])),
        lambda x, h, v: (
            np.conj(2 * h[1] * x[0] + 2 * x[1] * h[0]) * v[0],
            np.real(np.conj(2 * x[0] * h[0]) * v[0]),
        ),
    ),
]
BY_NAME = {s.name: s for s in SCENARIOS}
