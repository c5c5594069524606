"""A Pyadjoint tape whose Blocks delegate their derivatives to JAX, TensorFlow, PyTorch or autograd."""

import importlib
from typing import Any

from pyadjoint import (
    AdjFloat,
    Block,
    OverloadedType,
    continue_annotation,
    create_overloaded_object,
    get_working_tape,
    no_annotations,
    pause_annotation,
    stop_annotating,
)

from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.black_boxes.black_box import overload_numpy
from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.callbacks import Callback, CallbackCombiner, FileLoggerCallback, Iteration
from pyadjoint_utils.control import Control
from pyadjoint_utils.conversion import to_adjfloat, to_jax, to_numpy, to_tensorflow, to_torch
from pyadjoint_utils.drivers import (
    compute_gradient,
    compute_hessian_action,
    compute_jacobian_action,
    compute_jacobian_matrix,
)
from pyadjoint_utils.engine import Aval, Engine
from pyadjoint_utils.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    CapturedValueError,
    ImmutableError,
    MissingEngineError,
    NotDifferentiableError,
    NotLinearError,
    PyadjointUtilsError,
    RemovedOptionError,
    ScheduleError,
    SnapshotError,
    StaleTapeError,
    UnsupportedError,
)
from pyadjoint_utils.flat import ReducedFunctionNumPy
from pyadjoint_utils.functional import ReducedFunctional
from pyadjoint_utils.models import parameters
from pyadjoint_utils.numpy_functions import install_on_adjfloat
from pyadjoint_utils.optimization import NotConvergedWarning, minimize
from pyadjoint_utils.overloading import overload
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.registry import engine_names, get_engine, register_engine
from pyadjoint_utils.stop import stop_gradient
from pyadjoint_utils.tapes import Tape, push_tape, set_working_tape
from pyadjoint_utils.taylor import taylor_test, taylor_to_dict
from pyadjoint_utils.transforming.custom_rules import custom_jvp, custom_vjp
from pyadjoint_utils.transforming.gradients import grad, value_and_grad
from pyadjoint_utils.transforming.matrices import hessian, jacfwd, jacrev
from pyadjoint_utils.transforming.transformations import cvjp, hvp, jvp, linear_adjoint, linearize, vjp
from pyadjoint_utils.values import array, asarray, ndarray
from pyadjoint_utils.verification import Verification, verify

# Names that live in a bridge, and the engine that brings them; they are loaded at their first use.
_IN_BRIDGES = {
    "overload_jax": "jax",
    "as_jax": "jax",
    "overload_tensorflow": "tensorflow",
    "run_tensorflow_graph": "tensorflow",
    "get_params_feed_dict": "tensorflow",
    "overload_torch": "torch",
    "as_torch": "torch",
    "as_tensorflow": "tensorflow",
    "overload_autograd": "autograd",
    "as_autograd": "autograd",
    "overload_onnx": "onnx",
    "point_map": "autograd",
}

# A star import loads no engine, so the bridges' names are not in here.
__all__ = [
    "AdjFloat",
    "ArgumentTypeError",
    "ArgumentValueError",
    "Aval",
    "Block",
    "Callback",
    "CallbackCombiner",
    "CapturedValueError",
    "Control",
    "Engine",
    "EngineBlock",
    "FileLoggerCallback",
    "ImmutableError",
    "Iteration",
    "MissingEngineError",
    "NotConvergedWarning",
    "NotDifferentiableError",
    "NotLinearError",
    "OverloadedType",
    "PyadjointUtilsError",
    "ReducedFunction",
    "ReducedFunctionNumPy",
    "ReducedFunctional",
    "RemovedOptionError",
    "ScheduleError",
    "SnapshotError",
    "StaleTapeError",
    "Tape",
    "UnsupportedError",
    "Verification",
    "annotate_tape",
    "array",
    "asarray",
    "compute_gradient",
    "compute_hessian_action",
    "compute_jacobian_action",
    "compute_jacobian_matrix",
    "continue_annotation",
    "create_overloaded_object",
    "custom_jvp",
    "custom_vjp",
    "cvjp",
    "engine_names",
    "get_engine",
    "get_working_tape",
    "grad",
    "hessian",
    "hvp",
    "jacfwd",
    "jacrev",
    "jvp",
    "linear_adjoint",
    "linearize",
    "minimize",
    "ndarray",
    "no_annotations",
    "overload",
    "overload_numpy",
    "parameters",
    "pause_annotation",
    "push_tape",
    "register_engine",
    "set_working_tape",
    "stop_annotating",
    "stop_gradient",
    "taylor_test",
    "taylor_to_dict",
    "to_adjfloat",
    "to_jax",
    "to_numpy",
    "to_tensorflow",
    "to_torch",
    "value_and_grad",
    "verify",
    "vjp",
]


def __getattr__(name: str) -> Any:
    if name in ("set_default_dtype", "get_default_dtype"):
        return getattr(importlib.import_module("pyadjoint_utils.jax_adjoint"), name)
    engine = _IN_BRIDGES.get(name)
    if engine is None:
        raise AttributeError(f"module 'pyadjoint_utils' has no attribute {name!r}")
    bridge = importlib.import_module(type(get_engine(engine)).__module__)
    value = globals()[name] = getattr(bridge, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_IN_BRIDGES})


# The documented examples rely on it: whoever imports this project can record at once.
if get_working_tape() is None:
    set_working_tape(Tape())
    continue_annotation()
install_on_adjfloat()
