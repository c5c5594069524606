"""What an ONNX file holds, and the PyTorch function that the converter onnx2fx makes of it."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx2fx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, inliner, numpy_helper

from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, UnsupportedError

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
# Inputs that PyTorch takes as numbers or as running statistics: nothing is differentiated by them.
_SETTINGS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4),
    "Dropout": (1,),
    "Pad": (2,),
    "Range": (0, 1, 2),
    "Resize": (1, 2),
    "Upsample": (1,),
}
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


class Port(NamedTuple):
    """An input of a model; a dimension that is free is None, and so is an unknown shape."""

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        dims = "..." if self.shape is None else ",".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype}[{dims}]"

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape fits."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(d in (None, n) for d, n in zip(self.shape, shape, strict=True))


def read(source: Any) -> ModelProto:
    """Read a model; a ModelProto is copied, functions of its own are expanded."""
    if not isinstance(source, (str, os.PathLike, ModelProto)):
        raise ArgumentTypeError(
            f"overload_onnx takes the path of an ONNX file or an onnx.ModelProto; got {type(source).__name__}."
        )
    try:
        model = _copy(source) if isinstance(source, ModelProto) else onnx.load(source)
    except FileNotFoundError as error:
        raise ArgumentValueError(f"There is no file {str(error.filename or source)!r}.") from error
    except Exception as error:  # protobuf's own
        raise ArgumentValueError(f"{os.fspath(source)!r} is no ONNX model. ({first_line(error)})") from error
    return inliner.inline_local_functions(model) if model.functions else model


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def inputs_of(model: ModelProto) -> tuple[Port, ...]:
    """The inputs that a caller gives; older models list their weights among them."""
    fixed = {t.name for t in model.graph.initializer}
    return tuple([_port(value) for value in model.graph.input if value.name not in fixed])


def _port(value: Any) -> Port:
    if not value.type.HasField("tensor_type"):
        raise UnsupportedError(
            f"The input {value.name!r} is a {value.type.WhichOneof('value')}; only tensors have an array to differentiate."
        )
    tensor = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return Port(value.name, dtype, tuple(dims) if tensor.HasField("shape") else None)


# What is differentiated ------------------------------------------------------------------------------------------------


def check_operators(model: ModelProto, name: str) -> None:
    """Refuse what the converter lacks, and what has no derivative that could be right."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for node in _nodes(model.graph):
        if not onnx2fx.is_supported(node.op_type, node.domain, versions.get(node.domain, 1)):
            raise UnsupportedError(
                f"{name}: the converter onnx2fx {onnx2fx.__version__} lacks the ONNX operator {_called(node)} of opset "
                f"{versions.get(node.domain, 1)}. Export the model without it, or teach it to the converter with "
                "onnx2fx.register_op."
            )
        if node.op_type in _RANDOM:
            raise UnsupportedError(
                f"{name}: the operator {_called(node)} draws random numbers, so that every replay would compute "
                "something else. Make what it draws an input of the model."
            )
        if node.op_type in ("BatchNormalization", "Dropout") and _trains(node):
            raise UnsupportedError(
                f"{name}: the operator {_called(node)} is in training mode, where a call changes the model. "
                "Export the model for inference."
            )
    origins = _origins(model.graph)
    fixed = {t.name for t in model.graph.initializer} | _constants(model.graph)
    for node in _nodes(model.graph):
        if node.op_type == "BatchNormalization":
            for k in _SETTINGS[node.op_type]:
                if origins.get(node.input[k], node.input[k]) not in fixed:
                    raise UnsupportedError(
                        f"{name}: the operator {_called(node)} computes with statistics that are no constants of the "
                        f"model ({node.input[k]!r}); PyTorch passes no derivative to them. Write the normalization out."
                    )


def _called(node: NodeProto) -> str:
    domain = f" of domain {node.domain!r}" if node.domain else ""
    return f"{node.op_type}{domain}" + (f" (node {node.name!r})" if node.name else "")


def _trains(node: NodeProto) -> bool:
    training = any(a.name == "training_mode" and a.i for a in node.attribute)
    return training or (node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2]))


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of the branches and loop bodies in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _origins(graph: GraphProto) -> dict[str, str]:
    """From the name of a value that is only another one's copy to that one; exporters share weights through Identity."""
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Identity":
            found[node.output[0]] = found.get(node.input[0], node.input[0])
    return found


def _constants(graph: GraphProto) -> set[str]:
    return {node.output[0] for node in graph.node if node.op_type == "Constant"}


def parameters_of(model: ModelProto) -> dict[str, np.ndarray]:
    """The initializers that the model can be differentiated by, by name."""
    origins = _origins(model.graph)
    settings = {
        origins.get(node.input[k], node.input[k])
        for node in _nodes(model.graph)
        for k in _SETTINGS.get(node.op_type, ())
        if k < len(node.input)
    }
    chosen = [t for t in model.graph.initializer if t.data_type in _FLOATS and t.name not in settings]
    return {t.name: np.array(numpy_helper.to_array(t)) for t in chosen}


def with_inputs(model: ModelProto, names: Sequence[str], *, defaults: bool) -> ModelProto:
    """A copy of a model that takes some of its initializers as inputs, which follow its own.

    Args:
        model: the model.
        names: the initializers.
        defaults: whether they keep their values, for calls that do not give them.
    """
    copy = _copy(model)
    graph, chosen = copy.graph, set(names)
    weights = {t.name: t for t in graph.initializer}
    own = [value for value in graph.input if value.name not in weights]
    more = [helper.make_tensor_value_info(n, weights[n].data_type, list(weights[n].dims)) for n in names]
    kept = [t for t in graph.initializer if defaults or t.name not in chosen]
    for field, items in ((graph.input, [*own, *more]), (graph.initializer, kept)):
        items = [type(item).FromString(item.SerializeToString()) for item in items]
        del field[:]
        field.extend(items)
    copy.ir_version = max(copy.ir_version, 4)  # before, an initializer could not be overridden
    return copy


def converted(model: ModelProto, names: Sequence[str], name: str) -> Callable[..., Any]:
    """Return the model as a PyTorch function of its inputs, followed by the named initializers."""
    try:
        module = onnx2fx.convert(with_inputs(model, names, defaults=False))
    except Exception as error:
        raise UnsupportedError(
            f"{name}: the converter onnx2fx {onnx2fx.__version__} fails on this model, so that it has no derivative. "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    return module.eval()


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
