"""ONNX: a model runs in onnxruntime and is differentiated as the PyTorch function that a converter makes of it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bridges.onnx_models import (
    Port,
    check_operators,
    converted,
    first_line,
    inputs_of,
    parameters_of,
    read,
    with_inputs,
)
from pyadjoint_utils.engine import Engine
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, UnsupportedError
from pyadjoint_utils.overloading import Overloaded
from pyadjoint_utils.registry import get_engine


class _Model:
    """A model as a function of PyTorch tensors: onnxruntime computes its value, the converted function its derivatives."""

    def __init__(self, source: Any, name: str | None) -> None:
        self.engine = get_engine("torch")
        self.proto = read(source)
        path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
        self.name = name = name or (Path(path).stem if path else self.proto.graph.name) or "model"
        # By its path, for the sake of weights that are in files beside it.
        self._session = _session(path or self.proto.SerializeToString(), name)
        self.inputs = inputs_of(self.proto)
        self.outputs = tuple([y.name for y in self._session.get_outputs()])
        check_operators(self.proto, name)
        self.parameters = parameters_of(self.proto)
        self.ports = {n: Port(n, value.dtype, value.shape) for n, value in self.parameters.items()}
        self._constants = {n: self.engine.enter(value) for n, value in self.parameters.items()}
        self._converted = converted(self.proto, list(self.parameters), name)
        self._open_session: Any = None
        self._compared: set[Any] = set()

    def run(self, *inputs: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Evaluate in onnxruntime; but tensors that are being differentiated go through the converted function."""
        given = {n: self._fitting(x, self.ports[n], "parameter") for n, x in (params or {}).items()}
        x = [self._fitting(x, port, "input") for x, port in zip(inputs, self.inputs, strict=True)]
        if any(map(self.engine.is_tracer, (*x, *given.values()))):
            y = self._differentiable(x, given)
        else:
            y = self._value(x, given)
        return y[0] if len(y) == 1 else y

    def _differentiable(self, x: Sequence[Any], given: Mapping[str, Any]) -> tuple[Any, ...]:
        y = self._converted(*x, *[given.get(n, constant) for n, constant in self._constants.items()])
        return (y,) if len(self.outputs) == 1 else tuple(y)

    def _value(self, x: Sequence[Any], given: Mapping[str, Any]) -> tuple[Any, ...]:
        to_numpy = self.engine.to_numpy
        feed = {port.name: to_numpy(t) for port, t in zip(self.inputs, x, strict=True)}
        feed |= {n: to_numpy(t) for n, t in given.items()}
        try:
            y = [np.asarray(a) for a in (self._with_inputs if given else self._session).run(None, feed)]
        except Exception as error:  # onnxruntime has a class for each of its status codes
            raise ArgumentValueError(f"{self.name}: onnxruntime refuses the inputs: {first_line(error)}") from error
        signature = tuple([a.shape for a in feed.values()])
        if signature not in self._compared:
            self._compare(y, [to_numpy(t) for t in self._differentiable(x, given)], feed)
            self._compared.add(signature)
        return tuple([self.engine.enter(a) for a in y])

    @property
    def _with_inputs(self) -> Any:
        """The session that takes weights; with the weights as constants, onnxruntime can fold and pack them."""
        if self._open_session is None:
            proto = with_inputs(self.proto, list(self.parameters), defaults=True)
            self._open_session = _session(proto.SerializeToString(), self.name)
        return self._open_session

    def _compare(self, y: Sequence[np.ndarray], other: Sequence[np.ndarray], feed: Mapping[str, np.ndarray]) -> None:
        """Refuse a conversion that computes something else: its derivative would belong to another function."""
        size = max([1.0, *[float(np.abs(a).max()) for a in feed.values() if a.dtype.kind == "f" and a.size]])
        for k, (a, b) in enumerate(zip(y, other, strict=True)):
            if not _agree(a, b, size):
                raise UnsupportedError(
                    f"{self.name}: onnxruntime and the PyTorch function that would be differentiated give another output "
                    f"{self.outputs[k]!r}: {_described(a)} and {_described(b)}. The derivative would belong to another "
                    "function. An operator of the model has no faithful conversion; onnx2fx.register_op can give one."
                )

    def _fitting(self, x: Any, port: Port, role: str) -> Any:
        """Return a number or a tensor as the tensor that the model takes; integers may become wider ones."""
        if isinstance(x, (bool, int, float)):
            x = self.engine.enter(np.asarray(x, port.dtype))
        if not isinstance(x, self.engine.array_types):
            raise ArgumentTypeError(
                f"{self.name}: the {role} {port.name!r} takes {port}; got {type(x).__name__}. Write array(x)."
            )
        shape, dtype = self.engine.aval(x)
        if not port.takes(shape):
            raise ArgumentValueError(
                f"{self.name}: the {role} {port.name!r} takes {port}; got {dtype}{list(shape)}. Reshape it first."
            )
        if dtype == port.dtype:
            return x
        if dtype.kind in "biu" and port.dtype.kind in "iu" and np.can_cast(dtype, port.dtype):
            return self.engine.cast(x, port.dtype)
        raise ArgumentTypeError(
            f"{self.name}: the {role} {port.name!r} takes {port}; got {dtype}{list(shape)}. "
            f"Write x.astype({port.dtype.name!r})."
        )


def _session(model: Any, name: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of weights that are inputs, which is meant
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArgumentValueError(
            f"{name}: onnxruntime {onnxruntime.__version__} cannot load this model: {first_line(error)}"
        ) from error


def _agree(a: np.ndarray, b: np.ndarray, size: float) -> bool:
    """Whether two results differ by no more than rounding, in the arithmetic of the outputs."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f":
        return np.array_equal(a, b)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    eps, a, b = np.finfo(a.dtype).eps, a[finite].astype(np.float64), b[finite].astype(np.float64)
    return not a.size or bool(np.abs(a - b).max() <= eps**0.5 * np.abs(a).max() + 100 * eps * size)


def _described(a: np.ndarray) -> str:
    text = np.array2string(a, precision=6, threshold=6, edgeitems=2).replace("\n", "")
    return f"{a.dtype}{list(a.shape)} {text}"


class OverloadedModel(Overloaded):
    """An ONNX model as an overloaded function ``f(*inputs, params=None)``.

    Attributes:
        inputs: the names of its inputs, in the order in which it takes them.
        outputs: the names of its outputs; one is returned as it is, several as a tuple.
    """

    def __init__(self, model: _Model, **options: Any) -> None:
        super().__init__(model.run, model.engine, name=model.name, **options)
        self.model = model
        self.inputs = tuple([port.name for port in model.inputs])
        self.outputs = model.outputs

    def __call__(self, *inputs: Any, params: Mapping[str, Any] | None = None, **named: Any) -> Any:
        return super().__call__(*self._ordered(inputs, named), params=None if params is None else self._known(params))

    def _ordered(self, inputs: Sequence[Any], named: dict[str, Any]) -> list[Any]:
        rest = self.inputs[len(inputs) :]
        if len(inputs) > len(self.inputs) or set(rest) != set(named):
            got = f"{len(inputs)} by position" + (f" and {', '.join(map(repr, named))} by name" if named else "")
            raise ArgumentTypeError(
                f"{self.name} takes {len(self.inputs)} input(s): {', '.join(self.inputs) or 'none'}; got {got}."
            )
        return [*inputs, *[named[name] for name in rest]]

    def _known(self, params: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(params, Mapping):
            raise ArgumentTypeError(
                f"{self.name}: params is a dict from the name of an initializer to its value, as parameters(f) returns; "
                f"got {type(params).__name__}."
            )
        unknown = sorted(set(params) - set(self.model.parameters))
        if unknown:
            raise ArgumentValueError(
                f"{self.name} has no parameter {unknown[0]!r}. It has: {', '.join(self.model.parameters) or 'none'}."
            )
        return dict(params)


class OnnxEngine(Engine):
    """Knows ONNX models; it has no arrays of its own, and PyTorch differentiates them."""

    name = "onnx"
    holds = "torch"

    def enter(self, source: Any, dtype: np.dtype | None = None) -> Any:
        raise UnsupportedError('ONNX overloads models and no functions: write overload_onnx("model.onnx").')

    def parameters(self, model: Any) -> Any:
        return model.model.parameters if isinstance(model, OverloadedModel) else None


engine = OnnxEngine()


def overload_onnx(model: Any, *, name: str | None = None, **options: Any) -> OverloadedModel:
    """Overload an ONNX model for values on the tape.

    onnxruntime computes the value. The converter onnx2fx makes a PyTorch function of the model, which is differentiated
    to any order by the inputs and by the initializers; at the first call with given shapes both must agree.

    Args:
        model: the path of an ONNX file, or an ``onnx.ModelProto``.
        name: what messages call it; the file's or the graph's name if None.
        **options: ``argnums`` (positions of inputs that pass a derivative; ``params`` passes none then), ``checkpoint``,
            ``pointwise`` and ``out_pointwise``, as for :func:`pyadjoint_utils.overload`.

    Returns:
        A function ``f(*inputs, params=None)`` of arrays of any engine; inputs can be given by name too. ``params`` replaces
        initializers, by name: ``parameters(f)`` returns those that can be. Results are held by PyTorch, one by itself and
        several as a tuple.

    Raises:
        ArgumentValueError: there is no such file, or it is no ONNX model.
        UnsupportedError: the model has an operator that cannot be converted, or none whose derivative could be right; at
            the first call, onnxruntime and the converted function do not agree.

    Example:
        >>> from onnx import TensorProto, helper
        >>> from pyadjoint_utils import array, overload_onnx
        >>> x, y = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, ["N"]) for n in "xy"]
        >>> graph = helper.make_graph([helper.make_node("Tanh", ["x"], ["y"])], "squash", [x], [y])
        >>> f = overload_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
        >>> f(array([0.0, 0.0])).tolist()
        [0.0, 0.0]
    """
    return OverloadedModel(_Model(model, name), **options)
