"""Which engines there are, whose array a value is, and arrays from one engine to another."""

import functools
import importlib
import threading
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from pyadjoint_utils.engine import Engine, NumPyArrays
from pyadjoint_utils.errors import ArgumentTypeError, MissingEngineError

ENTRY_POINT_GROUP = "pyadjoint_utils.engines"

_BUNDLED = {name: f"bridges.{name}:engine" for name in ("jax", "tensorflow", "torch", "autograd", "onnx")}
_loaded: dict[str, Engine] = {}
_owners: dict[type, Engine] = {}
_strangers: set[type] = set()  # classes that are known to be no engine's
_on_register: list[Callable[[Engine], None]] = []
_registering = threading.RLock()
FEW = 4096  # numbers that are copied in less time than an engine takes to find another one's memory
_HOST = {1, 3}  # DLPack's numbers of the CPU's memory, the second of memory that an accelerator reads as well


def register_engine(engine: Engine) -> Engine:
    """Register an engine under its name and make it the owner of its array classes.

    Args:
        engine: the engine; another one of the same name is replaced.

    Returns:
        The engine.
    """
    if not isinstance(engine, Engine) or not engine.name:
        raise ArgumentTypeError(
            f"register_engine takes an instance of a subclass of pyadjoint_utils.Engine with a name; got {engine!r}."
        )
    with _registering:
        if engine.holds == engine.name:
            for cls in engine.array_types:
                _owners[cls] = engine
        for hook in _on_register:
            hook(engine)
        _loaded[engine.name] = engine
        _strangers.clear()
    return engine


@functools.cache  # it reads the metadata of every installed package
def _entry_points() -> dict[str, str]:
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return _BUNDLED | found


def engine_names() -> list[str]:
    """Return the names of all engines that are registered or that an installed package announces, installed or not."""
    return sorted({*_entry_points(), *_loaded})


def get_engine(name: str) -> Engine:
    """Return an engine by name and load its bridge at the first call.

    Args:
        name: ``"jax"``, ``"tensorflow"``, ``"torch"``, ``"autograd"``, ``"numpy"``, or one that another package announces
            through the entry-point group ``pyadjoint_utils.engines``.

    Returns:
        The engine.

    Raises:
        MissingEngineError: no such engine, or its package is not installed; the message says what to install.
    """
    engine = _loaded.get(name)
    return engine if engine is not None else _load(name)


def _load(name: str) -> Engine:
    points = _entry_points()
    if name not in points:
        raise MissingEngineError(
            f"There is no engine called {name!r}. Known engines: {', '.join(engine_names())}. "
            f"A package announces its own through the entry-point group {ENTRY_POINT_GROUP!r}."
        )
    module_name, _, attribute = points[name].partition(":")
    if module_name.partition(".")[0] == "bridges":
        check_bridges()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("bridges", "pyadjoint_utils"):
            raise
        raise MissingEngineError(
            f"The engine {name!r} needs the package {error.name!r}, which is not installed. "
            f"Install it with: pip install 'pyadjoint-utils[{name}]'"
        ) from error
    return register_engine(getattr(module, attribute or "engine"))


def check_bridges() -> None:
    """Raise if the top-level package ``bridges`` that Python finds belongs to another distribution."""
    try:
        bridges = importlib.import_module("bridges")
    except ModuleNotFoundError as error:
        raise MissingEngineError(
            "The package 'bridges', which is a part of pyadjoint-utils, cannot be found. "
            "Reinstall with: pip install --force-reinstall --no-deps pyadjoint-utils"
        ) from error
    if getattr(bridges, "PROJECT", None) != "pyadjoint-utils":
        where = getattr(bridges, "__file__", None) or list(getattr(bridges, "__path__", ["?"]))
        raise MissingEngineError(
            f"The package 'bridges' that Python finds ({where}) is not the one of pyadjoint-utils: another distribution "
            "installs the same name. Uninstall it (pip uninstall bridges) or move your own 'bridges' folder out of "
            "sys.path, then reinstall: pip install --force-reinstall --no-deps pyadjoint-utils"
        )


def owner_of(value: Any) -> Engine | None:
    """Return the engine that owns an array, or None for what is no concrete array of an installed engine."""
    engine = _owners.get(type(value))
    return engine if engine is not None else _find_owner(value)


def _find_owner(value: Any) -> Engine | None:
    if isinstance(value, np.ndarray):
        return _owners[np.ndarray]
    if type(value) in _strangers:
        return None
    for cls in type(value).__mro__[1:]:  # a subclass of an engine's array enters as that array
        if cls in _owners:
            return _owners[cls]
    package = type(value).__module__.partition(".")[0]
    for name in engine_names():
        # The bridge of an array's own package may not be loaded yet; jaxlib's arrays belong to jax.
        if name not in _loaded and package.startswith(name):
            get_engine(name)
            return _owners.get(type(value))
    with _registering:  # another thread may have loaded the owner meanwhile
        if type(value) not in _owners:
            _strangers.add(type(value))
    return _owners.get(type(value))


def tracing_engine(leaf: Any) -> Engine | None:
    """Return the loaded engine that has a transformation running which this leaf belongs to, or None."""
    return next((engine for engine in list(_loaded.values()) if engine.is_tracer(leaf)), None)


def on_host(array: Any) -> bool:
    """Whether an array is in the memory of the CPU, so that NumPy may read it where it is."""
    device = getattr(array, "__dlpack_device__", None)
    return device is None or device()[0] in _HOST


def convert(value: Any, engine: Engine) -> Any:
    """Return an array in the memory of another engine, aliased where memory allows.

    Args:
        value: a concrete array of any engine.
        engine: the engine that is to read it.

    Returns:
        An array of the engine; ``value`` itself if the engine already owns it.
    """
    if type(value) in engine.array_types:
        return value
    source = owner_of(value)
    if source is None:
        raise ArgumentTypeError(f"Cannot hand a {type(value).__name__} to the engine {engine.name!r}: it is no array.")
    if engine.holds == "numpy":
        return engine.enter(source.to_numpy(value))
    return engine.enter(value if isinstance(value, np.ndarray) else source.export(value))


register_engine(NumPyArrays())
