"""A reduced function as an engine calls it: what may be given, and the pieces to replay."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist

from pyadjoint_utils.compiling.program import Program
from pyadjoint_utils.engine import Aval, Engine
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, NotDifferentiableError, UnsupportedError
from pyadjoint_utils.functional import ReducedFunctional
from pyadjoint_utils.inside.host_function import HostFunction
from pyadjoint_utils.inside.pieces import Native, pieces_of
from pyadjoint_utils.plan import Plan
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.tapes import state_of
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import bare, entered

Call = Callable[[HostFunction, Sequence[Any]], Sequence[Any]]


class Inside:
    """A reduced function for an engine that replays it within its own transformations.

    It is a snapshot: what is neither control nor input keeps the value that it has now, whatever happens to the tape.

    Args:
        rf: the reduced function or functional; its callbacks are not called.
        engine: the engine that will call it.
        mapping: how a user of the engine maps a function over leading axes, such as ``jax.vmap``; None if not at all.

    Attributes:
        names: of every argument, for messages: ``controls[0]``.
        arguments: shape and dtype of every control, then of every input.
        outputs: shape and dtype of every output.
        recorded: the value of every argument at the last evaluation, as an array of the engine.
        constants: what else the pieces start from, by slot.
        pieces: what to run, in order.
        whole: the same as one piece that runs outside of the engine.

    Raises:
        ArgumentTypeError: something else than a reduced function, or a value that is no array.
        NotDifferentiableError: an output of a dtype without a derivative.
        StaleTapeError: the tape was cleared, or is not the one that the outputs were recorded on.
    """

    def __init__(self, rf: Any, engine: Engine, mapping: str | None = None) -> None:
        function = rf._function if isinstance(rf, ReducedFunctional) else rf
        if not isinstance(function, ReducedFunction):
            raise ArgumentTypeError(
                f"A function of {engine.name} is made of a ReducedFunction or ReducedFunctional of this project; got "
                f"{type(rf).__name__}. Write ReducedFunction(outputs, controls)."
            )
        function._check_recorded()
        self.engine, self._scale = engine, getattr(rf, "scale", 1.0)
        self._rows = f"map over leading axes with {mapping}" if mapping else "call it for one row after the other"
        self._controls, self._outputs, self._inputs = function._controls, function._outputs, function._inputs
        values = [getattr(value, "control", value) for value in (*self._controls, *self._inputs)]
        self.names = [f"controls[{k}]" for k in range(len(self._controls))]
        self.names += [f"inputs[{k}]" for k in range(len(self._inputs))]
        self.arguments = tuple([_aval(*pair) for pair in zip(self.names, values, strict=True)])
        self.outputs = tuple([_output_aval(f"outputs[{k}]", y) for k, y in enumerate(self._outputs)])
        self.recorded = [self._own(*pair) for pair in zip(function._last_point(), self.arguments, strict=True)]
        self._take(function, function._variables)

    def _take(self, function: ReducedFunction, variables: list[Any]) -> None:
        """Keep the way from the arguments to the outputs, and what it starts from besides."""
        varied = [bv for bv, aval in zip(variables, self.arguments, strict=True) if aval.differentiable]
        others = [bv for bv in variables if bv not in varied]
        updates = {bv: value for bv, value in state_of(function.tape).updates.items() if bv not in variables}
        plan = Plan(function.tape, function._output_variables, varied, [*others, *updates])
        program = Program(plan)
        slots = dict(zip(plan.sources, program.sources, strict=True))
        constants = program.constants | {slots[bv]: bare(value) for bv, value in updates.items()}
        self._sources, self._results = [slots[bv] for bv in variables], program.outputs
        self.pieces = pieces_of(program, constants, self.engine)
        self.whole = pieces_of(program, constants, None)
        read = {slot for piece in self.pieces for slot in piece.inputs} | set(self._results)
        self.constants = {
            slot: self._own(value, aval)
            for slot, value in constants.items()
            if slot in read and (aval := program.avals[slot]) is not None
        }

    def _own(self, value: Any, aval: Aval) -> Any:
        return entered(value, aval, self.engine)

    # Calls -------------------------------------------------------------------------------------------------------------

    def values(self, controls: Any, inputs: Any = None) -> list[Any]:
        """Return what was given as one entry per argument.

        Args:
            controls: one entry per control, unlisted if the reduced function has a single unlisted one.
            inputs: the same for inputs; None for the values that they had.

        Raises:
            ArgumentValueError: a wrong number of entries.
            ArgumentTypeError: no list where there are several.
        """
        return _listed(controls, self._controls, "controls") + self._input_values(inputs)

    def values_beside(self, own: dict[int, Any], values: Sequence[Any], inputs: Any = None) -> list[Any]:
        """Return one entry per argument where the caller, a layer with parameters, has some of the controls itself.

        Args:
            own: its values, by the control's position.
            values: one value for each of the other controls.
            inputs: as for :meth:`values`.

        Raises:
            ArgumentValueError: a wrong number of values.
        """
        others = [k for k in range(len(self._controls)) if k not in own]
        if len(values) != len(others):
            names = ", ".join([self.names[k] for k in others]) or "no control"
            raise ArgumentValueError(f"This layer is called with one value each for {names}; got {len(values)}.")
        entries = own | dict(zip(others, values, strict=True))
        return [entries[k] for k in range(len(entries))] + self._input_values(inputs)

    def _input_values(self, inputs: Any) -> list[Any]:
        return self.recorded[len(self._controls) :] if inputs is None else _listed(inputs, self._inputs, "inputs")

    def places(self, parameters: Mapping[str, Any]) -> dict[str, int]:
        """Return where the controls stand among the arguments that become parameters of a layer.

        Args:
            parameters: the controls by the names of the parameters.

        Raises:
            ArgumentTypeError: no mapping.
            ArgumentValueError: a name that no layer takes, no control of the reduced function, or one twice.
        """
        if not isinstance(parameters, Mapping):
            raise ArgumentTypeError(
                f"parameters must be controls by name, parameters={{'theta': control}}; got {type(parameters).__name__}."
            )
        places: dict[str, int] = {}
        for name, control in parameters.items():
            if not isinstance(name, str) or not name or not {".", "/"}.isdisjoint(name):
                raise ArgumentValueError(
                    f"The name of a parameter must be a text without '.' and '/'; got {name!r}. Write "
                    "parameters={'theta': control}."
                )
            k = self._position(control)
            if k in places.values():
                raise ArgumentValueError(f"{self.names[k]} can be one parameter; {name!r} would be a second one.")
            places[name] = k
        return places

    def _position(self, control: Any) -> int:
        variable = getattr(control, "block_variable", None)
        for k, own in enumerate(self._controls):
            if own.block_variable is variable:
                return k
        raise ArgumentValueError(
            f"A parameter must be one of the {len(self._controls)} control(s) of the reduced function; got {control!r}."
        )

    def check(self, k: int, shape: Sequence[int], dtype: Any) -> None:
        """Raise unless an argument has the shape and dtype of the recorded one.

        Raises:
            ArgumentValueError: another shape.
            ArgumentTypeError: another dtype.
        """
        name, wanted, given = self.names[k], self.arguments[k], Aval(tuple(shape), np.dtype(dtype))
        if given.shape != wanted.shape:
            raise ArgumentValueError(
                f"{name} must have the shape of the recorded one, {wanted}; got {given}. Reshape or broadcast it first, or "
                f"{self._rows}."
            )
        if given.dtype != wanted.dtype:
            raise ArgumentTypeError(
                f"{name} must have the dtype of the recorded one, {wanted}; got {given}. Cast it first, or record with "
                f"an array of that dtype."
            )

    def replay(
        self, values: Sequence[Any], foreign: Call, constant: Callable[[Any], Any] | None = None, *, whole: bool = False
    ) -> list[Any]:
        """Run the pieces.

        Args:
            values: one value of the engine per argument, of any transformation that it runs.
            foreign: runs a host function on values of the engine, in the engine's terms.
            constant: applied to recorded arrays of the engine before they are used.
            whole: run everything outside of the engine, as one function.

        Returns:
            One value per output.
        """
        fixed = constant or _same
        slots = {slot: fixed(value) for slot, value in self.constants.items()}
        slots.update(zip(self._sources, values, strict=True))
        results: Sequence[Any]
        for piece in self.whole if whole else self.pieces:
            given = [slots[slot] for slot in piece.inputs]
            if isinstance(piece, Native):
                results = piece(self.engine, given, tuple([fixed(c) for c in piece.step.constants]))
            else:
                results = foreign(piece.function, given)
            slots.update(zip(piece.outputs, results, strict=True))
        return [slots[slot] if self._scale == 1.0 else slots[slot] * self._scale for slot in self._results]

    def unsaved(self, advice: str = "Save the values of its controls") -> UnsupportedError:
        """Return the error for who tries to save the function, with what to do first."""
        return UnsupportedError(
            f"A tape as a function of {self.engine.name} cannot be saved as a whole, nor sent to another process: its "
            f"Blocks call functions that exist in this one alone. {advice}, record the tape again there, and wrap it again."
        )

    def __reduce__(self) -> Any:
        raise self.unsaved()

    def delist(self, outputs: Sequence[Any]) -> Any:
        """Return the outputs as the reduced function does: a single one unlisted."""
        return self._outputs.delist(list(outputs))


def _same(value: Any) -> Any:
    return value


def _aval(name: str, value: Any) -> Aval:
    if isinstance(value, ndarray):
        return value.aval
    if isinstance(value, AdjFloat):
        return Aval((), np.dtype(np.float64))
    raise ArgumentTypeError(
        f"{name} is a {type(value).__name__}, which is no array: no engine can hold it. Make the control (or output) an "
        "array, converted in a recorded function."
    )


def _output_aval(name: str, value: Any) -> Aval:
    aval = _aval(name, value)
    if not aval.differentiable:
        raise NotDifferentiableError(
            f"{name} is {aval}, which has no derivative. Leave it out of the outputs: ReducedFunction(outputs, controls)."
        )
    return aval


def _listed(values: Any, likes: Enlist, what: str) -> list[Any]:
    if not likes.listed:
        return [values]
    if not isinstance(values, (list, tuple)):
        raise ArgumentTypeError(f"{what} must be a list of {len(likes)}; got {type(values).__name__}.")
    if len(values) != len(likes):
        raise ArgumentValueError(f"{what} must have one entry for each of the {len(likes)} {what}; got {len(values)}.")
    return list(values)
