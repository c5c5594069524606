"""AdjFloat: as Pyadjoint has it on Pyadjoint's tape, and without a lost derivative on the tapes of this project."""

import operator
import subprocess
import sys

import pytest

from pyadjoint_utils import AdjFloat, Control, ReducedFunctional, get_working_tape, stop_annotating

PLAIN = """
import numpy as np
import pyadjoint
from checkpoint_schedules import Revolve
from pyadjoint import AdjFloat, Block, Control, ReducedFunctional, taylor_test

class Square(Block):
    def __init__(self, a):
        super().__init__()
        self.add_dependency(a)
    def recompute_component(self, inputs, bv, idx, prepared):
        print("inputs", type(inputs[0]).__name__)
        return AdjFloat(inputs[0] ** 2)
    def evaluate_adj_component(self, inputs, adj, bv, idx, prepared=None):
        return 2 * inputs[0] * adj[0]

def fresh():
    pyadjoint.set_working_tape(pyadjoint.Tape())
    pyadjoint.continue_annotation()
    return pyadjoint.get_working_tape(), AdjFloat(1.5)

def said(tape, a, y):
    J = ReducedFunctional(y, Control(a))
    print(y, len(tape.get_blocks()), y.block_variable.output is y)
    print([type(bv).__name__ for block in tape.get_blocks() for bv in block.get_dependencies()])
    print(len({id(bv) for block in tape.get_blocks() for bv in block.get_dependencies()}))
    for value in (J.derivative(), J(AdjFloat(0.7)), J.derivative(), J.hessian(AdjFloat(1.0)), J.tlm(AdjFloat(1.0))):
        print(type(value).__name__, value)
    print([type(v).__name__ for v in (J.controls[0].data(), J.controls[0].tape_value(), y.block_variable.saved_output)])
    print(taylor_test(J, AdjFloat(1.1), AdjFloat(0.3)))

tape, a = fresh()
said(tape, a, np.sin(2.0 * a + 2.0) / 3 - (a - 1) ** 2.0 * 2.0 + 2.0**a)
tape, a = fresh()
print(type(a % 1.0), type(divmod(a, 1.0)[1]), type(a.real), type(a.conjugate()), len(tape.get_blocks()))
tape, a = fresh()
with pyadjoint.stop_annotating():
    y = AdjFloat(a**2)
block = Square(a)
tape.add_block(block)
block.add_output(y.create_block_variable())
J = ReducedFunctional(y * 2.0, Control(a))
print(J(AdjFloat(3.0)), J.derivative())
tape, y = fresh()
tape.enable_checkpointing(Revolve(6, 2))
a = y
for _ in tape.timestepper(iter(range(6))):
    y = y * 1.01 + 0.1 * np.sin(y)
J = ReducedFunctional(y, Control(a))
print(J.derivative(), J(AdjFloat(1.5)), J.derivative(), tape.recompute_count)
"""


def test_on_pyadjoints_own_tape_nothing_changes():
    given, ours = [
        subprocess.run([sys.executable, "-c", first + PLAIN], capture_output=True, text=True, check=True).stdout
        for first in ("", "import pyadjoint_utils\n")
    ]
    assert len(given.splitlines()) > 15
    assert ours == given


UNRECORDED = {
    "a % 0.7": (lambda a: a % 0.7, 1.0),
    "5.0 % a": (lambda a: 5.0 % a, -3.0),  # 5 - 3 a between 5/4 and 5/3
    "a % b": (lambda a: (3.0 * a) % a**2, 3.0 - 2 * 2 * 1.4),  # 3 a - 2 a**2 between 1 and 3/2
    "divmod(a, 0.7)": (lambda a: divmod(a, 0.7)[1], 1.0),
    "divmod(5.0, a)": (lambda a: divmod(5.0, a)[1] + divmod(5.0, a)[0], -3.0),
    "a.real": (lambda a: a.real * 2.0, 2.0),
    "a.conjugate()": (lambda a: a.conjugate() * 2.0, 2.0),
}


@pytest.mark.parametrize(("function", "slope"), UNRECORDED.values(), ids=UNRECORDED)
def test_what_pyadjoint_takes_off_the_tape_stays_on_ours(function, slope, tape):
    a = AdjFloat(1.3)
    y = function(a)
    assert isinstance(y, AdjFloat)
    assert y == function(1.3)
    rf = ReducedFunctional(y, Control(a))
    assert rf(1.4) == pytest.approx(function(1.4))
    assert rf.derivative() == pytest.approx(slope)
    recorded = len(get_working_tape().get_blocks())
    with stop_annotating():
        assert function(a) == y
    assert len(get_working_tape().get_blocks()) == recorded


@pytest.mark.parametrize("operation", [operator.mod, divmod])
def test_a_remainder_is_as_bad_as_that_of_numbers(operation):
    for right, error in ((0.0, ZeroDivisionError), ("x", TypeError)):
        with pytest.raises(error):
            operation(AdjFloat(1.0), right)
