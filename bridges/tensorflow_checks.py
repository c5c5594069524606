"""What TensorFlow would compute wrongly without a word, or differently at the next run: found in a graph, and refused."""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from pyadjoint_utils.errors import CapturedValueError, NotDifferentiableError, UnsupportedError

RANDOM = ("Random", "Parameterized", "TruncatedNormal", "Multinomial", "Rng", "StatefulRandom", "StatefulStandard",
          "StatefulTruncated", "StatefulUniform")  # fmt: skip
CONSUMING = ("Iterator", "Queue")
_WRITING = ("Assign", "ResourceApply", "ResourceScatter", "ResourceSparseApply")
_PURE = {"RandomGammaGrad"}
# TensorFlow takes these for constants (for py_function: its gradient).
_OPAQUE = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "HSVToRGB", "ExtractGlimpse", "DrawBoundingBoxes",
           "TensorListConcatLists", "XlaVariadicReduce"}  # fmt: skip
# Gradients that TensorFlow takes for constants in turn: right for a VJP, lost in everything else.
_OPAQUE_GRADIENTS = {"ResizeBilinearGrad", "FakeQuantWithMinMaxArgsGradient", "FakeQuantWithMinMaxVarsGradient",
                     "FakeQuantWithMinMaxVarsPerChannelGradient", "SparseAddGrad"}  # fmt: skip
# Rules that forget a conjugation, or a part of the derivative.
_WRONG_IF_COMPLEX = {"Cumprod", "EuclideanNorm", "LogMatrixDeterminant", "MatrixDeterminant", "MatrixSquareRoot",
                     "MulNoNan", "Prod", "SquaredDifference", "Svd", "TridiagonalSolve", "UnsortedSegmentProd", "Xdivy",
                     "Xlog1py", "Xlogy"}  # fmt: skip
# Rules that divide by the factors, and are wrong where one is zero: of this order of differentiation and above.
_WRONG_AT_ZERO = {"Cumprod": 1, "Prod": 2}
# Inputs that these take for constants.
_LOST_INPUTS = {
    "Betainc": (0, 1),
    "Zeta": (0,),
    "Polygamma": (0,),
    "Range": (0, 2),
    "LinSpace": (0, 1),
    "OneHot": (2, 3),
}
_CONSTANT = {"Const", "OnesLike", "Rank", "Shape", "Size", "StopGradient", "ZerosLike"}
_REAL = {
    tf.float16.as_datatype_enum,
    tf.bfloat16.as_datatype_enum,
    tf.float32.as_datatype_enum,
    tf.float64.as_datatype_enum,
}
_COMPLEX = {tf.complex64.as_datatype_enum, tf.complex128.as_datatype_enum}


# How much is differentiated ----------------------------------------------------------------------------------------------


class Depth(NamedTuple):
    """Of a map: its order of differentiation, and how many sweeps of reverse mode are nested in it."""

    order: int
    sweeps: int


class _Nesting(threading.local):
    def __init__(self) -> None:
        self.order = self.sweeps = 0
        self.deepest = [Depth(0, 0)]


_nesting = _Nesting()


@contextlib.contextmanager
def nested(sweeps: int) -> Iterator[None]:
    """Run one more derivative, made of so many sweeps."""
    _nesting.order += 1
    _nesting.sweeps += sweeps
    order, deepest = _nesting.deepest[-1]
    _nesting.deepest[-1] = Depth(max(order, _nesting.order), max(deepest, _nesting.sweeps))
    try:
        yield
    finally:
        _nesting.order -= 1
        _nesting.sweeps -= sweeps


@contextlib.contextmanager
def building() -> Iterator[list[Depth]]:
    """Build a graph; the list's only item is then the depth of what was built."""
    before = _nesting.order, _nesting.sweeps
    _nesting.order = _nesting.sweeps = 0
    _nesting.deepest.append(Depth(0, 0))
    depth = [Depth(0, 0)]
    try:
        yield depth
        depth[0] = _nesting.deepest[-1]
    except LookupError as error:
        if "radient" not in str(error):
            raise
        raise NotDifferentiableError(f"TensorFlow lacks a derivative of some order that this needs: {error}") from error
    finally:
        _nesting.deepest.pop()
        _nesting.order, _nesting.sweeps = before


# What is refused ---------------------------------------------------------------------------------------------------------


def check_graph(nodes: Iterable[Any], library: Any, depth: Depth) -> None:
    """Raise if a graph cannot be replayed, or if its derivative would be wrong.

    Args:
        nodes: definitions of the operations that are run.
        library: definitions of the functions that they may call.
        depth: what was differentiated to build the graph.
    """
    functions = {function.signature.name: function for function in library.function}
    scopes, seen = [list(nodes)], set()
    while scopes:
        scope = {node.name: node for node in scopes.pop()}
        for node in scope.values():
            _check_state(node)
            if depth.order:
                _check_derivative(node, scope, depth)
            for name in _called(node):
                if name in functions and name not in seen:
                    seen.add(name)
                    scopes.append(functions[name].node_def)


def _called(node: Any) -> Iterator[str]:
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        for function in value.list.func:
            yield function.name


def _check_state(node: Any) -> None:
    if node.op.startswith((*RANDOM, *CONSUMING)) and node.op not in _PURE:
        raise UnsupportedError(
            f"The operation {node.name!r} ({node.op}) draws other numbers at every run, so that a replay would compute "
            "something else. Use tf.random.stateless_* with a seed that is an argument, pass the numbers themselves, or, "
            "for a Keras model, overload_tensorflow(model)."
        )
    if node.op.startswith(_WRITING):
        raise UnsupportedError(
            f"The operation {node.name!r} ({node.op}) changes a variable, and so would every replay. Pass the state as an "
            "argument and return the new one, or, for a Keras model, use overload_tensorflow(model)."
        )


def _check_derivative(node: Any, scope: dict[str, Any], depth: Depth) -> None:
    if node.op in _OPAQUE or (node.op in _OPAQUE_GRADIENTS and depth.sweeps > 1):
        raise NotDifferentiableError(
            f"TensorFlow takes the result of {node.op} ({node.name!r}) for a constant, so that a derivative would be lost. "
            "Write it with other operations; NumPy code is a function of its own for overload_numpy."
        )
    if node.op in _WRONG_IF_COMPLEX and node.attr["T"].type in _COMPLEX:
        raise NotDifferentiableError(
            f"TensorFlow's derivatives of {node.op} ({node.name!r}) are wrong for complex numbers. Write it with products "
            "and sums, or use another engine for it."
        )
    if _divides_by_factors(node, scope, depth):
        raise NotDifferentiableError(
            f"TensorFlow's derivatives of {node.op} ({node.name!r}) are wrong where a factor is zero, those of order "
            f"{_WRONG_AT_ZERO[node.op]} and above. Use np.prod or np.cumprod on the values, or write it with products."
        )
    if depth.order > 1 and node.op == "StopGradient" and "moments" in node.name:
        raise NotDifferentiableError(
            "tf.nn.moments stops a gradient that vanishes at first order only, so that its second derivatives are wrong "
            "(Keras' normalization layers call it while training). Use tf.math.reduce_mean and tf.math.reduce_variance."
        )
    types = [node.attr[key].type for key in ("T", "Tidx")]
    if node.op in _LOST_INPUTS and any(t in _REAL or t in _COMPLEX for t in types):
        for k in _LOST_INPUTS[node.op]:
            if not _is_constant(node.input[k], scope):
                raise NotDifferentiableError(
                    f"TensorFlow takes input {k} of {node.op} ({node.name!r}) for a constant: a derivative would be "
                    "lost. Make it a Python number or a NumPy array."
                )


def _divides_by_factors(node: Any, scope: dict[str, Any], depth: Depth) -> bool:
    if depth.order < _WRONG_AT_ZERO.get(node.op, depth.order + 1) or node.attr["T"].type not in _REAL:
        return False
    # The gradient of Prod has a Cumprod of its own.
    return "gradient_tape" not in node.name and not _is_constant(node.input[0], scope)


def _is_constant(name: str, scope: dict[str, Any]) -> bool:
    node = scope.get(name.partition(":")[0])
    if node is None or node.op in ("Placeholder", "PlaceholderWithDefault", "ReadVariableOp"):
        return False
    return node.op in _CONSTANT or all(_is_constant(i, scope) for i in node.input if not i.startswith("^"))


def refuse_variables(variables: Iterable[Any]) -> None:
    """Raise if one of the variables that a function reads is trainable."""
    for variable in variables:
        if variable.trainable:
            raise CapturedValueError(
                f"An overloaded function reads the variable {variable.name!r} {variable.shape}, which is not an argument: "
                "it would pass no derivative, and a replay would see its later values. Pass array(variable) as an "
                "argument; for a Keras model write f = overload_tensorflow(model), f(parameters(model), x). A variable "
                "with trainable=False may be read; it is taken to be constant."
            )
