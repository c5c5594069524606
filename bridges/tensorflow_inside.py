"""Tapes inside TensorFlow: a reduced function as a function of tensors or as a Keras layer."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

from pyadjoint_utils.engine import Engine
from pyadjoint_utils.errors import ArgumentTypeError, PyadjointUtilsError, UnsupportedError
from pyadjoint_utils.evaluation import Evaluation
from pyadjoint_utils.inside.called import Inside
from pyadjoint_utils.inside.host_function import HostFunction
from pyadjoint_utils.registry import FEW, get_engine, on_host

Tensors = Sequence[Any]

_WEIGHTS = "Save model.save_weights(path)"
_is_watched = record.pywrap_tfe.TFE_Py_TapeSetPossibleGradientTypes  # by a tape or an accumulator


def _refusing(f: Callable[..., Any]) -> Callable[..., Any]:
    """Keep AutoGraph out of a function, and let this project's errors leave it as they are and not as another class."""
    plain = tf.autograph.experimental.do_not_convert(f)

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return plain(*args, **kwargs)
        except PyadjointUtilsError as error:
            error.__dict__.pop("ag_error_metadata", None)
            error.ag_pass_through = True  # type: ignore[attr-defined]
            raise

    return call


# One function from outside -----------------------------------------------------------------------------------------------


def call(at: Evaluation, x: Tensors) -> list[Any]:
    """Call a host function on tensors, eagerly or in a graph, with derivatives that are called in the same way."""
    return _eagerly(at, x) if tf.executing_eagerly() else _in_graph(at.function, x)


def _first(function: HostFunction, x: Tensors) -> list[Any]:
    return call(Evaluation(function), x)


def _eagerly(at: Evaluation, x: Tensors) -> list[Any]:
    engine = get_engine("tensorflow")
    # Aliases, which no tape and no accumulator watches.
    y = at([_alias(engine, a) for a in x], engine)
    # Tensors of their own, since a tape tells them apart by their ids.
    results = [tf.raw_ops.Identity(input=a) for a in y]
    # Nobody can ask for the gradient by what nobody watches now.
    active = tuple([i for i in at.function.active if _is_watched([x[i]])])
    # As tf.custom_gradient does, which takes as long again for containers and signatures.
    record.record_operation(at.function.name, results, list(x), lambda *yb: _gradient(at, x, yb, active))
    return results


def _alias(engine: Engine, x: Any) -> Any:
    # Engines take few numbers from NumPy in less time than from TensorFlow.
    return engine.to_numpy(x) if on_host(x) and x.shape.num_elements() <= FEW else engine.enter(engine.export(x))


@_refusing
def _gradient(at: Evaluation, x: Tensors, yb: Tensors, active: tuple[int, ...]) -> list[Any]:
    outs = tuple([k for k in at.function.differentiable if yb[k] is not None])
    xb: list[Any] = [None] * len(x)
    if active and outs:
        seeds = [tf.convert_to_tensor(yb[k]) for k in outs]
        for i, b in zip(active, call(at.adjoint(active, outs), [*x, *seeds]), strict=True):
            xb[i] = b
    return xb


def _in_graph(function: HostFunction, x: Tensors) -> list[Any]:
    # A gradient may refer to tensors of the graph that it was made in alone. TensorFlow takes as long to make a custom
    # gradient as to call it.
    y = function.once("tensorflow", lambda: _with_gradient(function))(*[tf.identity(a) for a in x])
    return list(y) if len(function.outputs) > 1 else [y]


def _with_gradient(function: HostFunction) -> Callable[..., Any]:
    @tf.custom_gradient
    def apply(*x: Any) -> Any:
        y = _called_back(function, x)
        return (y if len(y) > 1 else y[0]), lambda *yb: _gradient(Evaluation(function), x, yb, function.active)

    return apply


def _called_back(function: HostFunction, x: Tensors) -> list[Any]:
    """A call of Python in a graph."""
    _refuse_forward_mode(x)
    _refuse_xla()
    y = tf.numpy_function(
        lambda *arrays: [np.asarray(y) for y in function(arrays)],
        list(x),
        [tf.as_dtype(aval.dtype) for aval in function.outputs],
        stateful=False,
        name="tape",
    )
    for tensor, aval in zip(y, function.outputs, strict=True):
        tensor.set_shape(aval.shape)
    # What tf.vectorized_map and GradientTape.jacobian do with the node.
    y[0].op.pfor_converter = functools.partial(_batch, function)
    return list(y)


def _batch(function: HostFunction, node: Any) -> list[Any]:
    """The whole batch in one call, where its size is known; else TensorFlow loops."""
    size = next((wrapped.t.shape[0] for wrapped in node.inputs if wrapped.is_stacked), None)
    if size is None:
        # TensorFlow's own way to ask for a loop, in the module of the node's class.
        raise sys.modules[type(node).__module__].ConversionNotImplementedError(f"unknown batch size of {function.name}")
    marks = tuple([wrapped.is_stacked for wrapped in node.inputs])
    y = call(Evaluation(function.batched(marks, size)), [wrapped.t for wrapped in node.inputs])
    return [type(node.inputs[0])(tensor, True, False) for tensor in y]


def _refuse_forward_mode(x: Tensors) -> None:
    try:
        for a in x:
            # An operation without any gradient, which an accumulator that watches the tensor stumbles over.
            tf.raw_ops.Snapshot(input=a)
    except LookupError:
        raise UnsupportedError(
            "A tf.autodiff.ForwardAccumulator inside a tf.function does not see through a call of Python: TensorFlow would "
            "take the derivative of the tape for zero. Put the accumulator outside of the tf.function (tape.jacobian "
            "makes one, unless experimental_use_pfor=False), or use a tf.GradientTape."
        ) from None


def _refuse_xla() -> None:
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        if context is not None and context.IsXLAContext():
            raise UnsupportedError(
                "XLA cannot compile a tape with steps outside of TensorFlow, since these are calls of Python. Leave out "
                "jit_compile=True, or call the tape outside of the compiled function."
            )
        graph = getattr(graph, "outer_graph", None)


# A reduced function ------------------------------------------------------------------------------------------------------


class TapeFunction:
    """A reduced function as a function of tensors; made by :func:`as_tensorflow`."""

    def __init__(self, rf: Any) -> None:
        self.inside = Inside(rf, get_engine("tensorflow"), "tf.vectorized_map")

    @_refusing
    def __call__(self, values: Any, inputs: Any = None) -> Any:
        return self.evaluate(self.inside.values(values, inputs))

    def evaluate(self, values: Sequence[Any]) -> Any:
        """Return the outputs at one value per argument."""
        return (self._eagerly if tf.executing_eagerly() else self._in_graph)(values)

    def __copy__(self) -> "TapeFunction":
        return self  # it has no state

    def __deepcopy__(self, memo: Any) -> "TapeFunction":
        return self

    def __reduce__(self) -> Any:
        raise self.inside.unsaved()

    def _eagerly(self, values: Sequence[Any]) -> Any:
        # The tape's own traced programs are faster than TensorFlow's steps one by one, and right where its nested
        # forward mode is not.
        return self.inside.delist(self.inside.replay(self._tensors(values), _first, whole=True))

    def _in_graph(self, values: Sequence[Any]) -> Any:
        x = self._tensors(values)
        _refuse_forward_mode(x)
        return self.inside.delist(self.inside.replay(x, _first))

    def _tensors(self, values: Sequence[Any]) -> list[Any]:
        return [self._tensor(k, value) for k, value in enumerate(values)]

    def _tensor(self, k: int, value: Any) -> Any:
        inside = self.inside
        tensor = value if isinstance(value, tf.Tensor) else self._converted(k, value)
        dtype, wanted = tensor.dtype.as_numpy_dtype, inside.arguments[k]
        if tensor.shape.is_fully_defined() or not tensor.shape.is_compatible_with(wanted.shape):
            inside.check(k, tuple(tensor.shape), dtype)
            return tensor
        inside.check(k, wanted.shape, dtype)
        return tf.ensure_shape(tensor, wanted.shape)

    def _converted(self, k: int, value: Any) -> Any:
        if isinstance(value, (tf.Variable, np.ndarray, np.generic)):
            return tf.convert_to_tensor(value)
        if type(value) in (bool, int, float, complex):
            return tf.convert_to_tensor(np.asarray(value, self.inside.arguments[k].dtype))
        raise ArgumentTypeError(
            f"{self.inside.names[k]} must be a tf.Tensor, a tf.Variable, a NumPy array or a number; got "
            f"{type(value).__name__}. A value of the tape goes to the reduced function itself."
        )


@functools.cache  # Keras is slow to import, and not every installation has it
def _layer_class() -> type:
    class TapeLayer(tf.keras.layers.Layer):
        """A reduced function as a layer, with some of its controls as weights; made by :func:`as_tensorflow`."""

        def __init__(self, function: TapeFunction, parameters: Mapping[str, int], **options: Any) -> None:
            super().__init__(**{"name": "tape", "autocast": False, **options})
            self.supports_jit = False
            self._function, self._weights_of = function, {}
            inside = function.inside
            for name, k in parameters.items():
                start = inside.engine.to_numpy(inside.recorded[k])
                self._weights_of[k] = self.add_weight(
                    name=name,
                    shape=start.shape,
                    dtype=start.dtype.name,
                    initializer=lambda shape, dtype, start=start: tf.convert_to_tensor(start),
                )

        @_refusing
        def call(self, *values: Any, inputs: Any = None) -> Any:
            """Return the outputs at the weights and at one value for each of the other controls."""
            own = {k: tf.convert_to_tensor(weight) for k, weight in self._weights_of.items()}
            return self._function.evaluate(self._function.inside.values_beside(own, values, inputs))

        def get_config(self) -> Any:
            """Refuse: Keras asks for it where it saves or clones a layer."""
            raise self._function.inside.unsaved(_WEIGHTS)

        def _trackable_children(self, save_type: str = "checkpoint", **options: Any) -> Any:
            if save_type == "savedmodel":
                raise self._function.inside.unsaved(_WEIGHTS)
            return super()._trackable_children(save_type, **options)

    return TapeLayer


def as_tensorflow(rf: Any, *, parameters: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Return a reduced function as a function of TensorFlow, which TensorFlow differentiates.

    Eagerly, gradient tapes nest to any depth and ``tf.autodiff.ForwardAccumulator`` works. In a ``tf.function``, steps of
    TensorFlow are a part of its graph and the others are calls of Python; reverse mode works inside and outside of it,
    forward mode outside. ``GradientTape.jacobian`` and ``tf.vectorized_map`` do a batch in one call where its size is
    known while tracing. The function is a snapshot: evaluations elsewhere and clearing the tape do not change it, and
    each call is differentiated at its own point.

    Args:
        rf: a :class:`ReducedFunction` or :class:`ReducedFunctional`; its callbacks are not called.
        parameters: names for controls that become the weights of a Keras layer, as ``{"theta": control}``, and start at
            the values of the last evaluation; None for a function.
        **options: of the layer (``name``, ``trainable``).

    Returns:
        ``f(values, inputs=None)`` with the signature and the lists of ``rf``; or a layer that is called with the other
        controls' values one by one, ``layer(*values, inputs=None)``. Values are tensors or variables (or NumPy arrays, or
        numbers) of the recorded shapes and dtypes.

    Raises:
        ArgumentTypeError: something else than a reduced function; a control that is no array.
        ArgumentValueError: ``parameters`` names something else than controls, one control twice, or has a name that a
            layer cannot take.
        NotDifferentiableError: an output has no derivative.
        StaleTapeError: the tape was cleared.

    Example:
        >>> import tensorflow as tf
        >>> from pyadjoint_utils import Control, ReducedFunction, array, as_tensorflow
        >>> x = array([1.0, 2.0])
        >>> f = as_tensorflow(ReducedFunction((x * x).sum(), Control(x)))
        >>> v = tf.Variable([3.0, 4.0], dtype=tf.float64)
        >>> with tf.GradientTape() as tape:
        ...     y = f(v)
        >>> tape.gradient(y, v).numpy().tolist()
        [6.0, 8.0]
    """
    function = TapeFunction(rf)
    if parameters is None:
        return function
    return _layer_class()(function, function.inside.places(parameters), **options)
