"""Matrices of values in the memory of an accelerator stay there; here the CPU's memory stands for one."""

import contextlib

import numpy as np
import pytest

from pyadjoint_utils import (
    Control,
    ReducedFunction,
    ReducedFunctional,
    array,
    get_engine,
    get_working_tape,
    memory,
    overload,
)
from pyadjoint_utils.jacobians import seeds

all_engines = pytest.mark.parametrize("engine", ["jax", "torch", "tensorflow"])
X, W = np.linspace(-0.4, 0.9, 6).reshape(2, 3), np.linspace(0.2, 1.5, 6).reshape(2, 3)


def recorded(engine, wide):
    pytest.importorskip(engine)
    owner = get_engine(engine)
    sin, stack, total = owner.function("sin"), owner.function("concatenate"), owner.function("sum")
    x, w = [array(owner.enter(v)) for v in (X, W)]
    f = lambda x, w: stack([sin(x) * w, x * x * w]) if wide else total(sin(x) * w, 1)
    y = overload(f, engine)(x, w)
    return y, [Control(x), Control(w)]


@pytest.fixture
def elsewhere(monkeypatch):
    """A context in which everything is on a device, and what leaves it raises."""

    def raises(self, value):
        raise AssertionError("A matrix left the device.")

    @contextlib.contextmanager
    def context(engine):
        with monkeypatch.context() as patch:
            patch.setattr(seeds, "on_host", lambda value: False)
            patch.setattr(type(get_engine(engine)), "to_numpy", raises)
            yield

    return context


@all_engines
@pytest.mark.parametrize("wide", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("parts", [False, True], ids=["at once", "in parts"])
def test_jacobians_do_not_pass_through_numpy(engine, wide, parts, elsewhere, monkeypatch):
    y, controls = recorded(engine, wide)
    rf = ReducedFunction(y, controls)
    expected = [block.numpy() for block in rf.jac_matrix()]
    if parts:
        monkeypatch.setattr(memory, "SWEEP", 1)
    blocks = len(get_working_tape().get_blocks())
    with elsewhere(engine):
        found = rf.jac_matrix()
    assert len(get_working_tape().get_blocks()) == blocks
    for block, wanted in zip(found, expected, strict=True):
        assert block.engine == engine
        np.testing.assert_array_equal(block.numpy(), wanted)
    assert np.any(expected[0])


@all_engines
def test_hessians_do_not_pass_through_numpy(engine, elsewhere):
    y, controls = recorded(engine, True)
    J = ReducedFunctional((y * y).sum(), controls)
    expected = [[block.numpy() for block in row] for row in J.hess_matrix()]
    with elsewhere(engine):
        found = J.hess_matrix()
    for row, wanted in zip(found, expected, strict=True):
        for block, other in zip(row, wanted, strict=True):
            np.testing.assert_array_equal(block.numpy(), other)
