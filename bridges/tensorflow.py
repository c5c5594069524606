"""TensorFlow: every map is traced once into a graph, and called without Python in between.

Its companions: :mod:`bridges.tensorflow_checks` (what is refused), :mod:`bridges.tensorflow_functions` (functions of NumPy
names), :mod:`bridges.tensorflow_loops` (loops) and :mod:`bridges.tensorflow_graphs` (TensorFlow 1 graphs and sessions).
"""

import concurrent.futures
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bridges.tensorflow_checks import building, check_graph, nested, refuse_variables
from bridges.tensorflow_functions import function_named
from bridges.tensorflow_graphs import get_params_feed_dict, run_tensorflow_graph
from bridges.tensorflow_inside import as_tensorflow
from bridges.tensorflow_loops import loop, recording
from pyadjoint_utils.engine import Arrays, Aval, Engine, Map, Work
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, UnsupportedError
from pyadjoint_utils.overloading import overload

_ZERO = tf.UnconnectedGradients.ZERO
_LEGACY = tf.compat.v1
# Named, and not asked of a fresh constant, which would land in whatever tf.Graph is the default one.
_EagerTensor: type = tf.__internal__.EagerTensor
with tf.Graph().as_default():
    _Variable: type = type(tf.Variable(0.0))

_DLPACK_CPU = 1
_ALIGNMENT = 64
_BUFFERED = {np.dtype(code).type for code in "?bhilqBHILQefdFD"}


class TensorFlowEngine(Engine):
    """Eager tensors, gradient tapes and concrete functions."""

    name = "tensorflow"
    traces = True
    traces_derivatives = True  # Tensor.numpy() in an eager function would lose its derivative
    # A variable is held by asarray() alone, as an alias; array() and a recorded call take its value.
    array_types = (_EagerTensor, _Variable)

    # checkpoint() stays the identity: the VJP of a map evaluates the map, so that nothing is stored in between.

    def enter(self, source: Any, dtype: np.dtype | None = None) -> Any:
        tensor = _from_numpy(source) if isinstance(source, np.ndarray) else _from_exporter(source)
        return tensor if dtype is None else self.cast(tensor, dtype)

    def to_numpy(self, array: Any) -> np.ndarray:
        tensor = self.copy(array)
        try:
            return np.asarray(memoryview(tensor))
        except ValueError:  # bfloat16 and its kin have no buffer format
            return tensor.numpy()

    def aval(self, array: Any) -> Aval:
        return Aval(tuple(array.shape), np.dtype(array.dtype.as_numpy_dtype))

    def export(self, array: Any) -> Any:
        return self.copy(array)

    def copy(self, array: Any) -> Any:
        # A later assignment to a variable leaves its value alone: TensorFlow copies a buffer that is shared.
        return array if type(array) is _EagerTensor else tf.convert_to_tensor(array)

    def cast(self, array: Any, dtype: np.dtype) -> Any:
        return tf.cast(array, tf.as_dtype(dtype))

    def add(self, a: Any, b: Any) -> Any:
        return tf.raw_ops.AddV2(x=a, y=b)

    def is_tracer(self, leaf: Any) -> bool:
        if isinstance(leaf, tf.Tensor):
            return type(leaf) is not _EagerTensor
        return type(leaf).__name__ == "KerasTensor"

    def vjp_of(self, f: Map, n: int) -> Map:
        def vjp(x: Arrays, c: Arrays) -> Arrays:
            with nested(sweeps=1):
                _, _, xb = _pull_back(f, x[:n], c, lambda y: x[n:])
            return tuple(xb)

        return vjp

    def jvp_of(self, f: Map, n: int) -> Map:
        # The transpose of the transpose: a ForwardAccumulator is no faster, and it returns zeros where a custom gradient
        # or a call of Python is in its way.
        def jvp(x: Arrays, c: Arrays) -> Arrays:
            with nested(sweeps=2), recording(watch_accessed_variables=False) as tape:

                def seeds(y: Arrays) -> list[Any]:
                    zeros = [tf.zeros_like(yk) for yk in y]
                    tape.watch(zeros)
                    return zeros

                y, u, xb = _pull_back(f, x[:n], c, seeds)
            dy = tape.gradient(xb, u, output_gradients=list(x[n:]), unconnected_gradients=_ZERO)
            return (*y, *_dense(dy))

        return jvp

    def hvp_of(self, f: Map, n: int, m: int) -> Map:
        # Second derivatives are symmetric: d(J^H yb) along dx is the gradient of <J^H yb, dx>. One sweep less than the
        # tangent of the adjoint takes.
        def hvp(x: Arrays, c: Arrays) -> Arrays:
            xb, pull_back, y = _recorded_adjoint(f, x[:n], x[n : n + m], c)
            return (*xb, *pull_back([*xb, *y], x[n + m :]))

        return hvp

    def vjp_tangent_of(self, f: Map, n: int, m: int) -> Map:
        def vjp_tangent(x: Arrays, c: Arrays) -> Arrays:
            xb, pull_back, _ = _recorded_adjoint(f, x[:n], c[:m], c[m:])
            return tuple(pull_back(xb, x[n:]))

        return vjp_tangent

    def batch_of(self, f: Map, batched: Sequence[bool]) -> Map:
        def mapped(x: Arrays, c: Arrays) -> Arrays:
            def one(entries: Sequence[Any]) -> Arrays:
                given = iter(entries)
                return f(tuple([next(given) if marked else a for a, marked in zip(x, batched, strict=True)]), c)

            return tuple(tf.vectorized_map(one, [a for a, marked in zip(x, batched, strict=True) if marked]))

        return mapped

    def compile(self, f: Map, avals: Sequence[Aval]) -> Map:
        programs: dict[Any, Callable[[Sequence[Any]], list[Any]]] = {}

        def call(x: Arrays, c: Arrays) -> Arrays:
            arrays = (*x, *c)
            if not tf.executing_eagerly():
                return _inlined(f, x, c)
            # The shapes belong to the key because TensorFlow folds them into the graph: a graph traced for 100 numbers
            # would take 3 and divide their mean by 100.
            key = tuple([(a._shape_tuple(), a.dtype) for a in arrays])
            program = programs.get(key)
            if program is None:
                program = programs[key] = _alone(_traced, f, len(x), arrays)
            return tuple(program(arrays))

        return call

    merges = True
    loops = True

    def loop(
        self,
        body: Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]],
        carry: Arrays,
        constants: Arrays,
        rows: Arrays,
        length: int,
        *,
        remake: bool = False,
    ) -> tuple[Arrays, Arrays]:
        return loop(body, carry, constants, rows, length)

    def kept_by_loops(self, memory: str) -> str | None:
        if memory == "sqrt":
            return None
        return "the states between groups of turns; few small turns run one after the other, without a loop"

    def value_and_vjp_of(self, f: Map, n: int, outs: Sequence[int]) -> Map:
        def value_and_vjp(x: Arrays, c: Arrays) -> Arrays:
            everything: list[Arrays] = []

            def chosen(x: Arrays, c: Arrays) -> Arrays:
                everything[:] = [f(x, c)]
                return tuple([everything[0][k] for k in outs])

            with nested(sweeps=1):
                _, _, xb = _pull_back(chosen, x[:n], c, lambda y: x[n:])
            return (*everything[0], *xb)

        return value_and_vjp

    def stop(self, array: Any) -> Any:
        return tf.stop_gradient(array)

    def build(self, f: Map, x: Arrays, c: Arrays, avals: Sequence[Aval], work: Work) -> Map:
        program = _traced(f, len(x), (*x, *c))
        return lambda x, c: tuple(program((*x, *c)))

    def work(self, f: Callable[[Arrays], Arrays], inputs: Sequence[Aval]) -> Work:
        graph = tf.Graph()
        with graph.as_default(), building():
            f(tuple([_LEGACY.placeholder(tf.as_dtype(a.dtype), a.shape) for a in inputs]))
        return Work(len(graph.get_operations()) - len(inputs), 0)

    def seconds(self, work: Work, order: int) -> float:
        # Measured for chains of small operations.
        return 0.1 + (3e-3 if order < 2 else 8e-3) * work.operations

    def outputs_of(self, f: Callable[[Arrays], Arrays], inputs: Sequence[Aval]) -> tuple[Aval, ...]:
        specs = [tf.TensorSpec(a.shape, tf.as_dtype(a.dtype)) for a in inputs]
        traced = tf.function(lambda *leaves: f(leaves), autograph=False).get_concrete_function(*specs)
        return tuple([Aval(tuple(y.shape), np.dtype(y.dtype.as_numpy_dtype)) for y in traced.structured_outputs])

    def function(self, name: str) -> Callable[..., Any] | None:
        return function_named(name)

    def parameters(self, model: Any) -> Any:
        """Return the values of a Keras model's trainable variables, in the order of ``model.trainable_variables``."""
        if not _is_keras(model):
            return None
        _check_keras(model)
        return _values(model.trainable_variables)


# Arrays in and out -------------------------------------------------------------------------------------------------------


def _from_numpy(array: np.ndarray) -> Any:
    flags = array.flags
    if (
        flags.c_contiguous
        and flags.writeable
        and array.dtype.isnative
        and array.dtype.kind in "iufcb"
        and _aligned(array)
    ):
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tf.constant(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape))


def _from_exporter(source: Any) -> Any:
    try:
        tensor = tf.experimental.dlpack.from_dlpack(source.__dlpack__())
    except (BufferError, tf.errors.InvalidArgumentError):
        return tf.convert_to_tensor(np.ascontiguousarray(np.from_dlpack(source)))
    on_host = source.__dlpack_device__()[0] == _DLPACK_CPU
    if on_host and tensor.dtype.as_numpy_dtype in _BUFFERED and not _aligned(view := np.asarray(memoryview(tensor))):
        return tf.convert_to_tensor(view)
    return tensor


def _aligned(array: np.ndarray) -> bool:
    """Whether TensorFlow's kernels can work on this memory; they end the process if not."""
    return array.__array_interface__["data"][0] % _ALIGNMENT == 0


# What maps are made of ---------------------------------------------------------------------------------------------------


def _pull_back(
    f: Map, x: Arrays, c: Arrays, seeds: Callable[[Arrays], Sequence[Any]]
) -> tuple[Arrays, Sequence[Any], list[Any]]:
    """Return outputs, seeds and gradients; the seeds are made when the outputs are known."""
    with recording() as tape:
        # Own tensors, since a tensor that is passed twice, or as a constant too, would add up what belongs to each.
        own = [tf.identity(xk) for xk in x]
        tape.watch(own)
        y = f(tuple(own), c)
    refuse_variables(tape.watched_variables())
    u = list(seeds(y))
    return y, u, _dense(tape.gradient(y, own, output_gradients=u, unconnected_gradients=_ZERO))


def _recorded_adjoint(
    f: Map, x: Arrays, yb: Arrays, c: Arrays
) -> tuple[list[Any], Callable[[Sequence[Any], Sequence[Any]], list[Any]], Arrays]:
    """Return the adjoint, what pulls cotangents of results back to ``x``, and the outputs."""
    with nested(sweeps=1), recording() as tape:
        own = tuple([tf.identity(xk) for xk in x])
        tape.watch(own)
        with nested(sweeps=1):
            y, _, xb = _pull_back(f, own, c, lambda y: yb)

    def pull_back(results: Sequence[Any], seeds: Sequence[Any]) -> list[Any]:
        return _dense(tape.gradient(results, own, output_gradients=list(seeds), unconnected_gradients=_ZERO))

    return xb, pull_back, y


def _dense(gradients: Sequence[Any]) -> list[Any]:
    """Gathers have gradients in indexed slices."""
    return [tf.convert_to_tensor(g) for g in gradients]


def _inlined(f: Map, x: Arrays, c: Arrays) -> Arrays:
    if not _LEGACY.get_default_graph().building_function:
        raise UnsupportedError(
            "A function overloaded for TensorFlow computes eagerly, but a tf.Graph is the default here. Call it outside of "
            "'with graph.as_default()', or run the graph with run_tensorflow_graph."
        )
    return f(x, c)


def _alone(f: Callable[..., Any], *args: Any) -> Any:
    """Call in a thread of its own: a ForwardAccumulator that is active around a trace makes its gradients wrong."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(f, *args).result()


def _traced(f: Map, n: int, arrays: Arrays) -> Callable[[Sequence[Any]], list[Any]]:
    """Trace a map and return a call of its graph."""

    def flat(*arrays: Any) -> Arrays:
        return f(arrays[:n], arrays[n:])

    with building() as depth:
        specs = [tf.TensorSpec(a.shape, a.dtype) for a in arrays]
        concrete = tf.function(flat, autograph=False).get_concrete_function(*specs)
    refuse_variables(concrete.graph.variables)
    definition = concrete.graph.as_graph_def()
    check_graph(definition.node, definition.library, depth[0])
    captured = concrete.captured_inputs
    dtypes = [y.dtype for y in concrete.outputs]
    config = _QUICKLY if len(definition.node) > _MANY else ""
    run = tf.raw_ops.StatefulPartitionedCall
    # ConcreteFunction.__call__ binds arguments and looks for tapes, which costs four times as much as this.
    return lambda arrays: run(args=[*arrays, *captured], Tout=dtypes, f=concrete, config_proto=config)


def _without_folding() -> bytes:
    config = _LEGACY.ConfigProto()
    config.graph_options.rewrite_options.constant_folding = 2  # RewriterConfig.OFF
    return config.SerializeToString()


# The time that folding constants takes at the first call grows with the square of the number of operations.
_MANY, _QUICKLY = 2000, _without_folding()


# Keras models ------------------------------------------------------------------------------------------------------------


def _is_keras(model: Any) -> bool:
    keras = sys.modules.get("keras")
    layer = getattr(keras, "Layer", None)
    return layer is not None and isinstance(model, layer)


def _check_keras(model: Any) -> None:
    keras = sys.modules["keras"]
    if not hasattr(model, "stateless_call"):
        raise UnsupportedError(
            f"Keras {keras.__version__} has no stateless_call. Install Keras 3: pip install 'keras>=3'."
        )
    backend = keras.config.backend()
    if backend != "tensorflow":
        raise UnsupportedError(
            f"The Keras model {model.name!r} computes with {backend}; overload_tensorflow needs Keras' TensorFlow backend. "
            f"Set KERAS_BACKEND=tensorflow, or overload model.stateless_call with overload_{backend}."
        )
    if not model.built:
        raise ArgumentValueError(
            f"The Keras model {model.name!r} has no parameters yet. Call it once, or model.build(input_shape)."
        )


def _values(variables: Sequence[Any]) -> list[Any]:
    return [tf.convert_to_tensor(v.value) for v in variables]


def _overloaded_model(model: Any, **options: Any) -> Callable[..., Any]:
    _check_keras(model)

    def stateless(params: Any, *args: Any, _state: Any, **kwargs: Any) -> Any:
        outputs, _, *losses = model.stateless_call(list(params), _state, *args, **kwargs)
        return (outputs, *losses) if losses else outputs

    overloaded = overload(stateless, engine=engine, **{"name": model.name, **options})

    def call(params: Any, *args: Any, **kwargs: Any) -> Any:
        expected = len(model.trainable_variables)
        if not isinstance(params, (list, tuple)) or len(params) != expected:
            given = f"{len(params)} of them" if isinstance(params, (list, tuple)) else type(params).__name__
            raise ArgumentTypeError(
                f"{model.name}: the first argument is the list of the model's {expected} trainable parameters, as "
                f"parameters(model) returns it; got {given}."
            )
        return overloaded(params, *args, _state=_values(model.non_trainable_variables), **kwargs)

    call.__name__ = overloaded.name
    return call


def overload_tensorflow(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Overload a TensorFlow function, or a Keras model, for values on the tape.

    The function is traced without AutoGraph: write ``tf.cond`` and ``tf.while_loop``, or decorate it with ``tf.function``.
    Called with symbolic tensors it just runs. A tensor that a ``tf.GradientTape`` watches looks like any other one: that
    tape does not see through an overloaded function; differentiate the plain function there.

    A Keras model becomes ``f(params, *args, **kwargs)`` with ``params`` as :func:`pyadjoint_utils.parameters` returns
    them. Its other state (running statistics, the seeds of dropout) is taken at every call, kept for replays and never
    changed, so that dropout draws the same numbers in every replay.

    Args:
        function: takes and returns tensors, in nested containers; or a model or layer of Keras 3; None to use as a
            decorator with options.
        **options: see :func:`pyadjoint_utils.overload`. With ``jit=False`` the function runs eagerly, and is not checked
            for random numbers, assignments and Python code.

    Returns:
        A function of arrays of any engine that returns :class:`pyadjoint_utils.ndarray` in the function's containers.

    Raises:
        CapturedValueError: the function reads a trainable variable that is not an argument.
        UnsupportedError: the function draws random numbers or assigns to variables; Keras with another backend.
        NotDifferentiableError: at the first derivative, where TensorFlow's would be wrong.

    Example:
        >>> import tensorflow as tf
        >>> from pyadjoint_utils import array, overload_tensorflow
        >>> norm = overload_tensorflow(lambda x: tf.reduce_sum(x * x))
        >>> float(norm(array([3.0, 4.0])))
        25.0
    """
    if function is None:
        return lambda f: overload_tensorflow(f, **options)
    if _is_keras(function):
        return _overloaded_model(function, **options)
    return overload(function, engine=engine, **options)


engine = TensorFlowEngine()

__all__ = [
    "TensorFlowEngine",
    "as_tensorflow",
    "engine",
    "get_params_feed_dict",
    "overload_tensorflow",
    "run_tensorflow_graph",
]
