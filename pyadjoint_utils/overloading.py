"""Turn a function of one engine into a function of taped values."""

import inspect
import re
import threading
from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any

import numpy as np
from pyadjoint import AdjFloat, annotate_tape
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.captures import captured, check_captures
from pyadjoint_utils.engine import Arrays, Aval, Engine, convert, engine_names, get_engine, owner_of, tracing_engine
from pyadjoint_utils.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    CapturedValueError,
    RemovedOptionError,
)
from pyadjoint_utils.rules import Rules
from pyadjoint_utils.tapes import working_tape
from pyadjoint_utils.values import ndarray

_PYTHON_NUMBERS = (int, float, complex)
# How engines speak of dtypes that do not fit together.
_ABOUT_DTYPES = re.compile(r"dtype|float32|float64|complex64|complex128|Float|Double|\b(float|double) tensor", re.ASCII)


class _Running(threading.local):
    """Which engines run an overloaded function in this thread; eager engines have no tracers that would tell."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.names: list[str] = []


_running = _Running()


def running_engine() -> Engine | None:
    """Return the engine whose overloaded function runs in this thread, or None."""
    return _running.engines[-1] if _running.engines else None


def running_name() -> str:
    """Return the name of the overloaded function that runs in this thread."""
    return _running.names[-1] if _running.names else ""


class Overloaded:
    """A function of an engine that records a Block when it is called with taped values.

    Made by :func:`overload` and the ``overload_*`` functions of the bridges.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        engine: Engine,
        *,
        argnums: int | Sequence[int] | None = None,
        static_argnums: int | Sequence[int] = (),
        static_argnames: str | Sequence[str] = (),
        checkpoint: bool = False,
        jit: bool = True,
        pointwise: bool | Sequence[bool] = False,
        out_pointwise: bool | Sequence[bool] | None = None,
        name: str | None = None,
        static_numbers: bool = False,
    ) -> None:
        if not callable(function):
            raise ArgumentTypeError(
                f"overload takes a function; got {type(function).__name__}. "
                "As a decorator with options write @overload_...(argnums=...)."
            )
        self.function = function
        self.engine = engine
        self.name = name or getattr(function, "__name__", None) or type(function).__name__
        self.argnums = _indices(argnums, "argnums", self.name)
        self.static_argnums = _indices(static_argnums, "static_argnums", self.name) or ()
        self.static_argnames = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)
        self.checkpoint, self.jit = checkpoint, jit
        self.pointwise, self.out_pointwise = pointwise, out_pointwise
        self.static_numbers = static_numbers
        self._positions, takes_any_name = _parameter_positions(function)
        unknown = sorted(set(self.static_argnames) - set(self._positions))
        if unknown and not takes_any_name:
            raise ArgumentValueError(
                f"{self.name}: static_argnames names {unknown[0]!r}, but the function has the parameters "
                f"{', '.join(self._positions) or '(none)'}."
            )
        both = sorted(set(self.argnums or ()) & set(self.static_argnums))
        if both:
            raise ArgumentValueError(
                f"{self.name}: argument {both[0]} is both in argnums and static: it cannot be both."
            )
        self._prepared: dict[Any, _Prepared] = {}
        update_wrapper(self, function, updated=())

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        # So that a decorated method is called with its object, which then is an ordinary static argument.
        return self if instance is None else _Bound(self, instance)

    def __repr__(self) -> str:
        return f"<{self.name} overloaded for {self.engine.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        engine = self.engine
        if engine in _running.engines:
            return self.function(*args, **kwargs)
        leaves, structure = engine.flatten((args, kwargs))
        for i, leaf in enumerate(leaves):
            if engine.is_tracer(leaf):
                if any(isinstance(other, OverloadedType) for other in leaves):
                    raise self._error(
                        args,
                        kwargs,
                        i,
                        leaf,
                        f"belongs to {engine.name}'s own differentiation, but stands beside a value of the tape",
                        f"use one of the two: pass {engine.name} values alone, or an array without a derivative of its own",
                    )
                return self.function(*args, **kwargs)
        plan, values, constants = self._sort(leaves, structure, args, kwargs)
        prepared = self._prepared.get(plan)
        if prepared is None:
            # Kept only when its first run succeeded.
            prepared = _Prepared(self, plan, leaves, structure)
            try:
                outputs = prepared.run(values, constants)
            except Exception as error:
                self._explain_precision(error, plan, args, kwargs)
                raise
            self._prepared[plan] = prepared
        else:
            outputs = prepared.run(values, constants)
        return prepared.wrapped(outputs, [leaves[i] for i in plan.taped], constants)

    # ------------------------------------------------------------------------------------------------------------------

    def _sort(self, leaves: list[Any], structure: Any, args: Any, kwargs: Any) -> tuple["_Key", Arrays, Arrays]:
        """Classify the leaves: values on the tape, constant arrays, and what is static."""
        engine, types = self.engine, self.engine.array_types
        # A buffer that somebody else can change is copied when a Block is going to keep it.
        # So is one that an engine that computes asynchronously may read later.
        keep = annotate_tape() or engine.traces
        static = self._static_leaves(args, kwargs)
        taped: list[int] = []
        constant: list[int] = []
        statics: list[Any] = []
        values: list[Any] = []
        constants: list[Any] = []
        avals: list[Aval | None] = []
        numbers: list[int] = []
        for i, leaf in enumerate(leaves):
            aval = None
            if static is not None and static[i]:
                if isinstance(leaf, OverloadedType):
                    raise self._error(
                        args, kwargs, i, leaf, "is static, but it is a taped value", "take it off the tape"
                    )
                statics.append((i, _hashable(leaf)))
            elif isinstance(leaf, ndarray):
                aval = leaf.aval
                value = leaf._value
                values.append(value if type(value) in types else self._converted(leaf))
                taped.append(i)
            elif isinstance(leaf, AdjFloat):
                taped.append(i)
                numbers.append(i)
                values.append(leaf)
            elif isinstance(leaf, OverloadedType):
                raise self._error(
                    args,
                    kwargs,
                    i,
                    leaf,
                    "is a taped value of a type that has no arrays",
                    "convert it to an array first",
                )
            elif type(leaf) in _PYTHON_NUMBERS and not self.static_numbers:
                constant.append(i)
                numbers.append(i)
                constants.append(leaf)
            elif type(leaf) in types:
                aval = engine.aval(leaf)
                constant.append(i)
                constants.append(engine.copy(leaf) if keep else leaf)
            elif (owner := owner_of(np.asarray(leaf) if isinstance(leaf, np.generic) else leaf)) is not None:
                array = np.asarray(leaf) if isinstance(leaf, np.generic) else leaf
                if isinstance(array, np.ndarray) and array.dtype.kind == "O":
                    raise self._error(
                        args, kwargs, i, leaf, "is a NumPy array of objects", "pass a list, or numpy.stack it"
                    )
                aval = owner.aval(array)
                if owner.is_tracer(leaf):
                    raise self._error(
                        args,
                        kwargs,
                        i,
                        leaf,
                        f"belongs to {owner.name}'s own differentiation, which a function of {engine.name} would cut off",
                        f"call it outside and let the tape compose the derivatives, or detach it in {owner.name}",
                    )
                constant.append(i)
                constants.append(convert(owner.copy(array) if keep else array, engine))
            else:
                if (other := tracing_engine(leaf)) is not None:
                    raise self._error(
                        args,
                        kwargs,
                        i,
                        leaf,
                        f"belongs to a transformation of {other.name} that is running, where a function of {engine.name} "
                        "cannot run",
                        "call it outside of the transformation and let the tape compose the derivatives",
                    )
                self._refuse_hidden(args, kwargs, i, leaf)
                statics.append((i, _hashable(leaf)))
            avals.append(aval)
        if numbers:
            self._enter_numbers(leaves, numbers, avals, taped, values, constant, constants)
        active = self._active(taped, avals, args, kwargs)
        key = _Key(
            structure,
            tuple(taped),
            tuple(constant),
            tuple([avals[i] for i in (*taped, *constant)]),
            tuple([type(c) for c in constants]),
            active,
            tuple(statics),
        )
        return key, tuple(values), tuple(constants)

    def _refuse_hidden(self, args: Any, kwargs: Any, i: int, leaf: Any) -> None:
        for _, value in captured(leaf):
            if isinstance(value, OverloadedType):
                raise self._error(
                    args,
                    kwargs,
                    i,
                    leaf,
                    f"holds a taped value ({type(value).__name__}) where it is not "
                    "seen, so that its derivative would be lost",
                    "pass it in a tuple, list or dict",
                )

    def _converted(self, leaf: ndarray) -> Any:
        variable = leaf._block_variable()
        return (
            variable.converted(leaf._value, self.engine) if variable is not None else convert(leaf._value, self.engine)
        )

    def _enter_numbers(
        self,
        leaves: list[Any],
        numbers: list[int],
        avals: list[Aval | None],
        taped: list[int],
        values: list[Any],
        constant: list[int],
        constants: list[Any],
    ) -> None:
        """Python floats take the precision of the arrays beside them, float64 if there are none."""
        real: dict[np.dtype, np.dtype] = {
            np.dtype(np.complex64): np.dtype(np.float32),
            np.dtype(np.complex128): np.dtype(np.float64),
        }
        kinds: list[np.dtype] = [
            real.get(aval.dtype, aval.dtype) for aval in avals if aval is not None and aval.differentiable
        ]
        precision = max(kinds, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float64))
        for i in numbers:
            leaf = leaves[i]
            if type(leaf) is complex:
                dtype = np.dtype(np.complex128 if precision.itemsize > 4 else np.complex64)
            elif type(leaf) is int:
                dtype = np.dtype(np.int64)
            else:
                dtype = precision
            avals[i] = Aval((), dtype)
            if i in taped:
                values[taped.index(i)] = self.engine.enter(np.asarray(leaf, dtype))
            else:
                constants[constant.index(i)] = self.engine.number(leaf, dtype)

    def _static_leaves(self, args: Any, kwargs: Any) -> list[bool] | None:
        """Mark the leaves of static arguments, in the order of the flattened arguments."""
        if not self.static_argnums and not self.static_argnames:
            return None
        return self._marks(self.static_argnums, "static_argnums", self.static_argnames, args, kwargs)

    def _active(self, taped: list[int], avals: list[Aval | None], args: Any, kwargs: Any) -> tuple[int, ...]:
        """Positions among the taped leaves that pass a derivative."""
        chosen = None if self.argnums is None else self._marks(self.argnums, "argnums", (), args, kwargs)
        active = []
        for k, i in enumerate(taped):
            aval = avals[i]
            if aval is not None and aval.differentiable and (chosen is None or chosen[i]):
                active.append(k)
        return tuple(active)

    def _marks(
        self, argnums: Sequence[int], option: str, argnames: Sequence[str], args: Any, kwargs: Any
    ) -> list[bool]:
        """Mark the leaves of arguments that are named by position, however they were passed."""
        count = max(len(args), len(self._positions))
        for k in argnums:
            if not -count <= k < count:
                raise ArgumentValueError(
                    f"{self.name}: {option}={k} is out of range: the function takes {count} positional argument(s). "
                    f"Name positions from 0 to {count - 1}."
                )
        numbers = {k % count for k in argnums} | {self._positions[n] for n in argnames if n in self._positions}
        names = {*argnames, *(name for name, k in self._positions.items() if k in numbers)}
        positional = tuple([_marked(self.engine, arg, k in numbers) for k, arg in enumerate(args)])
        keyword = {key: _marked(self.engine, value, key in names) for key, value in kwargs.items()}
        return self.engine.flatten((positional, keyword))[0]

    def _explain_precision(self, error: Exception, key: "_Key", args: Any, kwargs: Any) -> None:
        """Say in our words what engines say in theirs when a function mixes precisions that they do not promote."""
        leaves = dict(zip((*key.taped, *key.constant), key.avals, strict=True))
        floats = {i: aval for i, aval in leaves.items() if aval.differentiable}
        if len({aval.dtype for aval in floats.values()}) < 2 or not _ABOUT_DTYPES.search(str(error)):
            return
        listed = ", ".join(f"{argument_path(self.engine, args, kwargs, i)} is {floats[i]}" for i in sorted(floats))
        raise ArgumentTypeError(
            f"{self.name}: {self.engine.name} refuses to mix precisions here: {listed}. Cast one of them first, "
            f"for example x.astype('float64'). ({self.engine.name} says: {str(error).splitlines()[0]})"
        ) from error

    def _error(self, args: Any, kwargs: Any, i: int, leaf: Any, rule: str, remedy: str) -> ArgumentTypeError:
        return ArgumentTypeError(
            f"{self.name}: argument {argument_path(self.engine, args, kwargs, i)} {rule}; "
            f"got {type(leaf).__name__}. Please {remedy}."
        )


class _Bound:
    """A decorated method, bound to its object."""

    def __init__(self, overloaded: Overloaded, instance: Any) -> None:
        self._overloaded, self._instance = overloaded, instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._overloaded(self._instance, *args, **kwargs)


class _Key(tuple):
    """What makes two calls the same to an engine; hashing it is the lookup of every call."""

    __slots__ = ()

    def __new__(cls, *parts: Any) -> "_Key":
        return super().__new__(cls, parts)

    structure = property(lambda self: self[0])
    taped = property(lambda self: self[1])
    constant = property(lambda self: self[2])
    avals = property(lambda self: self[3])
    active = property(lambda self: self[5])


class _Prepared:
    """One function at one signature: its rules, and how its outputs are put together."""

    def __init__(self, overloaded: Overloaded, key: _Key, leaves: list[Any], structure: Any) -> None:
        self.engine = engine = overloaded.engine
        self.name = overloaded.name
        self.out_structure: Any = None
        arrays = {*key.taped, *key.constant}
        # Only what is static may be kept: a reference to an argument's array would keep it alive for ever.
        template = [None if i in arrays else leaf for i, leaf in enumerate(leaves)]
        order = (*key.taped, *key.constant)
        user_function = overloaded.function
        check_captures(user_function, self.name)

        def flat(arrays: Arrays) -> Arrays:
            filled = list(template)
            for i, array in zip(order, arrays, strict=True):
                filled[i] = array
            args, kwargs = engine.unflatten(structure, filled)
            _running.engines.append(engine)
            _running.names.append(self.name)
            try:
                result = user_function(*args, **kwargs)
            finally:
                _running.engines.pop()
                _running.names.pop()
            outputs, self.out_structure = engine.flatten(result)
            return tuple([self._output(k, leaf) for k, leaf in enumerate(outputs)])

        function = flat
        if overloaded.checkpoint:
            remade = engine.checkpoint(lambda x, c: flat(x))
            function = lambda arrays: remade(arrays, ())  # noqa: E731
        self.rules = Rules(
            engine, function, key.avals, len(key.taped), key.active, compiled=overloaded.jit, name=self.name
        )

    def _output(self, k: int, leaf: Any) -> Any:
        engine = self.engine
        if type(leaf) in engine.array_types or engine.is_tracer(leaf):
            return leaf
        if isinstance(leaf, ndarray):
            raise CapturedValueError(
                f"{self.name} computes with a taped value that was not passed to it (output {k}). Pass it as an argument."
            )
        if isinstance(leaf, (np.generic, np.ndarray, *_PYTHON_NUMBERS)) and not isinstance(leaf, bool):
            return engine.enter(np.asarray(leaf))
        raise ArgumentTypeError(
            f"{self.name}: output {k} is not an array; got {type(leaf).__name__}. "
            f"Return arrays of {engine.name} (in tuples, lists or dicts); None is allowed."
        )

    def run(self, values: Arrays, constants: Arrays) -> Arrays:
        rules = self.rules
        outputs = rules.value((), (*values, *constants))
        if not rules.outputs:
            rules.outputs = tuple([self.engine.aval(y) for y in outputs])
            if not outputs:
                raise ArgumentTypeError(f"{self.name} returns no array.")
        else:
            rules.check(outputs)
        return outputs

    def wrapped(self, outputs: Arrays, taped: list[Any], constants: Arrays) -> Any:
        """Wrap the outputs and record the call if there is something to record."""
        holder = get_engine(self.engine.holds)
        results = [ndarray(y, holder) for y in outputs]
        if taped and annotate_tape():
            record(self.rules, taped, constants, results)
        return self.engine.unflatten(self.out_structure, results)


def record(rules: Rules, dependencies: list[Any], constants: Arrays, outputs: Sequence[ndarray]) -> None:
    """Put one call on the working tape."""
    tape = working_tape(None)
    block = EngineBlock(rules, dependencies, constants)
    tape.add_block(block)
    for y in outputs:
        block.add_output(y.create_block_variable())


def overload(function: Callable[..., Any] | None = None, engine: str | Engine | None = None, **options: Any) -> Any:
    """Overload a function of an engine for values on the tape; the bridges' ``overload_*`` are this with an engine.

    Args:
        function: takes and returns arrays of the engine, in nested containers; None to use as a decorator with options.
        engine: the engine or its name.
        **options: ``argnums`` (positions that pass a derivative; None for every floating or complex one),
            ``static_argnums``, ``static_argnames``, ``checkpoint`` (recompute intermediate values when
            differentiating), ``jit`` (False: run the function as it is), ``pointwise``, ``out_pointwise``, ``name``.

    Returns:
        A function of arrays of any engine, taped or not, that returns :class:`ndarray` in the function's own containers.

    Raises:
        MissingEngineError: the engine is not installed.
        RemovedOptionError: an option of CRIKit that has no meaning any more.

    Example:
        >>> from pyadjoint_utils import array, overload
        >>> square = overload(lambda x: x * x, "autograd")
        >>> float(square(array(3.0)))
        9.0
    """
    if engine is None:
        raise ArgumentTypeError('overload needs an engine: overload(f, "jax"). Or use overload_jax(f).')
    for option, remedy in _REMOVED.items():
        if option in options:
            raise RemovedOptionError(f"The option {option}= of CRIKit does not exist any more: {remedy}.")
    if "nojit" in options:
        options["jit"] = not options.pop("nojit")
    if "function_name" in options:
        options["name"] = options.pop("function_name")
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise RemovedOptionError(f"overload has no option {unknown[0]!r}. It knows: {', '.join(sorted(_OPTIONS))}.")
    resolved = get_engine(engine) if isinstance(engine, str) else engine
    if resolved.holds not in engine_names():
        raise ArgumentTypeError(f"The engine {resolved.name!r} is not registered. Write register_engine(engine) first.")
    if function is None:
        return lambda f: Overloaded(f, resolved, **options)
    return Overloaded(function, resolved, **options)


_OPTIONS = {
    "argnums",
    "static_argnums",
    "static_argnames",
    "checkpoint",
    "jit",
    "pointwise",
    "out_pointwise",
    "name",
}
_REMOVED = {
    "concrete": "JAX removed it; mark static arguments with static_argnums",
    "backend": "choose the device with jax.default_device or jax.device_put",
    "donate_argnums": "a taped argument must stay alive for the derivative, so its buffer cannot be given away",
    "compile_jacobian_stack": "Jacobian rules are prepared once without it",
}


def argument_path(engine: Engine, args: Any, kwargs: Any, i: int) -> str:
    """Return a readable path to leaf ``i`` of the arguments, such as ``args[0]['w'][1]``."""
    count = 0
    for path, value in [(f"args[{k}]", a) for k, a in enumerate(args)] + [
        (f"kwargs[{k!r}]", a) for k, a in sorted(kwargs.items())
    ]:
        size = len(engine.flatten(value)[0])
        if i < count + size:
            return path + _inner_path(engine, value, i - count)
        count += size
    return f"leaf {i}"


def _inner_path(engine: Engine, value: Any, i: int) -> str:
    items: list[tuple[str, Any]]
    if isinstance(value, dict):
        items = [(f"[{key!r}]", value[key]) for key in sorted(value)]
    elif isinstance(value, (list, tuple)):
        items = [(f"[{k}]", item) for k, item in enumerate(value)]
    else:
        return ""
    for path, item in items:
        size = len(engine.flatten(item)[0])
        if i < size:
            return path + _inner_path(engine, item, i)
        i -= size
    return ""


def _indices(value: Any, option: str, name: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    items = tuple(value) if isinstance(value, (tuple, list, set, range)) else (value,)
    if not all(isinstance(k, int) for k in items):
        raise ArgumentTypeError(f"{name}: {option} takes an int or a sequence of ints; got {value!r}.")
    return items


def _marked(engine: Engine, tree: Any, mark: bool) -> Any:
    leaves, structure = engine.flatten(tree)
    return engine.unflatten(structure, [mark] * len(leaves))


def _parameter_positions(function: Callable[..., Any]) -> tuple[dict[str, int], bool]:
    """Return the positions of a function's named parameters, and whether there may be others."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return {}, True
    kinds = inspect.Parameter
    positional = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    others = any(p.kind in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL, kinds.KEYWORD_ONLY) for p in parameters)
    return {name: k for k, name in enumerate(positional)}, others


def _hashable(leaf: Any) -> Any:
    if isinstance(leaf, slice):
        return ("slice", _hashable(leaf.start), _hashable(leaf.stop), _hashable(leaf.step))
    try:
        hash(leaf)
    except TypeError as error:
        raise ArgumentTypeError(
            f"A static argument must be hashable, so that a change of it is seen; got {type(leaf).__name__}. Pass its "
            "numbers as arrays in a tuple, list or dict, or give its class a __hash__."
        ) from error
    return (type(leaf), leaf)
