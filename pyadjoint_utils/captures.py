"""Taped values that a function or an argument holds where no engine looks for them."""

import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.errors import CapturedValueError
from pyadjoint_utils.registry import owner_of


def captured(item: Any) -> Iterator[tuple[str, Any]]:
    """Return the taped values in the reach of a function or an object, each with the path to it."""
    return _captured(item, "", set(), 0)


def check_captures(function: Callable[..., Any], name: str) -> None:
    """Raise if a function uses a taped value that is no argument: its derivative would silently be lost."""
    for path, value in captured(function):
        if isinstance(value, OverloadedType):
            raise CapturedValueError(
                f"{name} uses the taped value {path!r} ({type(value).__name__}) that is not an argument; the engine would "
                f"treat it as a constant and its derivative would be lost. Pass it as an argument, or take it off the "
                f"tape outside: {path}.value for an array, float({path}) for an AdjFloat."
            )


_DEPTH, _BREADTH = 6, 1000  # how far, and among how many, a captured value is looked for
_OWN = (types.FunctionType, types.MethodType, functools.partial)


def _captured(item: Any, path: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """Everything that a function, or an object in its reach, holds: closures, defaults, globals, containers, attributes."""
    if isinstance(item, OverloadedType):
        yield path, item
        return
    if (
        depth > _DEPTH
        or id(item) in seen
        or isinstance(item, (str, bytes, int, float, complex, type, types.ModuleType))
    ):
        return
    seen.add(id(item))
    dot = path + "." if path else ""
    parts: list[tuple[str, Any]] = []
    if isinstance(item, types.FunctionType):
        cells = zip(item.__code__.co_freevars, item.__closure__ or (), strict=False)
        parts += [(key, cell.cell_contents) for key, cell in cells if _is_filled(cell)]
        parts += [(key, item.__globals__[key]) for key in _global_names(item.__code__) if key in item.__globals__]
        parameters = list(inspect.signature(item, follow_wrapped=False).parameters.values())
        parts += [(f"{dot}{p.name}", p.default) for p in parameters if p.default is not p.empty]
        parts += [("__wrapped__", getattr(item, "__wrapped__", None))]
    elif isinstance(item, types.MethodType):
        parts += [(path, item.__func__), ("self", item.__self__)]
    elif isinstance(item, functools.partial):
        parts += [(path, item.func), *((f"{dot}args[{k}]", v) for k, v in enumerate(item.args))]
        parts += [(f"{dot}{k}", v) for k, v in item.keywords.items()]
    elif isinstance(item, slice):
        parts += [("start", item.start), ("stop", item.stop), ("step", item.step)]
    elif isinstance(item, dict):
        parts += [(f"{path}[{k!r}]", v) for k, v in item.items()]
    elif isinstance(item, (list, tuple, set, frozenset)):
        parts += [(f"{path}[{k}]", v) for k, v in enumerate(item)]
    elif isinstance(item, np.ndarray):
        parts += [(f"{path}[{k}]", v) for k, v in enumerate(item.flat)] if item.dtype == object else []
    elif owner_of(item) is None and type(item).__module__.partition(".")[0] not in _LIBRARIES:
        parts += [(f"{dot}{k}", v) for k, v in getattr(item, "__dict__", {}).items()]
        if depth == 0 and callable(item):
            parts += [(path, type(item).__call__)]
    for where, value in parts[:_BREADTH]:
        if isinstance(value, _OWN) and (getattr(value, "__module__", None) or "").partition(".")[0] in _LIBRARIES:
            continue
        yield from _captured(value, where, seen, depth + 1)


_LIBRARIES = {
    *("jax", "jaxlib", "torch", "tensorflow", "keras", "autograd", "numpy", "scipy"),
    *("pyadjoint", "pyadjoint_utils", "bridges", "optree", "builtins", "functools"),
}


def _global_names(code: types.CodeType) -> set[str]:
    """The globals that a code reads; co_names would name attributes too, and miss those of inner functions."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
