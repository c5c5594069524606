"""What a tape costs inside an engine, above calling the reduced function itself and above a wrapper that does nothing."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import Timing, in_turns
from pyadjoint_utils import Control, MissingEngineError, ReducedFunctional, Tape, array, overload, set_working_tape

LENGTH = 10
REPEATS, SECONDS = 2500, 5.0
ROWS = ("value", "gradient", "Hessian action")
Runs = list[Callable[[], Any]]  # one per row


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


def direct(rf: ReducedFunctional) -> Runs:
    """The reduced functional: value; value and gradient; value and Hessian action."""
    x, direction = array(np.linspace(0.2, 1.0, LENGTH)), array(np.ones(LENGTH))
    return [lambda: rf(x), lambda: (rf(x), rf.derivative()), lambda: (rf(x), rf.hessian(direction))]


def in_jax(rf: ReducedFunctional, *, jit: bool) -> Runs:
    """The same inside of JAX."""
    import jax

    from pyadjoint_utils import as_jax

    return _jax(as_jax(rf), jax.jit if jit else lambda f: f)


def jax_floor(*, jit: bool) -> Runs:
    """A function of JAX that does nothing: a callback, in the way that JAX documents, or eagerly bare primitives."""
    import jax

    return _jax(_callbacks(jax) if jit else _primitives(jax), jax.jit if jit else lambda f: f)


def jax_alone() -> Runs:
    """The same program as JAX's own, without a tape, eagerly."""
    import jax.numpy as jnp

    return _jax(lambda x: jnp.sum(jnp.sin(x) * x), lambda f: f)


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
    """A number that brings its gradient along; both are constants, and their rules are the leanest there are."""
    from jax._src.interpreters.ad import primitive_linearizations
    from jax.extend.core import Primitive
    from jax.interpreters import ad

    def primitive(name: str, *results: np.ndarray) -> Any:
        p = Primitive(name)
        constants = [jax.numpy.asarray(y) for y in results]
        p.multiple_results = True
        p.def_impl(lambda *_: constants)
        p.def_abstract_eval(lambda *_: [jax.typeof(y) for y in constants])
        return p

    one, ones = np.ones(()), np.ones(LENGTH)
    with jax.enable_x64(True):
        value, tangent, both = primitive("value", one), primitive("tangent", one), primitive("both", one, ones)
        dual = primitive("dual", one, ones, one, ones)

    def linearized(_: bool, __: Any, x: Any) -> Any:
        y, gradient = both.bind(x)
        return [y], [True], gradient, lambda gradient, dx: tangent.bind(gradient, dx)

    def pushed(x: Any, dx: Any) -> Any:
        results = dual.bind(*x, *dx)
        return results[:2], results[2:]

    primitive_linearizations[value], ad.primitive_jvps[both] = linearized, pushed
    ad.primitive_transposes[tangent] = lambda yb, gradient, dx: [None, gradient]
    return lambda x: value.bind(x)[0]


def _jax(f: Callable[[Any], Any], prepared: Callable[..., Any]) -> Runs:
    import jax
    import jax.numpy as jnp

    value, gradient = prepared(f), prepared(jax.value_and_grad(f))
    hessian = prepared(lambda x, v: jax.jvp(jax.value_and_grad(f), (x,), (v,)))
    with jax.enable_x64(True):
        x, v = jnp.linspace(0.2, 1.0, LENGTH), jnp.ones(LENGTH)

    def run(g: Callable[..., Any], *arguments: Any) -> None:
        with jax.enable_x64(True):
            jax.block_until_ready(g(*arguments))

    return [lambda: run(value, x), lambda: run(gradient, x), lambda: run(hessian, x, v)]


def in_autograd(rf: ReducedFunctional) -> Runs:
    """The same inside of autograd."""
    import autograd

    from pyadjoint_utils import as_autograd

    f = as_autograd(rf)
    x, v = np.linspace(0.2, 1.0, LENGTH), np.ones(LENGTH)
    gradient, hessian = autograd.value_and_grad(f), autograd.make_hvp(f)
    return [lambda: f(x), lambda: gradient(x), lambda: hessian(x)[0](v)]


def autograd_floor() -> Runs:
    """Primitives of autograd that return constants."""
    import autograd
    from autograd.extend import defvjp, primitive

    one, ones = np.ones(()), np.ones(LENGTH)
    value, adjoint, second = primitive(lambda x: one), primitive(lambda yb, x: ones), primitive(lambda *_: ones)
    defvjp(value, lambda y, x: lambda yb: adjoint(yb, x))
    defvjp(adjoint, lambda y, yb, x: lambda v: one, lambda y, yb, x: lambda v: second(v, yb, x))
    x, v = np.linspace(0.2, 1.0, LENGTH), np.ones(LENGTH)
    gradient, hessian = autograd.value_and_grad(value), autograd.make_hvp(value)
    return [lambda: value(x), lambda: gradient(x), lambda: hessian(x)[0](v)]


def in_torch(rf: ReducedFunctional) -> Runs:
    """The same inside of PyTorch, the Hessian action by double backward."""
    from pyadjoint_utils import as_torch

    return _torch(as_torch(rf))


def torch_floor() -> Runs:
    """Nested autograd Functions of PyTorch that return constants."""
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


def _torch(f: Callable[[Any], Any]) -> Runs:
    import torch

    x = torch.linspace(0.2, 1.0, LENGTH, dtype=torch.float64)
    leaf, v = x.clone().requires_grad_(), torch.ones(LENGTH, dtype=torch.float64)

    def hessian() -> Any:
        (gradient,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
        return torch.autograd.grad(gradient, leaf, v)

    return [lambda: f(x), lambda: torch.autograd.grad(f(leaf), leaf), hessian]


def in_tensorflow(rf: ReducedFunctional) -> Runs:
    """The same inside of TensorFlow, eagerly, the Hessian action by nested gradient tapes."""
    from pyadjoint_utils import as_tensorflow

    return _tensorflow(as_tensorflow(rf))


def tensorflow_floor() -> Runs:
    """Nested custom gradients of TensorFlow that return constants."""
    import tensorflow as tf

    one, ones = tf.ones((), tf.float64), tf.ones(LENGTH, tf.float64)

    @tf.custom_gradient
    def value(x: Any) -> Any:
        return tf.identity(one), lambda yb: adjoint(x, yb)

    @tf.custom_gradient
    def adjoint(x: Any, yb: Any) -> Any:
        return tf.identity(ones), lambda v: (tf.identity(v), tf.identity(one))

    return _tensorflow(value)


def _tensorflow(f: Callable[[Any], Any]) -> Runs:
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

    return [lambda: f(x), gradient, hessian]


CALLERS: dict[str, tuple[Callable[[ReducedFunctional], Runs], Callable[[], Runs]]] = {
    "JAX, jit": (lambda rf: in_jax(rf, jit=True), lambda: jax_floor(jit=True)),
    "JAX, eagerly": (lambda rf: in_jax(rf, jit=False), lambda: jax_floor(jit=False)),
    "PyTorch": (in_torch, torch_floor),
    "TensorFlow": (in_tensorflow, tensorflow_floor),
    "autograd": (in_autograd, autograd_floor),
}
TAPES = {"autograd": "autograd", "torch": "PyTorch", "jax": "JAX", "mixed": "NumPy, then JAX"}


def measured(engine: str, caller: str) -> list[list[Timing]]:
    """Time the reduced functional, the wrapper of nothing and the tape inside, in turns; one list per row."""
    inside, nothing = CALLERS[caller]
    rows = zip(direct(tape(engine)), nothing(), inside(tape(engine)), strict=True)
    return [in_turns(*runs, repeats=REPEATS, seconds=SECONDS) for runs in rows]


def main() -> None:
    """Print the table of all installed engines."""
    print(
        "a tape inside an engine, microseconds per call: the engine's wrapper of nothing, the reduced functional itself,\n"
        "the tape inside (minimum and median), the minimum above the reduced functional, and the minimum divided by those\n"
        "of the reduced functional and the wrapper together\n"
    )
    columns = "nothing  itself  inside  median   above  ratio"
    print(f"{'tape':<16} {'called from':<14}" + "".join(f" | {row:<{len(columns)}}" for row in ROWS))
    print(f"{'':<31}" + f" | {columns}" * len(ROWS))
    for engine, name in TAPES.items():
        for caller in CALLERS:
            try:
                rows = measured(engine, caller)
            except (ImportError, MissingEngineError) as error:
                print(f"{name:<16} {caller:<14} | skipped: {error}")
                continue
            print(f"{name:<16} {caller:<14}" + "".join(f" | {_cells(*row)}" for row in rows), flush=True)

    with contextlib.suppress(ImportError):
        timings = [in_turns(run, repeats=REPEATS, seconds=SECONDS)[0] for run in jax_alone()]
        print("\nwritten in JAX, without a tape, eagerly: " + ", ".join(t.cell() for t in timings))


def _cells(itself: Timing, nothing: Timing, inside: Timing) -> str:
    above, both = inside.minimum - itself.minimum, itself.minimum + nothing.minimum
    return (
        f"{nothing.minimum:7.0f} {itself.minimum:7.0f} {inside.minimum:7.0f} {inside.median:7.0f} {above:7.0f} "
        f"{inside.minimum / both:6.2f}"
    )


if __name__ == "__main__":
    main()
