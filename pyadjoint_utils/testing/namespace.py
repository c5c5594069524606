"""An engine's functions under NumPy's names, so that a scenario is written once for all engines."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from pyadjoint_utils.engine import Engine
from pyadjoint_utils.errors import UnsupportedError
from pyadjoint_utils.overloading import overload
from pyadjoint_utils.registry import get_engine


class MissingFunctionError(UnsupportedError):
    """A scenario needs a function that the engine does not name."""


class Namespace:
    """What scenarios need of an engine: ``e.sin`` is ``engine.function("sin")``, for every name of NumPy's.

    Args:
        engine: the engine.

    Raises:
        MissingFunctionError: on access to a name for which ``engine.function`` returns None.

    Example:
        >>> from pyadjoint_utils.testing import namespace_of
        >>> e = namespace_of("autograd")
        >>> float(e.sum(e.own([1.0, 2.0])))
        3.0
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        function = self.engine.function(name)
        if function is None:
            raise MissingFunctionError(f"The engine {self.name!r} has no function {name!r}.")
        return function

    @property
    def name(self) -> str:
        """The engine's name."""
        return self.engine.name

    @property
    def holds(self) -> str:
        """Name of the engine that owns the arrays."""
        return self.engine.holds

    def own(self, data: Any) -> Any:
        """Numbers as a concrete array that the engine computes on."""
        return self.holder.enter(np.asarray(data))

    @property
    def holder(self) -> Engine:
        """The engine that owns the arrays."""
        return self.engine if self.holds == self.name else get_engine(self.holds)

    def complex(self, x: Any) -> Any:
        """A real array of the engine as a complex one."""
        return self.astype(x, np.result_type(self.engine.aval(x).dtype, np.complex64))

    def overload(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """The function overloaded for the engine."""
        return overload(function, self.engine, **options)


def namespace_of(engine: Engine | str) -> Namespace:
    """Return the one namespace of an engine, given the engine or its name."""
    return _namespace(get_engine(engine) if isinstance(engine, str) else engine)


_namespace = functools.cache(Namespace)
