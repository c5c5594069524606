"""What a tape costs inside an engine, above calling the reduced function itself and above a wrapper that does nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import Timing, timed
from pyadjoint_utils import Control, MissingEngineError, ReducedFunctional, Tape, array, overload, set_working_tape

LENGTH = 10
REPEATS = 100
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
    """Time a callback that returns constants, in the way that JAX documents, or eagerly one that is not even called."""
    import jax
    import jax.numpy as jnp

    one, ones = np.ones(()), np.ones(LENGTH)

    def called(result: np.ndarray, *x: Any) -> Any:
        if not jit:
            return jnp.asarray(result)
        return jax.pure_callback(lambda *_: result, jax.ShapeDtypeStruct(result.shape, result.dtype), *x)

    def linear(result: np.ndarray) -> Any:
        f = jax.custom_jvp(lambda x: called(result, x))
        f.defjvp(lambda x, dx: (called(result, *x), called(result, *x, *dx)))
        return f

    value, adjoint = linear(one), linear(ones)
    f = jax.custom_vjp(value)
    f.defvjp(lambda x: (value(x), x), lambda x, yb: (adjoint(x),))
    return _jax(f, jax.jit if jit else lambda f: f)


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
        for _ in range(REPEATS):
            run()

    return timed(several, REPEATS)


def _print(title: str, timings: list[Timing], base: list[Timing] | None = None) -> None:
    above = [""] * len(timings)
    if base is not None:
        above = [f"{a.minimum - b.minimum:7.0f}" for a, b in zip(timings, base, strict=True)]
    print(f"{title:<34}" + "".join(f"{t}{extra:>8}   " for t, extra in zip(timings, above, strict=True)))


def main() -> None:
    """Print the table of all installed engines."""
    print("a tape inside an engine, microseconds per call: minimum, median, and minimum above the reduced functional\n")
    print(f"{'':<34}" + "".join(f"{row:<28}" for row in ROWS))
    _report("JAX, nothing, pure_callback in jit", lambda: (jax_floor(jit=True), None))
    _report("JAX, nothing, eager", lambda: (jax_floor(jit=False), None))
    _report("PyTorch, nothing", lambda: (torch_floor(), None))
    _report("TensorFlow, nothing", lambda: (tensorflow_floor(), None))
    for engine in ("autograd", "torch", "jax", "mixed"):
        _report(f"{engine}, reduced functional", lambda engine=engine: (direct(tape(engine)), None))
        for title, call in (
            ("in JAX, jit", lambda rf: in_jax(rf, jit=True)),
            ("in JAX, eager", lambda rf: in_jax(rf, jit=False)),
            ("in PyTorch", in_torch),
            ("in TensorFlow", in_tensorflow),
            ("in autograd", in_autograd),
        ):
            _report(f"{engine}, {title}", lambda engine=engine, call=call: _both(tape(engine), call))


def _both(rf: ReducedFunctional, call: Callable[[ReducedFunctional], list[Timing]]) -> Any:
    return call(rf), direct(rf)


def _report(title: str, measure: Callable[[], Any]) -> None:
    try:
        timings, base = measure()
    except (ImportError, MissingEngineError) as error:
        print(f"{title:<34}skipped: {error}")
        return
    _print(title, timings, base)


if __name__ == "__main__":
    main()
