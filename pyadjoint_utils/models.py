"""Parameters of models, whichever engine they were built with."""

import sys
from typing import Any

import optree

from pyadjoint_utils.errors import ArgumentTypeError
from pyadjoint_utils.registry import engine_names, get_engine
from pyadjoint_utils.values import array


def parameters(model: Any) -> Any:
    """Return the trainable parameters of a model as values that can be recorded.

    Args:
        model: a :class:`torch.nn.Module` or a Keras model.

    Returns:
        A container of :class:`ndarray` copies, as the overloaded model takes it: ``f = overload_torch(module)``,
        ``f(parameters(module), x)``.

    Raises:
        ArgumentTypeError: no installed engine knows the model.

    Example:
        >>> import torch
        >>> from pyadjoint_utils import parameters
        >>> sorted(parameters(torch.nn.Linear(2, 1)))
        ['bias', 'weight']
    """
    for name in engine_names():
        if name in sys.modules:  # a model's engine is imported already
            found = get_engine(name).parameters(model)
            if found is not None:
                return optree.tree_map(array, found)
    raise ArgumentTypeError(
        f"parameters() takes a torch.nn.Module or a Keras model; got {type(model).__name__}. "
        "For other models pass their arrays yourself, each wrapped with array()."
    )
