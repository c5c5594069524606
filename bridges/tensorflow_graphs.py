"""TensorFlow 1: graphs of ``tf.compat.v1``, run in a session and differentiated inside the graph.

The arrays are NumPy's. A map of this engine is built symbolically: its inputs are :class:`_Slot` objects, which learn the
tensors that they are fed through from whoever uses them, and its outputs are tensors. Eager mode is never switched off.
"""

import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from pyadjoint import AdjFloat
from pyadjoint.overloaded_type import OverloadedType

from bridges.tensorflow_checks import CONSUMING, RANDOM, building, check_graph, nested
from pyadjoint_utils.engine import Arrays, Aval, Map, NumPyArrays
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, RemovedOptionError, UnsupportedError
from pyadjoint_utils.overloading import Overloaded
from pyadjoint_utils.values import array, ndarray

_v1 = tf.compat.v1
# A graph must not grow in two threads at once.
_growing = threading.RLock()


class _Slot:
    """An input of a map that is being built: all tensors through which its value is fed."""

    __slots__ = ("tensors",)

    def __init__(self) -> None:
        self.tensors: tuple[Any, ...] = ()


class _Rows:
    """A map over a leading axis: a session runs once for each row."""

    def __init__(self, f: Map, batched: Sequence[bool]) -> None:
        self.map, self.batched = f, batched

    def __call__(self, x: Arrays, c: Arrays) -> Arrays:
        raise UnsupportedError("A batch of rows of a TensorFlow 1 graph cannot be differentiated again.")


class _Feed(NamedTuple):
    """A key of a feed dictionary: a variable has as many tensors as it is read."""

    name: str
    tensors: tuple[Any, ...]


class GraphEngine(NumPyArrays):
    """Maps inside one graph, run in one session."""

    name = "tensorflow graph"
    holds = "numpy"

    def __init__(self, session: Any, feeds: Sequence[_Feed]) -> None:
        self.session = session
        self.graph = session.graph
        self.feeds = feeds

    def is_tracer(self, leaf: Any) -> bool:
        return tf.is_symbolic_tensor(leaf)

    def vjp_of(self, f: Map, n: int) -> Map:
        def vjp(x: Arrays, c: Arrays) -> Arrays:
            with nested(sweeps=1):
                y = f(x[:n], c)
                seeds, xb = self._pull_back(y, x[:n])
            _bind(x[n:], seeds)
            return xb

        return vjp

    def jvp_of(self, f: Map, n: int) -> Map:
        def jvp(x: Arrays, c: Arrays) -> Arrays:
            with nested(sweeps=2):
                y = f(x[:n], c)
                seeds, xb = self._pull_back(y, x[:n])
                u = tuple([_Slot() for _ in seeds])
                _bind(u, seeds)
                # The transpose of the transpose; what the seeds of the first one are does not matter.
                tangents, dy = self._pull_back(xb, u)
            _bind(x[n:], tangents)
            return (*y, *dy)

        return jvp

    def batch_of(self, f: Map, batched: Sequence[bool]) -> Map:
        return _Rows(f, batched)

    def compile(self, f: Map, avals: Sequence[Aval]) -> Map:
        if isinstance(f, _Rows):
            return super().batch_of(self.compile(f.map, avals), f.batched)
        programs: list[Callable[[Arrays], Arrays]] = []

        def call(x: Arrays, c: Arrays) -> Arrays:
            if not programs:
                programs.append(self._built(f, len(x), len(c)))
            return programs[0]((*x, *c))

        return call

    def function(self, name: str) -> Callable[..., Any] | None:
        functions: dict[str, Callable[..., Any]] = {"getitem": operator.getitem, "stack": np.stack}
        return functions.get(name)

    def _built(self, f: Map, n: int, constants: int) -> Callable[[Arrays], Arrays]:
        slots = tuple([_Slot() for _ in range(n + constants)])
        with _growing, building() as depth, self.graph.as_default(), self.graph.control_dependencies(None):
            y = f(slots[:n], slots[n:])
        fed = [t for slot in slots for t in slot.tensors]
        operations = _ancestors(y, fed)
        check_graph([op.node_def for op in operations], _library(self.graph, operations), depth[0])
        run = self.session.make_callable(list(y), feed_list=fed)

        def program(arrays: Arrays) -> Arrays:
            values = [a for slot, a in zip(slots, arrays, strict=True) for _ in slot.tensors]
            return tuple([np.asarray(result) for result in run(*values)])

        return program

    def _pull_back(self, y: Sequence[Any], x: Sequence[_Slot]) -> tuple[Sequence[Any], Arrays]:
        """Return seeds and gradients: operations of the graph that are made once and found again by name."""
        kept = _kept(self.graph)
        fed = [t for feed in self.feeds for t in feed.tensors]
        key = tuple([tuple([t.name for t in tensors]) for tensors in (y, *[slot.tensors for slot in x], fed)])
        if key not in kept:
            seeds = tuple([_v1.placeholder_with_default(tf.zeros_like(t), t.shape) for t in y])
            kept[key] = seeds, self._gradients(y, x, seeds, fed)
        return kept[key]

    def _gradients(self, y: Sequence[Any], x: Sequence[_Slot], seeds: Sequence[Any], fed: Sequence[Any]) -> Arrays:
        tensors = [t for slot in x for t in slot.tensors]
        # A tensor that is fed depends on nothing, whatever the graph says.
        found = _v1.gradients(
            list(y),
            tensors,
            grad_ys=list(seeds),
            stop_gradients=[*fed, *tensors, *seeds],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        parts = iter([tf.convert_to_tensor(g) for g in found])
        return tuple([tf.add_n([next(parts) for _ in slot.tensors]) for slot in x])


def _bind(slots: Sequence[_Slot], tensors: Sequence[Any]) -> None:
    for slot, tensor in zip(slots, tensors, strict=True):
        slot.tensors = (tensor,)


def _kept(owner: Any) -> dict[Any, Any]:
    """What was prepared for a graph or a session, kept on it so that both can be freed together."""
    if not hasattr(owner, "_pyadjoint_utils"):
        owner._pyadjoint_utils = {}
    return owner._pyadjoint_utils


# Walking through a graph -------------------------------------------------------------------------------------------------


def _ancestors(tensors: Sequence[Any], fed: Sequence[Any] = ()) -> list[Any]:
    """Return the operations that run to compute some tensors when others are fed."""
    stop = {t.name for t in fed}
    waiting = [t.op for t in tensors if t.name not in stop]
    found: dict[str, Any] = {}
    while waiting:
        op = waiting.pop()
        if op.name not in found:
            found[op.name] = op
            waiting += [*op.control_inputs, *[t.op for t in op.inputs if t.name not in stop]]
    return list(found.values())


def _library(graph: Any, operations: Sequence[Any]) -> Any:
    calls = any(v.HasField("func") or v.list.func for op in operations for v in op.node_def.attr.values())
    return graph.as_graph_def().library if calls else _v1.GraphDef().library


def _reads(variable: Any, operations: Sequence[Any], graph: Any) -> tuple[Any, ...]:
    """Return the tensors through which some operations read a variable."""
    source = variable.op.outputs[0]
    readers = [op for op in operations if any(t is source for t in op.inputs)]
    for op in readers:
        if op.type not in ("Identity", "ReadVariableOp", "VariableShape", "VarIsInitializedOp"):
            raise UnsupportedError(
                f"The variable {variable.name!r} is in the feed dictionary, but {op.name!r} ({op.type}) reads it in a way "
                "that cannot be fed. Read it once, w = tf.identity(variable), and use w in the graph."
            )
    tensors = tuple([op.outputs[0] for op in readers if op.type in ("Identity", "ReadVariableOp")])
    return tensors or (_unread(variable, graph),)


def _unread(variable: Any, graph: Any) -> Any:
    """A stand-in for a variable that the outputs do not depend on."""
    kept, key = _kept(graph), ("unread", variable.name)
    if key not in kept:
        with _growing, graph.as_default():
            kept[key] = _v1.placeholder(variable.dtype.base_dtype, variable.shape)
    return kept[key]


# The calls ---------------------------------------------------------------------------------------------------------------


def run_tensorflow_graph(
    g_outputs: Any,
    feed_dict: Mapping[Any, Any],
    inputs_conversion: None = None,
    outputs_conversion: None = None,
    return_shapes: None = None,
    adj_inputs_conversion: None = None,
    adj_outputs_conversion: None = None,
    pointwise: bool | Sequence[bool] = (),
) -> Any:
    """Run tensors of a TensorFlow 1 graph in the default session, recorded.

    Taped floating and complex values are differentiated, to any order that TensorFlow has rules for. A fed variable keeps
    its value in the session; variables that are not fed have the session's values at every replay. What the graph draws at
    random, or takes from a queue or an iterator, is drawn once per call and kept for its replays.

    Args:
        g_outputs: a tensor of the graph, or nested tuples, lists and dicts of them.
        feed_dict: from placeholders, other tensors and variables (or ``variable.ref()``) to numbers, arrays of any
            engine or taped values. Values are cast to the tensor's dtype as far as that keeps their kind.
        inputs_conversion: None; with the three other conversions and return_shapes, CRIKit's and not needed any more.
        outputs_conversion: None.
        return_shapes: None.
        adj_inputs_conversion: None.
        adj_outputs_conversion: None.
        pointwise: whether each fed value has an axis of points, in the order of feed_dict, or a bool for all.

    Returns:
        :class:`pyadjoint_utils.ndarray` in the containers of g_outputs.

    Raises:
        ArgumentValueError: there is no default session, or a key, a shape or an output does not fit its graph.
        ArgumentTypeError: a key, a value or an output is nothing that a session takes.
        RemovedOptionError: a conversion was given.

    Example:
        >>> import tensorflow.compat.v1 as tf
        >>> from pyadjoint_utils import array, run_tensorflow_graph
        >>> graph = tf.Graph()
        >>> with graph.as_default():
        ...     x = tf.placeholder(tf.float64, (None,))
        ...     y = tf.reduce_sum(x * x)
        >>> with tf.Session(graph=graph).as_default():
        ...     float(run_tensorflow_graph(y, {x: array([3.0, 4.0])}))
        25.0
    """
    _refuse_conversions(
        inputs_conversion=inputs_conversion,
        outputs_conversion=outputs_conversion,
        return_shapes=return_shapes,
        adj_inputs_conversion=adj_inputs_conversion,
        adj_outputs_conversion=adj_outputs_conversion,
    )
    session = _session(None)
    engine = GraphEngine(session, ())
    outputs, structure = engine.flatten(g_outputs)
    outputs = [_element(y, session.graph, "output") for y in outputs]
    keys = [_key(key, session.graph) for key in feed_dict]
    calls = _kept(session)
    signature = (structure, tuple([y.name for y in outputs]), tuple([key.name for key in keys]), _hashable(pointwise))
    call = calls.get(signature)
    if call is None:
        call = calls[signature] = _Call(session, engine.unflatten(structure, outputs), outputs, keys, pointwise)
    return call(list(feed_dict.values()))


class _Call:
    """Outputs of a graph as a function of the values of some keys, in one session."""

    def __init__(self, session: Any, tree: Any, outputs: Sequence[Any], keys: Sequence[Any], pointwise: Any) -> None:
        self.session = session
        placeholders = [key for key in keys if not isinstance(key, tf.Variable)]
        operations = _ancestors(outputs, placeholders)
        given = [
            _Feed(key.name, _reads(key, operations, session.graph) if isinstance(key, tf.Variable) else (key,))
            for key in keys
        ]
        # What is drawn is fed like everything else, so that a replay and a derivative see the same numbers.
        self.given = given
        self.drawn = _drawn(_ancestors(outputs, [t for feed in given for t in feed.tensors]))
        feeds = [*given, *[_Feed(t.name, (t,)) for t in self.drawn]]
        engine = GraphEngine(session, feeds)

        def graph(*slots: _Slot) -> Any:
            for slot, feed in zip(slots, feeds, strict=True):
                slot.tensors = feed.tensors
            return tree

        name = "graph of " + ", ".join([y.name for y in outputs])
        if pointwise and not isinstance(pointwise, bool):
            # Of what is drawn nobody knows whether it belongs to points.
            pointwise = [*pointwise, *[False] * len(self.drawn)]
        self.run = Overloaded(graph, engine, name=name, pointwise=pointwise or False)

    def __call__(self, values: list[Any]) -> Any:
        values = [_value(value, feed) for value, feed in zip(values, self.given, strict=True)]
        if not self.drawn:
            return self.run(*values)
        plain = [v.numpy() if isinstance(v, ndarray) else np.asarray(v) for v in values]
        fed = {t: v for v, feed in zip(plain, self.given, strict=True) for t in feed.tensors}
        return self.run(*values, *[np.asarray(d) for d in self.session.run(self.drawn, fed)])


def _drawn(operations: Sequence[Any]) -> list[Any]:
    sources = [op for op in operations if op.type.startswith((*RANDOM, *CONSUMING)) and op.op_def.is_stateful]
    return [t for op in sources for t in op.outputs if t.dtype not in (tf.resource, tf.variant, tf.string)]


def _session(session: Any) -> Any:
    found = _v1.get_default_session() if session is None else session
    if found is None:
        raise ArgumentValueError(
            "There is no default session to run the graph in. Write: with sess.as_default(): run_tensorflow_graph(...)."
        )
    return found


def _element(item: Any, graph: Any, role: str) -> Any:
    """Return a tensor of the graph."""
    try:
        tensor = graph.as_graph_element(item, allow_tensor=True, allow_operation=False)
    except (TypeError, KeyError, ValueError) as error:
        kind = ArgumentTypeError if isinstance(error, TypeError) else ArgumentValueError
        raise kind(f"This {role} is no tensor of the default session's graph; got {item!r}: {error}") from error
    return tensor


def _key(key: Any, graph: Any) -> Any:
    """Return the tensor or the variable that a key of a feed dictionary means."""
    key = _variable(key.deref() if hasattr(key, "deref") else key)
    if not isinstance(key, tf.Variable):
        return _element(key, graph, "key of feed_dict")
    if key.op.graph is not graph:
        raise ArgumentValueError(
            f"The variable {key.name!r} in feed_dict belongs to another graph than the default session."
        )
    return key


def _variable(key: Any) -> Any:
    """Keras' variables hold one of TensorFlow's."""
    held = getattr(key, "value", None)
    return held if isinstance(held, tf.Variable) else key


def _value(value: Any, feed: _Feed) -> Any:
    """Check a value against its key; a taped one gets the dtype that it is fed with."""
    tensor = feed.tensors[0]
    dtype = np.dtype(tensor.dtype.base_dtype.as_numpy_dtype)
    if isinstance(value, AdjFloat):
        shape, given = (), np.dtype(np.float64)
    elif tf.is_symbolic_tensor(value) or isinstance(value, (str, bytes, type(None))):
        raise ArgumentTypeError(
            f"The value for {feed.name!r} in feed_dict is a number, an array or a taped value; got {type(value).__name__}."
        )
    else:
        if isinstance(value, OverloadedType) and not isinstance(value, ndarray):
            raise ArgumentTypeError(
                f"The value for {feed.name!r} is a {type(value).__name__}; convert it to an array first."
            )
        value = value if isinstance(value, ndarray) else array(value)._value
        shape, given = tuple(value.shape), _numpy_dtype(value)
    if not tensor.shape.is_compatible_with(shape):
        raise ArgumentValueError(
            f"The value for {feed.name!r} in feed_dict has the shape {shape}; it takes {tensor.shape}."
        )
    if not np.can_cast(given, dtype, "same_kind"):
        raise ArgumentTypeError(f"The value for {feed.name!r} in feed_dict has the dtype {given}; it takes {dtype}.")
    return value.astype(dtype) if isinstance(value, ndarray) and given != dtype and given.kind in "fc" else value


def _numpy_dtype(value: Any) -> np.dtype:
    return value.dtype if isinstance(value, ndarray) else ndarray(value).dtype


def _hashable(pointwise: Any) -> Any:
    return pointwise if isinstance(pointwise, bool) else tuple(pointwise)


def _refuse_conversions(**options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            remedy = {
                "return_shapes": "the shapes of the outputs are those that TensorFlow computes",
                "inputs_conversion": "arrays of every engine are fed as they are; convert others before the call",
                "outputs_conversion": "convert what the call returns",
            }.get(name, "derivatives come back in the type of the value that they belong to")
            raise RemovedOptionError(f"run_tensorflow_graph has no option {name}= any more: {remedy}.")


def get_params_feed_dict(sess: Any = None, variables: Sequence[Any] | None = None) -> dict[Any, ndarray]:
    """Return the present values of a session's variables, to feed and to differentiate by.

    Args:
        sess: the session; None for the default one.
        variables: the variables; None for all trainable ones of the session's graph.

    Returns:
        A dict from ``variable.ref()`` (TensorFlow 2 does not let variables themselves be keys) to copies of the values,
        which can be merged into a feed dictionary.

    Raises:
        ArgumentValueError: there is no session.

    Example:
        >>> import tensorflow.compat.v1 as tf
        >>> from pyadjoint_utils import get_params_feed_dict
        >>> graph = tf.Graph()
        >>> with graph.as_default():
        ...     w = tf.Variable([1.0, 2.0])
        ...     initialize = tf.global_variables_initializer()
        >>> sess = tf.Session(graph=graph)
        >>> sess.run(initialize)
        >>> get_params_feed_dict(sess)[w.ref()].shape
        (2,)
    """
    session = _session(sess)
    if variables is None:
        variables = session.graph.get_collection(_v1.GraphKeys.TRAINABLE_VARIABLES)
    found = [_variable(v) for v in variables]
    return {v.ref(): array(value) for v, value in zip(found, session.run(found), strict=True)}
