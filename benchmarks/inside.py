"""What a tape costs inside an engine, above calling the reduced function itself and above a wrapper that does nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import Timing, timed
from pyadjoint_utils import Control, MissingEngineError, ReducedFunctional, Tape, array, overload, set_working_tape

LENGTH = 10
TURNS, REPEATS = 3, 400  # short runs, which others on the machine disturb less often
ROWS = ("value", "gradient", "Hessian action")


def tape(engine: str) -> ReducedFunctional:
    """Return ``sum(sin(x) x)``, recorded as one Block of an engine or, for ``"mixed"``, as two of two."""
    set_working_tape(Tape())
    x = array(np.linspace(0.1, 1.0, LENGTH))
    if engine == "mixed":
        return ReducedFunctional(_loss("jax")(np.sin(x) * x), Control(x))
    return ReducedFunctional(_loss(engine)(x), Control(x))


def _loss(engine: str) -> Callable[[Any], Any]:
    if engine == "autograd":
        import autograd.numpy as anp

        return overload(lambda x: anp.sum(anp.sin(x) * x), engine)
    if engine == "torch":
        import torch

        return overload(lambda x: torch.sum(torch.sin(x) * x), engine)
    import jax.numpy as jnp

    return overload(lambda x: jnp.sum(jnp.sin(x) * x), engine)


def direct(rf: ReducedFunctional) -> list[Timing]:
    """Time the reduced functional: value; value and gradient; value and Hessian action."""
    x, direction = array(np.linspace(0.2, 1.0, LENGTH)), array(np.ones(LENGTH))
    return [
        _timed(lambda: rf(x)),
        _timed(lambda: (rf(x), rf.derivative())),
        _timed(lambda: (rf(x), rf.hessian(direction))),
    ]


def in_jax(rf: ReducedFunctional, *, jit: bool) -> list[Timing]:
    """Time the same inside of JAX."""
    import jax

    from pyadjoint_utils import as_jax

    return _jax(as_jax(rf), jax.jit if jit else lambda f: f)


def jax_floor(*, jit: bool) -> list[Timing]:
    """Time a function of JAX that does nothing: a callback, in the way that JAX documents, or eagerly bare primitives."""
    import jax

    return _jax(_callbacks(jax) if jit else _primitives(jax), jax.jit if jit else lambda f: f)


def _callbacks(jax: Any) -> Callable[[Any], Any]:
    one, ones = np.ones(()), np.ones(LENGTH)

    def called(result: np.ndarray, *x: Any) -> Any:
        return jax.pure_callback(lambda *_: result, jax.ShapeDtypeStruct(result.shape, result.dtype), *x)

    def linear(result: np.ndarray) -> Any:
        f = jax.custom_jvp(lambda x: called(result, x))
        f.defjvp(lambda x, dx: (called(result, *x), called(result, *x, *dx)))
        return f

    value, adjoint = linear(one), linear(ones)
    f = jax.custom_vjp(value)
    f.defvjp(lambda x: (value(x), x), lambda x, yb: (adjoint(x),))
    return f


def _primitives(jax: Any) -> Callable[[Any], Any]:
    """A value, its tangent, its adjoint and the adjoint's tangent, which return constants and have the leanest rules."""
    from jax._src.interpreters.ad import primitive_linearizations
    from jax.extend.core import Primitive
    from jax.interpreters import ad

    def primitive(name: str, result: np.ndarray) -> Any:
        p = Primitive(name)
        constant, aval = jax.numpy.asarray(result), jax.core.ShapedArray(result.shape, result.dtype)
        p.def_impl(lambda *_: constant)
        p.def_abstract_eval(lambda *_: aval)
        return p

    with jax.enable_x64(True):
        value, tangent = primitive("value", np.ones(())), primitive("tangent", np.ones(()))
        adjoint, second = primitive("adjoint", np.ones(LENGTH)), primitive("second", np.ones(LENGTH))
    for p, derivative in ((value, tangent), (adjoint, second)):
        ad.primitive_jvps[p] = lambda x, dx, p=p, d=derivative: (
            p.bind(*x),
            d.bind(*x, *map(ad.instantiate_zeros, dx)),
        )
    primitive_linearizations[value] = lambda _, __, x: (value.bind(x), True, x, lambda x, dx: tangent.bind(x, dx))
    ad.primitive_transposes[tangent] = lambda yb, x, dx: [None, adjoint.bind(x, yb)]
    return value.bind


def _jax(f: Callable[[Any], Any], prepared: Callable[..., Any]) -> list[Timing]:
    import jax
    import jax.numpy as jnp

    value, gradient = prepared(f), prepared(jax.value_and_grad(f))
    hessian = prepared(lambda x, v: jax.jvp(jax.value_and_grad(f), (x,), (v,)))
    with jax.enable_x64(True):
        x, v = jnp.linspace(0.2, 1.0, LENGTH), jnp.ones(LENGTH)
        return [
            _timed(lambda: jax.block_until_ready(value(x))),
            _timed(lambda: jax.block_until_ready(gradient(x))),
            _timed(lambda: jax.block_until_ready(hessian(x, v))),
        ]


def in_autograd(rf: ReducedFunctional) -> list[Timing]:
    """Time the same inside of autograd."""
    import autograd

    from pyadjoint_utils import as_autograd

    f = as_autograd(rf)
    x, v = np.linspace(0.2, 1.0, LENGTH), np.ones(LENGTH)
    gradient, hessian = autograd.value_and_grad(f), autograd.make_hvp(f)
    return [_timed(lambda: f(x)), _timed(lambda: gradient(x)), _timed(lambda: hessian(x)[0](v))]


def in_torch(rf: ReducedFunctional) -> list[Timing]:
    """Time the same inside of PyTorch, the Hessian action by double backward."""
    from pyadjoint_utils import as_torch

    return _torch(as_torch(rf))


def torch_floor() -> list[Timing]:
    """Time nested autograd Functions of PyTorch that return constants."""
    import torch

    one, ones = torch.ones((), dtype=torch.float64), torch.ones(LENGTH, dtype=torch.float64)

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *x: Any) -> Any:
            ctx.save_for_backward(*x)
            return one.clone() if len(x) == 1 else ones.clone()

        @staticmethod
        def backward(ctx: Any, *yb: Any) -> Any:
            xb = Nothing.apply(*ctx.saved_tensors, *yb)
            return xb if len(ctx.saved_tensors) == 1 else (xb, *[None] * (len(ctx.saved_tensors) - 1))

    return _torch(Nothing.apply)


def _torch(f: Callable[[Any], Any]) -> list[Timing]:
    import torch

    x = torch.linspace(0.2, 1.0, LENGTH, dtype=torch.float64)
    leaf, v = x.clone().requires_grad_(), torch.ones(LENGTH, dtype=torch.float64)

    def hessian() -> Any:
        (gradient,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
        return torch.autograd.grad(gradient, leaf, v)

    return [_timed(lambda: f(x)), _timed(lambda: torch.autograd.grad(f(leaf), leaf)), _timed(hessian)]


def in_tensorflow(rf: ReducedFunctional) -> list[Timing]:
    """Time the same inside of TensorFlow, eagerly, the Hessian action by nested gradient tapes."""
    from pyadjoint_utils import as_tensorflow

    return _tensorflow(as_tensorflow(rf))


def tensorflow_floor() -> list[Timing]:
    """Time nested custom gradients of TensorFlow that return constants."""
    import tensorflow as tf

    one, ones = tf.ones((), tf.float64), tf.ones(LENGTH, tf.float64)

    @tf.custom_gradient
    def value(x: Any) -> Any:
        return tf.identity(one), lambda yb: adjoint(x, yb)

    @tf.custom_gradient
    def adjoint(x: Any, yb: Any) -> Any:
        return tf.identity(ones), lambda v: (tf.identity(v), tf.identity(one))

    return _tensorflow(value)


def _tensorflow(f: Callable[[Any], Any]) -> list[Timing]:
    import tensorflow as tf

    x, v = tf.linspace(tf.constant(0.2, tf.float64), 1.0, LENGTH), tf.ones(LENGTH, tf.float64)

    def gradient() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = f(x)
        return tape.gradient(y, x)

    def hessian() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            inner = gradient()
        return tape.gradient(inner, x, output_gradients=v)

    return [_timed(lambda: f(x)), _timed(gradient), _timed(hessian)]


def _timed(run: Callable[[], Any]) -> Timing:
    def several() -> None:
        for _ in range(TURNS):
            run()

    several()
    return timed(several, TURNS, REPEATS)


def _print(title: str, timings: list[Timing], base: list[Timing] | None, floor: list[Timing] | None) -> None:
    nothing = [0.0] * len(timings) if floor is None else [t.minimum for t in floor]
    cells = []
    for t, below, wrapper in zip(timings, base or timings, nothing, strict=True):
        above = "" if base is None else f"{t.minimum - below.minimum:8.0f} {t.minimum / (below.minimum + wrapper):6.2f}"
        cells.append(f"{t}{above:<18}")
    print(f"{title:<34}" + "".join(cells))


def main() -> None:
    """Print the table of all installed engines."""
    print(
        "a tape inside an engine, microseconds per call: minimum, median, minimum above the reduced functional, and\n"
        "minimum divided by that of the reduced functional and of the engine's wrapper of nothing together\n"
    )
    print(f"{'':<34}" + "".join(f"{row:<35}" for row in ROWS))
    floors = {
        "JAX, jit": _report("JAX, nothing, pure_callback in jit", lambda: (jax_floor(jit=True), None)),
        "JAX, eager": _report("JAX, nothing, eager", lambda: (jax_floor(jit=False), None)),
        "PyTorch": _report("PyTorch, nothing", lambda: (torch_floor(), None)),
        "TensorFlow": _report("TensorFlow, nothing", lambda: (tensorflow_floor(), None)),
        "autograd": None,
    }
    calls = {
        "JAX, jit": lambda rf: in_jax(rf, jit=True),
        "JAX, eager": lambda rf: in_jax(rf, jit=False),
        "PyTorch": in_torch,
        "TensorFlow": in_tensorflow,
        "autograd": in_autograd,
    }
    for engine in ("autograd", "torch", "jax", "mixed"):
        _report(f"{engine}, reduced functional", lambda engine=engine: (direct(tape(engine)), None))
        for title, call in calls.items():
            _report(f"{engine}, in {title}", lambda e=engine, call=call: _both(tape(e), call), floors[title])


def _both(rf: ReducedFunctional, call: Callable[[ReducedFunctional], list[Timing]]) -> Any:
    return call(rf), direct(rf)


def _report(title: str, measure: Callable[[], Any], floor: list[Timing] | None = None) -> list[Timing] | None:
    try:
        timings, base = measure()
    except (ImportError, MissingEngineError) as error:
        print(f"{title:<34}skipped: {error}")
        return None
    _print(title, timings, base, floor)
    return timings


if __name__ == "__main__":
    main()
