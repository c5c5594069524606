"""A call of a program some of whose arguments are differentiated, and what may stand among them."""

from collections.abc import Callable, Sequence
from typing import Any

from pyadjoint_utils import trees
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, NotDifferentiableError
from pyadjoint_utils.transforming.leaves import input_of
from pyadjoint_utils.transforming.sweeps import check_holomorphic
from pyadjoint_utils.transforming.traced import Traced


class Call:
    """A call of a program.

    Args:
        fun: the program.
        args: its positional arguments.
        kwargs: its keyword arguments, which are not differentiated.
        argnums: positions of the arguments that are; None for all.
        has_aux: whether the program returns a pair of its result and auxiliary data.
        name: the transformation, for messages.

    Attributes:
        inputs: the leaves of the differentiated arguments, as the program will get them; ``paths`` and ``structure``
            belong to them.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        argnums: int | Sequence[int] | None,
        *,
        has_aux: bool,
        name: str,
    ) -> None:
        if not callable(fun):
            raise ArgumentTypeError(f"{name} takes a function; got {type(fun).__name__}.")
        self._fun, self._args, self._kwargs, self._has_aux = fun, list(args), kwargs, has_aux
        self.name, self._single = name, isinstance(argnums, int)
        self._numbers = _positions(argnums, len(args), name)
        self._leaves, self.structure = trees.flatten(tuple([args[k] for k in self._numbers]))
        self.paths = [path for k in self._numbers for path in trees.paths(args[k], f"args[{k}]")]
        self.inputs = [input_of(leaf, path, name) for leaf, path in zip(self._leaves, self.paths, strict=True)]

    def program(self) -> Traced:
        """Run the program on a tape of its own."""
        return Traced(self._run, self._leaves, self.inputs, self.name)

    def differentiable_program(
        self, *, holomorphic: bool, allow_int: bool = False, forward: bool = False, scalar: bool = False
    ) -> Traced:
        """Run the program; raise unless the transformation can differentiate what goes in and what comes out.

        Args:
            holomorphic: whether the program is said to be holomorphic, which is checked.
            allow_int: whether integers may stand among the differentiated arguments.
            forward: whether the transformation takes tangents, and not adjoints.
            scalar: whether the result has to be a scalar.
        """
        check_inputs(self, holomorphic=holomorphic, allow_int=allow_int, forward=forward)
        program = self.program()
        if scalar:
            check_scalar(program)
        check_outputs(program, holomorphic=holomorphic, forward=forward)
        if holomorphic:
            check_holomorphic(program, forward=forward)
        return program

    def _run(self, inputs: Sequence[Any]) -> tuple[Any, Any]:
        args = list(self._args)
        for k, value in zip(self._numbers, trees.unflatten(self.structure, inputs), strict=True):
            args[k] = value
        result = self._fun(*args, **self._kwargs)
        if not self._has_aux:
            return result, None
        if not isinstance(result, tuple) or len(result) != 2:
            length = f" of length {len(result)}" if isinstance(result, tuple) else ""
            raise ArgumentTypeError(
                f"{self.name} with has_aux=True takes a function that returns a pair of its result and auxiliary data; got "
                f"{type(result).__name__}{length}."
            )
        return result

    def like_arguments(self, leaves: Sequence[Any]) -> Any:
        """Return values of the leaves in the containers of the differentiated arguments."""
        chosen = trees.unflatten(self.structure, leaves)
        return chosen[0] if self._single else chosen


def _positions(argnums: int | Sequence[int] | None, count: int, name: str) -> tuple[int, ...]:
    if argnums is None:
        return tuple(range(count))
    numbers = tuple(argnums) if isinstance(argnums, (tuple, list, set, range)) else (argnums,)
    if not all(isinstance(k, int) and not isinstance(k, bool) for k in numbers):
        raise ArgumentTypeError(f"{name}: argnums takes an int or a sequence of ints; got {argnums!r}.")
    if any(not -count <= k < count for k in numbers):
        option = "jidx" if name == "cvjp" else "argnums"
        raise ArgumentValueError(
            f"{name}: {option}={argnums} names an argument that was not passed by position: the call has {count} "
            "positional argument(s)."
        )
    return tuple([k % count for k in numbers])


def check_inputs(call: Call, *, holomorphic: bool, allow_int: bool = False, forward: bool = False) -> None:
    """Raise unless the differentiated arguments have dtypes by which the transformation differentiates."""
    for x, path in zip(call.inputs, call.paths, strict=True):
        if holomorphic and x.dtype.kind != "c":
            raise ArgumentTypeError(f"{call.name} with holomorphic=True takes complex arguments; {path} is {x.aval}.")
        if not x.aval.differentiable and not allow_int:
            raise ArgumentTypeError(
                f"{call.name} takes real or complex arguments; {path} is {x.aval}. Pass it as float, or name the others in "
                f"argnums{'' if forward else ', or set allow_int=True'}."
            )
        if forward and not holomorphic and x.dtype.kind == "c":
            raise ArgumentTypeError(
                f"{call.name} takes real arguments; {path} is {x.aval}. For a holomorphic function set holomorphic=True; "
                "for others use jvp and vjp, which are right for any function."
            )


def check_outputs(program: Traced, *, holomorphic: bool, forward: bool = False) -> None:
    """Raise unless the outputs have dtypes of which the transformation takes derivatives."""
    for aval, path in zip(program.avals, program.paths, strict=True):
        if holomorphic and aval.dtype.kind != "c":
            raise ArgumentTypeError(
                f"{program.name} with holomorphic=True takes a function with complex results; {path} is {aval}."
            )
        if not aval.differentiable or (aval.dtype.kind == "c" and not holomorphic and not forward):
            raise ArgumentTypeError(
                f"{program.name} takes a function with real results; {path} is {aval}. For a holomorphic function set "
                "holomorphic=True; for others use jvp and vjp. Integers are returned as auxiliary data (has_aux=True)."
            )


def check_scalar(program: Traced) -> None:
    """Raise unless the result is one array of shape ``()``."""
    if program.paths != ["result"] or program.avals[0].shape != ():
        listed = ", ".join(f"{path}: {aval}" for path, aval in zip(program.paths, program.avals, strict=True))
        raise NotDifferentiableError(
            f"{program.name}: only a scalar, of shape (), has a gradient; the function returned {listed or 'no array'}. "
            "Reduce it, for example with .sum(), or use jacrev, jacfwd or vjp."
        )
