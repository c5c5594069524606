"""A working tape and an annotation flag for every thread, and what only one thread at a time may do."""

import ast
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyadjoint
import pyadjoint.overloaded_function
import pytest
from engines import NAMES, namespace
from toy_engine import asnumpy, overload_toy, toy

import pyadjoint_utils
from pyadjoint_utils import (
    AdjFloat,
    Block,
    Control,
    ReducedFunction,
    ReducedFunctional,
    StaleTapeError,
    Tape,
    UnsupportedError,
    annotate_tape,
    array,
    compute_gradient,
    continue_annotation,
    get_working_tape,
    minimize,
    no_annotations,
    overload,
    parameters,
    pause_annotation,
    set_working_tape,
    stop_annotating,
    to_adjfloat,
)

cube = overload_toy(lambda x: x * x * x)
total = overload_toy(lambda x: x.sum())
THREADS = 8
ROOT = Path(pyadjoint_utils.__file__).parent
OURS = "pyadjoint_utils.annotation"


def in_thread(work, *args):
    """What a new thread returns or raises."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *args).result()


@pytest.fixture
def restless():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def closed_form(x, c):
    """``sum(g**2)`` with ``g = c sin(c sin(c sin(x)))``, its gradient and its second derivatives."""
    g, g1, g2 = x, np.ones_like(x), np.zeros_like(x)
    for _ in range(3):
        g, g1, g2 = c * np.sin(g), c * np.cos(g) * g1, c * (np.cos(g) * g2 - np.sin(g) * g1**2)
    return (g**2).sum(), 2 * g * g1, 2 * (g1**2 + g * g2)


def record_and_check(step, c, shared, seed):
    """Record a tape of this thread's own, and compare its derivatives at another point with closed forms."""
    rng = np.random.default_rng(seed)
    start, point, direction = rng.uniform(0.2, 1.2, (3, 4))
    with set_working_tape() as tape:
        x = y = array(start)
        for _ in range(3):
            y = step(y, shared) * c
        rf = ReducedFunctional((y * y).sum(), Control(x))
        assert get_working_tape() is tape
    value, gradient, curvature = closed_form(point, c)
    np.testing.assert_allclose(float(rf(array(point))), value, rtol=1e-12)
    np.testing.assert_allclose(rf.derivative().numpy(), gradient, rtol=1e-12)
    np.testing.assert_allclose(rf.hessian(array(direction)).numpy(), curvature * direction, rtol=1e-10)
    np.testing.assert_allclose(float(rf.tlm(array(direction))), gradient @ direction, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_threads_record_and_differentiate_their_own_tapes(name, restless, tape):
    e = namespace(name)
    step = e.overload(lambda x, s: e.sin(x) * s)  # prepared by eight threads at once
    shared = array(np.ones(4))  # a constant of all tapes

    def work(k):
        for i in range(12):
            record_and_check(step, 0.5 + 0.1 * k, shared, 1000 * k + i)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert tape.get_blocks() == []
    assert annotate_tape()


def test_a_thread_records_while_others_differentiate(restless, tape):
    """Sweeps switch annotation off; that of the thread which records must not notice."""
    x = toy([0.7])
    stop = threading.Event()

    def work():
        with set_working_tape():
            z = toy([1.5])
            rf = ReducedFunctional(total(cube(z)), Control(z))
        while not stop.is_set():
            rf(toy([2.0]))
            np.testing.assert_allclose(asnumpy(rf.derivative()), [12.0])

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(work) for _ in range(2)]
        y = x
        for _ in range(300):
            y = y * 1.01
        stop.set()
        for future in running:
            future.result()
    assert len(tape.get_blocks()) == 300
    np.testing.assert_allclose(asnumpy(compute_gradient(total(y), Control(x))), [1.01**300], rtol=1e-12)


def test_pyadjoints_own_context_managers_leave_other_threads_alone(restless, tape):
    switched = 0

    @pyadjoint.no_annotations
    def evaluated():
        assert not pyadjoint.tape.annotate_tape()

    def work():
        for _ in range(2000):
            evaluated()
            with pyadjoint.stop_annotating():
                pass
            with pyadjoint.set_working_tape(pyadjoint.Tape()) as mine:
                assert pyadjoint.get_working_tape() is mine
            pyadjoint.pause_annotation()
            pyadjoint.continue_annotation()

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(work) for _ in range(2)]
        while not all(future.done() for future in running):
            switched += not (pyadjoint.annotate_tape() and annotate_tape() and pyadjoint.get_working_tape() is tape)
        for future in running:
            future.result()
    assert switched == 0


def test_threads_share_a_module_of_torch(restless):
    torch = pytest.importorskip("torch")
    from pyadjoint_utils import overload_torch

    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.0)).double()
    f = overload_torch(net)  # torch writes the parameters of a call into the module

    def work(k):
        x = np.arange(3.0)
        for i in range(20):
            with set_working_tape():
                params = {name: array(np.full(p.shape, k + i, float)) for name, p in parameters(net).items()}
                rf = ReducedFunctional(f(params, array(x)).sum(), [Control(p) for p in params.values()])
            assert float(rf.functional) == 2 * (k + i) * 4
            point = [array(np.full(p.shape, float(k))) for p in params.values()]
            assert float(rf(point)) == 2 * k * 4
            np.testing.assert_array_equal(rf.derivative()[0].numpy(), [x, x])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))


# What a thread sees ----------------------------------------------------------------------------------------------------


def test_a_new_thread_has_a_fresh_tape_and_annotation_on(tape):
    pause_annotation()

    def work():
        assert annotate_tape()
        mine = get_working_tape()
        x = toy([2.0])
        y = cube(x)
        assert get_working_tape() is mine
        assert len(mine.get_blocks()) == 1
        assert isinstance(mine, Tape)
        np.testing.assert_allclose(asnumpy(compute_gradient(total(y), Control(x))), [12.0])
        pause_annotation()
        return mine

    assert in_thread(work) is not tape
    assert get_working_tape() is tape
    assert not annotate_tape()


IMPORTED_ELSEWHERE = """
import threading
import pyadjoint
from pyadjoint import AdjFloat

pyadjoint.set_working_tape(pyadjoint.Tape())
pyadjoint.continue_annotation()
tape, a = pyadjoint.get_working_tape(), AdjFloat(2.0)
b = a * a
imported, done = threading.Event(), threading.Event()

def work():
    import pyadjoint_utils
    assert pyadjoint_utils.get_working_tape() is not tape
    imported.set()
    {wait}

thread = threading.Thread(target=work)
thread.start()
imported.wait()
{join}
c = b * 3.0
from pyadjoint_utils import Control, ReducedFunctional
assert pyadjoint.get_working_tape() is tape
assert ReducedFunctional(c, Control(a)).derivative() == 12.0
done.set()
"""


@pytest.mark.parametrize(("wait", "join"), [("done.wait()", ""), ("", "thread.join()")], ids=["alive", "ended"])
def test_an_import_in_another_thread_takes_no_tape_from_the_main_one(wait, join):
    subprocess.run([sys.executable, "-c", IMPORTED_ELSEWHERE.format(wait=wait, join=join)], check=True, timeout=60)


def test_an_import_in_a_thread_where_nobody_recorded_before():
    program = """
import threading

def work():
    from pyadjoint_utils import AdjFloat, Control, ReducedFunctional
    a = AdjFloat(2.0)
    print(ReducedFunctional(a * a, Control(a)).derivative())

thread = threading.Thread(target=work)
thread.start()
thread.join()
work()
"""
    run = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)
    assert run.stdout.split() == ["4.0", "4.0"]


def test_in_the_first_thread_pyadjoints_functions_see_the_same(tape):
    for ours, theirs in ((annotate_tape, pyadjoint.annotate_tape), (get_working_tape, pyadjoint.get_working_tape)):
        assert ours() is theirs()
    pyadjoint.tape.pause_annotation()
    assert not annotate_tape()
    continue_annotation()
    assert pyadjoint.annotate_tape()
    with stop_annotating():
        assert not pyadjoint.annotate_tape()
        with no_annotations:
            pass
        assert not annotate_tape()
    with pyadjoint.set_working_tape(pyadjoint.Tape()) as plain:
        assert get_working_tape() is plain is pyadjoint.tape._working_tape
    with set_working_tape() as mine:
        assert pyadjoint.get_working_tape() is mine
    assert pyadjoint.get_working_tape() is tape


def test_annotate_tape_takes_the_keyword_out():
    for function in (annotate_tape, pyadjoint.annotate_tape):
        kwargs = {"annotate": False, "other": 1}
        assert not function(kwargs)
        assert kwargs == {"other": 1}
        assert function({"annotate": True})
        pause_annotation()
        assert not function({"annotate": True})
        continue_annotation()


def test_stop_annotating_modifies_a_value_as_in_pyadjoint():
    x = toy([1.0])
    before = x.block_variable
    context = stop_annotating(modifies=x)
    with context, pytest.raises(ValueError, match="nested"), context:
        pass
    assert annotate_tape()
    assert x.block_variable is not before
    before = x.block_variable
    with stop_annotating(modifies=[x]):
        pass
    assert x.block_variable is not before


def test_the_flag_survives_exceptions_in_every_thread():
    def work():
        with pytest.raises(ZeroDivisionError), set_working_tape(), stop_annotating():
            raise ZeroDivisionError
        return annotate_tape()

    assert in_thread(work)
    work()
    assert annotate_tape()


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.stem)
def test_nothing_of_ours_asks_pyadjoint_whether_to_record(path):
    """Its function refuses in a second thread, for AdjFloat and other packages."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyadjoint") and node.module != OURS:
            assert "annotate_tape" not in [alias.name for alias in node.names]


# Two threads, one tape -------------------------------------------------------------------------------------------------


def test_two_threads_do_not_share_a_working_tape(tape):
    with pytest.raises(StaleTapeError, match="is the working tape of thread 'MainThread'"):
        in_thread(set_working_tape, tape)
    with pytest.raises(StaleTapeError, match="set_working_tape"):
        in_thread(pyadjoint.set_working_tape, tape)
    with set_working_tape():
        in_thread(set_working_tape, tape)  # nobody's now


def test_a_tape_of_another_thread_is_evaluated_anywhere():
    pytest.importorskip("autograd")

    def work():
        with set_working_tape():
            x, s = array([2.0]), array([5.0])
            return ReducedFunctional((x**3 * s).sum(), Control(x), inputs=s), ReducedFunction(x, Control(x))

    rf, identity = in_thread(work)
    assert float(rf(array([3.0]), inputs=array([10.0]))) == 270.0
    assert float(rf.derivative()) == 270.0
    assert float(in_thread(rf.hessian, array([1.0]))) == 180.0
    assert float(rf._function.jac_matrix()) == 270.0
    assert float(identity(array([3.0]))) == 3.0
    assert float(identity.jac_action(array([1.0]))) == 1.0
    assert float(identity.jac_matrix()) == 1.0


def test_two_threads_do_not_differentiate_on_one_tape_at_once():
    inside, done = threading.Event(), threading.Event()

    def wait(*args):
        inside.set()
        assert done.wait(10)

    x = toy([2.0])
    rf = ReducedFunction(total(cube(x)), Control(x), eval_cb_post=wait)
    other = ReducedFunction(total(cube(x)), Control(x))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(rf, toy([3.0]))
        assert inside.wait(10)
        for action in (lambda: other(toy([1.0])), other.derivative, lambda: other.hessian(toy([1.0]))):
            with pytest.raises(StaleTapeError, match="Another thread"):
                action()
        done.set()
        assert float(running.result()) == 27.0
    assert float(other(toy([1.0]))) == 1.0
    np.testing.assert_allclose(asnumpy(rf.derivative()), [27.0])


# Values that cross threads ---------------------------------------------------------------------------------------------


def test_a_value_may_be_a_control_of_several_threads_at_once(restless):
    x = array([0.5, 2.0])
    wait = threading.Barrier(4)

    def work(k):
        with set_working_tape():
            wait.wait(10)
            rf = ReducedFunctional((x * x * float(k)).sum(), Control(x))
            for i in range(50):
                point = array([float(i), float(k)])
                rf(point)
                np.testing.assert_array_equal(rf.derivative().numpy(), 2.0 * k * point.numpy())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(1, 5)))


def test_a_value_that_another_thread_computed_is_refused(tape):
    x = toy([2.0])
    y = in_thread(cube, x)
    for use in (lambda: y * x, lambda: cube(y), lambda: array(y), lambda: to_adjfloat(total(y))):
        with pytest.raises(StaleTapeError, match="another thread recorded"):
            use()
    assert tape.get_blocks() == []
    z = cube(x) + total(array(y.value))
    np.testing.assert_allclose(asnumpy(compute_gradient(total(z), Control(x))), [12.0])
    with stop_annotating():
        np.testing.assert_allclose(asnumpy(y * x), [16.0])


def test_a_control_of_another_thread_is_refused_where_it_would_give_zero():
    x, s = toy([2.0]), toy([3.0])
    control = Control(x)

    def work():
        with set_working_tape() as tape:
            y = total(cube(x) * s)
            with pytest.raises(StaleTapeError, match="in the thread that records"):
                ReducedFunctional(y, control)
            return y, tape, Control(x)

    y, tape, own = in_thread(work)
    np.testing.assert_allclose(asnumpy(ReducedFunctional(y, own, tape=tape).derivative()), [36.0])
    with pytest.raises(StaleTapeError, match="in the thread that records"):
        ReducedFunctional(y, own, tape=tape, inputs=s)


def test_a_derivative_is_not_recorded_in_another_thread(tape):
    x = toy([2.0])
    y, control = total(cube(x)), Control(x)
    gradient = compute_gradient(y, control, record=True)
    with set_working_tape(), pytest.raises(StaleTapeError, match="another thread recorded"):
        in_thread(lambda: compute_gradient(y, control, tape=tape, record=True))
    np.testing.assert_allclose(asnumpy(compute_gradient(total(gradient), control)), [12.0])


# AdjFloat and Blocks of other packages ---------------------------------------------------------------------------------


class Squared(Block):
    """A Block as other packages write them."""

    def __init__(self, x):
        super().__init__()
        self.add_dependency(x)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return inputs[0] * inputs[0]

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return 2.0 * inputs[0] * adj_inputs[0]


squared = pyadjoint.overloaded_function.overload_function(lambda x: x * x, Squared)


def squared_by_hand(x):
    with stop_annotating():
        y = x * x
    if annotate_tape():
        block = Squared(x)
        get_working_tape().add_block(block)
        block.add_output(y.create_block_variable())
    return y


OF_OTHERS = {
    "operator": lambda: AdjFloat(2.0) * 3.0,
    "numpy": lambda: np.sin(AdjFloat(2.0)),
    "argument": lambda: overload(lambda x: x * x, "toy")(AdjFloat(2.0)),
    "conversion": lambda: to_adjfloat(toy(2.0)),
    "array": lambda: array(AdjFloat(2.0)),
    "function": lambda: squared(AdjFloat(2.0)),
    "block": lambda: squared_by_hand(toy(2.0)),
}


@pytest.mark.parametrize("use", OF_OTHERS.values(), ids=OF_OTHERS)
def test_a_second_thread_is_refused_while_the_first_records(use, tape):
    refused = pytest.raises(UnsupportedError, match="'MainThread' records")
    with refused:
        in_thread(use)
    with stop_annotating(), refused:  # as in a sweep: it would be lost, as the flag of the process is off
        in_thread(use)
    assert tape.get_blocks() == []
    with set_working_tape(pyadjoint.Tape()) as plain, refused:
        in_thread(use)
    assert plain.get_blocks() == []

    def unrecorded():
        with stop_annotating():
            use()

    in_thread(unrecorded)
    use()
    assert len(tape.get_blocks()) == 1


@pytest.mark.parametrize("use", OF_OTHERS.values(), ids=OF_OTHERS)
def test_a_second_thread_may_when_the_first_does_not_record(use, tape):
    pause_annotation()

    def work():
        with set_working_tape() as mine:
            use()
            a = AdjFloat(3.0)
            rf = ReducedFunctional(a * a, Control(a))
            rf(4.0)
            with pytest.raises(UnsupportedError):
                in_thread(use)
            return len(mine.get_blocks()), float(rf.derivative())

    assert in_thread(work) == (2, 8.0)
    assert tape.get_blocks() == []
    assert get_working_tape() is tape
    assert not annotate_tape()
    continue_annotation()
    use()  # the other one has ended
    assert len(tape.get_blocks()) == 1
    assert pyadjoint.tape._working_tape is tape


def test_what_a_thread_may_not_record_it_may_not_evaluate():
    a = AdjFloat(3.0)
    rf = ReducedFunctional(a * a, Control(a))
    for action in (lambda: rf(4.0), rf.derivative, lambda: rf.hessian(1.0), lambda: rf.tlm(1.0)):
        with pytest.raises(UnsupportedError, match=r"An AdjFloat|AdjFloatExprBlock"):
            in_thread(action)
    assert float(rf(5.0)) == 25.0
    assert float(rf.derivative()) == 10.0


def test_a_block_class_may_say_that_it_runs_in_any_thread():
    class Anywhere(Squared):
        any_thread = True

    def work():
        with set_working_tape():
            x = toy(3.0)
            with stop_annotating():
                y = x * x
            block = Anywhere(x)
            get_working_tape().add_block(block)
            block.add_output(y.create_block_variable())
            return float(compute_gradient(y, Control(x)))

    assert in_thread(work) == 6.0


def test_optimization_in_threads(restless):
    def work(k):
        solve = minimize if k % 2 else pyadjoint.minimize
        for _ in range(3):
            with set_working_tape():
                x = array([0.0, 0.0])
                rf = ReducedFunctional(((x - float(k)) ** 2).sum(), Control(x))
                np.testing.assert_allclose(solve(rf, method="L-BFGS-B").numpy(), [k, k], atol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert annotate_tape()
