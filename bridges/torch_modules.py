"""Modules of PyTorch as functions of their parameters, replayed as they were recorded."""

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from bridges.torch_kernels import ONE_AT_A_TIME
from pyadjoint_utils.engine import Engine
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError
from pyadjoint_utils.overloading import Overloaded
from pyadjoint_utils.running import running_engine


def random_state() -> list[torch.Tensor]:
    """Return the state of the global random generator of every device in use."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *devices]


def set_random_state(states: Sequence[torch.Tensor]) -> None:
    """Put the generators back into states that :func:`random_state` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


class _Recording(threading.local):
    """What the user's own call of a module leaves behind: its running statistics and the state of the generator."""

    def __init__(self) -> None:
        self.effects: dict[str, Any] | None = None


_recording = _Recording()


def _one_at_a_time(f: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        with ONE_AT_A_TIME:
            return f(*args, **kwargs)

    return call


def _replayed(module: torch.nn.Module) -> Callable[..., Any]:
    """A module as a function of its parameters without side effects."""

    @_one_at_a_time
    def run(params: Any, *args: Any, _state: Any = None, **kwargs: Any) -> Any:
        places = _places(module)
        if _state is None:  # a plain call in the user's own graph, or inside another overloaded function
            mine = _copies(module.named_buffers()) if running_engine() is not None else {}
            return _call(module, {**mine, **params}, places, args, kwargs)
        constants, statistics, random, training = _state
        statistics = _copies(statistics.items())
        tensors = {**constants, **statistics, **params}
        modes, before = [m.training for m in module.modules()], random_state()
        try:
            _set_modes(module, training)
            if random:
                set_random_state(random)
            y = _call(module, tensors, places, args, kwargs)
            if _recording.effects is not None:
                after = {name: tensors[name].detach() for name in statistics}
                _recording.effects.update(statistics=after, random=random_state() if random else None)
            return y
        finally:
            _set_modes(module, modes)
            if random:
                set_random_state(before)

    run.__name__ = type(module).__name__
    run.__doc__ = type(module).__doc__
    return run


def _places(module: torch.nn.Module) -> dict[str, list[str]]:
    """Every name of a tensor of the module, and the names of all places that hold the same tensor, each place once."""
    names: dict[int, list[str]] = {}
    places: dict[int, dict[tuple[int, str], str]] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for name, t in (*owner._parameters.items(), *owner._buffers.items()):
            if t is None:
                continue
            full = f"{path}.{name}" if path else name
            names.setdefault(id(t), []).append(full)
            places.setdefault(id(t), {}).setdefault((id(owner), name), full)
    return {name: list(places[key].values()) for key, group in names.items() for name in group}


def _call(
    module: torch.nn.Module, tensors: dict[str, Any], places: dict[str, list[str]], args: Any, kwargs: Any
) -> Any:
    # functional_call's own tie_weights leaves a module that is used under two names with the wrong tensors.
    untied = {place: t for name, t in tensors.items() for place in places[name]}
    y = torch.func.functional_call(module, untied, args, kwargs, tie_weights=False)
    # Buffers that the module has bound anew are in there.
    tensors.update({name: untied[places[name][0]] for name in tensors})
    return y


def _copies(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in tensors}


def _set_modes(module: torch.nn.Module, modes: Iterable[bool]) -> None:
    for m, mode in zip(module.modules(), modes, strict=True):
        m.training = mode


class OverloadedModule(Overloaded):
    """A module as an overloaded function ``f(params, *args, **kwargs)``.

    What is not in ``params`` (buffers, frozen parameters), the training mode of every submodule and, in training mode,
    the state of torch's random generator belong to the record: replays and derivatives use them as they were. The user's
    own call changes running statistics and the generator once, as a call of the module does; replays change nothing.
    """

    def __init__(self, module: torch.nn.Module, engine: Engine, **options: Any) -> None:
        super().__init__(_replayed(module), engine, **options)
        self.module = module

    @_one_at_a_time
    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        engine, module = self.engine, self.module
        if not isinstance(params, dict):
            raise ArgumentTypeError(
                f"{self.name} takes its parameters first, as a dict from name to array; got {type(params).__name__}. "
                "Write f(parameters(module), x)."
            )
        leaves, _ = engine.flatten((params, args, kwargs))
        if running_engine() is engine or any(map(engine.is_tracer, leaves)):
            return super().__call__(params, *args, **kwargs)
        training = tuple([m.training for m in module.modules()])
        random = random_state() if any(training) else []
        given = self._given(params)
        constants = {name: p.detach() for name, p in module.named_parameters() if name not in given}
        statistics = {name: b.detach() for name, b in module.named_buffers() if name not in given}
        before, _recording.effects = _recording.effects, {}
        try:
            result = super().__call__(params, *args, _state=(constants, statistics, random, training), **kwargs)
            effects = _recording.effects
        finally:
            _recording.effects = before
        with torch.no_grad():
            for name, after in effects["statistics"].items():
                # Not by version counters: batch_norm updates its statistics without telling them.
                if not torch.equal(buffer := module.get_buffer(name), after):
                    buffer.copy_(after)
        if effects["random"]:
            set_random_state(effects["random"])
        return result

    def _given(self, params: dict[str, Any]) -> set[str]:
        """The places of the parameters that the caller gives."""
        places = _places(self.module)
        unknown = sorted(set(params) - set(places))
        if unknown:
            raise ArgumentValueError(
                f"{self.name} has no parameter {unknown[0]!r}. It has: {', '.join(places) or 'none'}. "
                "Write f(parameters(module), x)."
            )
        return {place for name in params for place in places[name]}
