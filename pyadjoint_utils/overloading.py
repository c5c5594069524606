"""Turn a function of one engine into a function of taped values."""

import re
from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from typing import Any

import numpy as np
from pyadjoint import AdjFloat, get_working_tape
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.annotation import annotate_tape, claim
from pyadjoint_utils.arguments import Arguments, argument_path, hashable
from pyadjoint_utils.captures import captured
from pyadjoint_utils.engine import Arrays, Aval, Engine
from pyadjoint_utils.errors import ArgumentTypeError, RemovedOptionError
from pyadjoint_utils.jacobians.points import UNKNOWN, Nature, check_marks
from pyadjoint_utils.prepared import PYTHON_NUMBERS, Key, Prepared
from pyadjoint_utils.registry import convert, engine_names, get_engine, owner_of, tracing_engine
from pyadjoint_utils.running import RUNNING
from pyadjoint_utils.tapes import recording_state
from pyadjoint_utils.values import ndarray

# How engines speak of dtypes that do not fit together.
_ABOUT_DTYPES = re.compile(r"dtype|float32|float64|complex64|complex128|Float|Double|\b(float|double) tensor", re.ASCII)


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
        nature: Nature = UNKNOWN,
        numpy_name: str | None = None,
    ) -> None:
        if not callable(function):
            raise ArgumentTypeError(
                f"overload takes a function; got {type(function).__name__}. "
                "As a decorator with options write @overload_...(argnums=...)."
            )
        self.function = function
        self.engine = engine
        self.name = name or getattr(function, "__name__", None) or type(function).__name__
        self.arguments = Arguments(function, engine, self.name, argnums, static_argnums, static_argnames, pointwise)
        self.checkpoint, self.jit = checkpoint, jit
        self.out_pointwise = check_marks(out_pointwise, "out_pointwise", self.name)
        self.static_numbers, self.nature, self.numpy_name = static_numbers, nature, numpy_name
        self._prepared: dict[Any, Prepared] = {}
        update_wrapper(self, function, updated=())

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        # So that a decorated method is called with its object, which then is an ordinary static argument.
        return self if instance is None else _Bound(self, instance)

    def __repr__(self) -> str:
        return f"<{self.name} overloaded for {self.engine.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        engine = self.engine
        if engine in RUNNING.engines:
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
            points = self.arguments.points((*plan.taped, *plan.constant), plan.avals, args, kwargs)
            prepared = Prepared(self, plan, leaves, structure, points)
            try:
                outputs = prepared.run(values, constants)
            except Exception as error:
                self._explain_precision(error, plan, args, kwargs)
                raise
            prepared = self._prepared.setdefault(plan, prepared)  # of threads that are first at once, one wins
        else:
            outputs = prepared.run(values, constants)
        return prepared.wrapped(outputs, [leaves[i] for i in plan.taped], constants)

    # ------------------------------------------------------------------------------------------------------------------

    def _sort(self, leaves: list[Any], structure: Any, args: Any, kwargs: Any) -> tuple["Key", Arrays, Arrays]:
        """Classify the leaves: values on the tape, constant arrays, and what is static."""
        engine, types = self.engine, self.engine.array_types
        # A buffer that somebody else can change is copied when a Block is going to keep it.
        # So is one that an engine that computes asynchronously may read later.
        recording = annotate_tape()
        keep = recording or engine.traces
        tape = get_working_tape() if recording else None
        stored = None if tape is None else recording_state(tape).constants
        static = self.arguments.static(args, kwargs)
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
                statics.append((i, hashable(leaf)))
            elif isinstance(leaf, ndarray):
                aval = leaf.aval
                value = leaf._value
                values.append(value if type(value) in types else self._converted(leaf))
                taped.append(i)
            elif isinstance(leaf, AdjFloat):
                if recording:
                    claim("An AdjFloat")
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
            elif type(leaf) in PYTHON_NUMBERS and not self.static_numbers:
                constant.append(i)
                numbers.append(i)
                constants.append(leaf)
            elif type(leaf) in types:
                aval = engine.aval(leaf)
                constant.append(i)
                if stored is not None:
                    constants.append(stored.array(leaf, engine, engine))
                else:
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
                if stored is not None:
                    constants.append(stored.array(array, owner, engine))
                else:
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
                statics.append((i, hashable(leaf)))
            avals.append(aval)
        if numbers:
            number = engine.number if stored is None else partial(stored.number, engine)
            self._enter_numbers(number, leaves, numbers, avals, taped, values, constant, constants)
        active = self.arguments.active(taped, avals, args, kwargs)
        key = Key(
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
        number: Callable[[complex, np.dtype], Any],
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
                constants[constant.index(i)] = number(leaf, dtype)

    def _explain_precision(self, error: Exception, key: "Key", args: Any, kwargs: Any) -> None:
        """Say in our words what engines say in theirs when a function mixes precisions that they do not promote."""
        leaves = dict(zip((*key.taped, *key.constant), key.avals, strict=True))
        floats = {i: aval for i, aval in leaves.items() if aval.differentiable}
        dtypes = {aval.dtype for aval in floats.values()}
        if len(dtypes) < 2 or not _ABOUT_DTYPES.search(str(error)):
            return
        listed = ", ".join(f"{argument_path(self.engine, args, kwargs, i)} is {floats[i]}" for i in sorted(floats))
        widest = max(dtypes, key=lambda dtype: (dtype.kind == "c", dtype.itemsize))
        raise ArgumentTypeError(
            f"{self.name}: {self.engine.name} refuses to mix precisions here: {listed}. Cast one of them first, "
            f"for example x.astype({str(widest)!r}). ({self.engine.name} says: {str(error).splitlines()[0]})"
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


def overload(function: Callable[..., Any] | None = None, engine: str | Engine | None = None, **options: Any) -> Any:
    """Overload a function of an engine for values on the tape; the bridges' ``overload_*`` are this with an engine.

    Args:
        function: takes and returns arrays of the engine, in nested containers; None to use as a decorator with options.
        engine: the engine or its name.
        **options: ``argnums`` (positions that pass a derivative; None for every floating or complex one),
            ``static_argnums``, ``static_argnames``, ``checkpoint`` (recompute intermediate values when
            differentiating), ``jit`` (False: run the function as it is), ``name``; ``pointwise`` (a bool, or one per
            argument: its first axis counts points that do not influence each other) and ``out_pointwise`` (the same for
            the items of the result; None for all of them if an argument is pointwise).

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
