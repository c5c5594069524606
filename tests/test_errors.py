"""Bad input: each error names the rule, where the value stood and what came, and nothing changes."""

import builtins
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from toy_engine import ToyArray, asnumpy, overload_toy, toy

import pyadjoint_utils
from pyadjoint_utils import (
    AdjFloat,
    ArgumentTypeError,
    ArgumentValueError,
    CapturedValueError,
    Control,
    ImmutableError,
    MissingEngineError,
    NotDifferentiableError,
    PyadjointUtilsError,
    ReducedFunction,
    ReducedFunctional,
    RemovedOptionError,
    StaleTapeError,
    UnsupportedError,
    annotate_tape,
    array,
    asarray,
    compute_gradient,
    compute_hessian_action,
    compute_jacobian_action,
    get_engine,
    get_working_tape,
    register_engine,
)

A, P = np.array([0.5, -1.0]), np.array([1.5, 0.3])
total = overload_toy(lambda x: x.sum())
cube = overload_toy(lambda x: x * x * x, name="cube")


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ArgumentTypeError, TypeError),
        (ArgumentValueError, ValueError),
        (NotDifferentiableError, TypeError),
        (ImmutableError, TypeError),
        (CapturedValueError, TypeError),
        (MissingEngineError, ImportError),
        (StaleTapeError, RuntimeError),
        (UnsupportedError, NotImplementedError),
        (RemovedOptionError, TypeError),
    ],
)
def test_each_error_is_also_the_builtin_that_fits(error, builtin):
    assert issubclass(error, builtin)
    assert issubclass(error, PyadjointUtilsError)


def test_the_overview_lists_every_error():
    text = (Path(__file__).parent.parent / "docs" / "overview.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+Error)` \(", text, re.MULTILINE)
    public = [getattr(pyadjoint_utils, name) for name in pyadjoint_utils.__all__ if name.endswith("Error")]
    assert sorted([PyadjointUtilsError.__name__, *listed]) == sorted([error.__name__ for error in public])


class Scene:
    """What the bad calls are made on: two controls, a vector output and a scalar one."""

    def __init__(self):
        self.x, self.s = toy(A), AdjFloat(2.0)
        self.y = cube(self.x)
        self.J = total(self.y) * overload_toy(lambda s: s * s)(self.s)
        self.rf = ReducedFunctional(self.J, [Control(self.x), Control(self.s)])
        self.vector = ReducedFunction(self.y, Control(self.x))
        self.inputs = ReducedFunction(self.J, Control(self.x), inputs=[self.s])


BAD = {
    "too few controls": (
        lambda c: c.rf([toy(P)]),
        ArgumentValueError,
        r"controls must have one entry for each of the 2 controls; got 1",
    ),
    "controls one by one": (
        lambda c: c.rf(toy(P), 2.0),
        ArgumentValueError,
        r"2 controls; got 1. Give one list of 2: rf\(\[x, y\]\), not rf\(x, y\)\.",
    ),
    "controls one by one, to the derivative": (
        lambda c: c.rf.value_and_derivative(toy(P), 2.0),
        ArgumentValueError,
        r"Give one list of 2: rf\(\[x, y\]\)",
    ),
    "controls one by one, to a compiled function": (
        lambda c: c.rf.compile()(toy(P), 2.0),
        ArgumentValueError,
        r"Give one list of 2: rf\(\[x, y\]\)",
    ),
    "a second argument where there are no inputs": (
        lambda c: c.vector(toy(P), toy(P)),
        ArgumentValueError,
        r"0 inputs; got 1. This function has no inputs: leave that argument out.*rf\(\[x, y\]\)",
    ),
    "too many controls": (lambda c: c.vector([toy(P), toy(P)]), ArgumentValueError, r"1 controls; got 2"),
    "shape of a control": (
        lambda c: c.rf([toy(np.ones(3)), 1.0]),
        ArgumentValueError,
        r"controls\[0\].*shape.*\(2,\).*\(3,\)",
    ),
    "shape that would broadcast": (
        lambda c: c.vector(toy(1.0)),
        ArgumentValueError,
        r"controls\[0\].*\(2,\).*\(\)",
    ),
    "shape of an AdjFloat": (
        lambda c: c.rf([toy(P), P]),
        ArgumentValueError,
        r"controls\[1\] must be a number.*\(2,\)",
    ),
    "a string for an array": (
        lambda c: c.vector("text"),
        ArgumentTypeError,
        r"controls\[0\] must be an array like float64\[2\]; got str",
    ),
    "None for an array": (lambda c: c.vector(None), ArgumentTypeError, r"controls\[0\].*NoneType"),
    "a string for an AdjFloat": (
        lambda c: c.rf([toy(P), "text"]),
        ArgumentTypeError,
        r"controls\[1\] must be a real number; got str",
    ),
    "complex for real": (
        lambda c: c.vector(toy(P * 1j)),
        ArgumentTypeError,
        r"controls\[0\] must be real.*complex128",
    ),
    "complex for an AdjFloat": (
        lambda c: c.rf([toy(P), 1j]),
        ArgumentTypeError,
        r"controls\[1\] must be a real number; got complex",
    ),
    "number of directions": (
        lambda c: c.rf.tlm([toy(P)]),
        ArgumentValueError,
        r"directions.*2 controls; got 1",
    ),
    "shape of a direction": (
        lambda c: c.vector.jac_action(toy(np.ones(3))),
        ArgumentValueError,
        r"directions\[0\].*\(3,\)",
    ),
    "direction of the Hessian": (
        lambda c: c.rf.hessian([toy(np.ones(3)), 1.0]),
        ArgumentValueError,
        r"directions\[0\]",
    ),
    "complex direction": (
        lambda c: c.vector.jac_action(toy(P * 1j)),
        ArgumentTypeError,
        r"directions\[0\] must be real",
    ),
    "number of seeds": (
        lambda c: c.vector.adj_jac_action([toy(P), toy(P)]),
        ArgumentValueError,
        r"seeds.*1 outputs; got 2",
    ),
    "shape of a seed": (
        lambda c: c.vector.adj_jac_action(toy(np.ones(3))),
        ArgumentValueError,
        r"seeds\[0\].*\(2,\).*\(3,\)",
    ),
    "no seed of a vector": (lambda c: c.vector.derivative(), NotDifferentiableError, r"real scalar.*float64\[2\]"),
    "complex seed": (
        lambda c: c.vector.adj_jac_action(toy(P * 1j)),
        ArgumentTypeError,
        r"seeds\[0\] must be real",
    ),
    "seed of the Hessian": (
        lambda c: c.vector.hess_action(toy(P), toy(1.0)),
        ArgumentValueError,
        r"seeds\[0\]",
    ),
    "hessian_input": (
        lambda c: c.rf.hessian([toy(P), 1.0], hessian_input=toy(P)),
        ArgumentValueError,
        r"hessian_input\[0\]",
    ),
    "number of inputs": (
        lambda c: c.inputs(toy(P), inputs=[1.0, 2.0]),
        ArgumentValueError,
        r"inputs.*1 inputs; got 2",
    ),
    "kind of an input": (lambda c: c.inputs(toy(P), inputs=["text"]), ArgumentTypeError, r"inputs\[0\]"),
    "integer control": (
        lambda c: Control(array([1, 2])),
        ArgumentTypeError,
        r"floating or complex.*int64\[2\]",
    ),
    "boolean control": (lambda c: Control(array([True])), ArgumentTypeError, "floating or complex"),
    "a string as control": (lambda c: Control("text"), ArgumentTypeError, r"got str.*array\(x\)"),
    "a NumPy array as control": (lambda c: Control(A), ArgumentTypeError, r"got ndarray.*array\(x\)"),
    "update of a wrong shape": (
        lambda c: Control(c.x).update(toy(1.0)),
        ArgumentValueError,
        r"Control\.update.*\(2,\)",
    ),
    "no Control": (
        lambda c: ReducedFunction(c.y, c.x),
        ArgumentTypeError,
        r"controls\[0\] must be a Control.*Control\(x\)",
    ),
    "no controls": (lambda c: ReducedFunction(c.y, []), ArgumentValueError, "at least one control"),
    "the same control twice": (
        lambda c: ReducedFunction(c.y, [Control(c.x), Control(c.x)]),
        ArgumentValueError,
        "twice",
    ),
    "an output off the tape": (
        lambda c: ReducedFunction(3.0, Control(c.x)),
        ArgumentTypeError,
        r"outputs\[0\].*float",
    ),
    "an input off the tape": (
        lambda c: ReducedFunction(c.y, Control(c.x), inputs=3.0),
        ArgumentTypeError,
        r"inputs\[0\].*float",
    ),
    "several functionals": (
        lambda c: ReducedFunctional([c.J, c.J], Control(c.x)),
        ArgumentTypeError,
        "one output.*ReducedFunction",
    ),
    "seed of compute_gradient": (
        lambda c: compute_gradient(c.y, Control(c.x)),
        NotDifferentiableError,
        r"real scalar.*adj_jac_action",
    ),
    "seed of a recorded gradient": (
        lambda c: compute_gradient(c.y, Control(c.x), record=True),
        NotDifferentiableError,
        "real scalar",
    ),
    "direction of the driver": (
        lambda c: compute_jacobian_action(c.y, Control(c.x), 1.0),
        ArgumentValueError,
        r"directions\[0\]",
    ),
    "recorded direction": (
        lambda c: compute_jacobian_action(c.y, Control(c.x), 1.0, record=True),
        ArgumentValueError,
        r"directions\[0\]",
    ),
    "hessian driver": (
        lambda c: compute_hessian_action(c.J, Control(c.x), 1.0),
        ArgumentValueError,
        r"directions\[0\]",
    ),
    "in-place assignment": (lambda c: c.x.__setitem__(0, 1.0), ImmutableError, "immutable"),
    "an object in an overloaded function": (lambda c: cube(object()), TypeError, "unsupported operand"),
    "output that is no array": (
        lambda c: overload_toy(lambda x: "text", name="f")(c.x),
        ArgumentTypeError,
        r"f: output 0.*str.*toy",
    ),
    "argnums out of range": (
        lambda c: overload_toy(lambda x: x, argnums=3, name="f")(c.x),
        ArgumentValueError,
        "f: argnums=3",
    ),
    "shapes that do not fit": (lambda c: c.x + toy(np.ones(3)), ValueError, "broadcast"),
    "no engine": (
        lambda c: get_engine("nonsense"),
        MissingEngineError,
        "no engine called 'nonsense'.*jax.*torch",
    ),
    "no Engine": (lambda c: register_engine("toy"), ArgumentTypeError, "subclass of pyadjoint_utils.Engine"),
}


@pytest.mark.parametrize(("bad", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_an_error_that_changes_nothing(bad, error, message, tape):
    scene = Scene()
    scene.rf([toy(P), 3.0])
    scene.vector(toy(P))
    blocks, before = len(tape.get_blocks()), [asnumpy(g).tolist() for g in scene.rf.derivative()]
    with pytest.raises(error, match=message):
        bad(scene)
    assert len(tape.get_blocks()) == blocks
    assert get_working_tape() is tape
    assert annotate_tape()
    assert [asnumpy(g).tolist() for g in scene.rf.derivative()] == before
    assert before == [(3 * P**2 * 9.0).tolist(), pytest.approx(6.0 * np.sum(P**3))]
    np.testing.assert_allclose(asnumpy(scene.vector.jac_action(toy(A))), 3 * P**2 * A)


class FakeOverloaded(AdjFloat.__mro__[1]):
    """A value of another package, without arrays."""


def test_the_path_of_an_argument_is_named(tape):
    f = overload_toy(lambda tree, *, extra=None: tree["a"][0], name="f")
    stranger = FakeOverloaded()
    with pytest.raises(ArgumentTypeError, match=r"f: argument args\[0\]\['b'\]\[1\].*FakeOverloaded"):
        f({"a": [toy(A)], "b": [toy(A), stranger]})
    with pytest.raises(ArgumentTypeError, match=r"f: argument kwargs\['extra'\]\['k'\].*FakeOverloaded"):
        f({"a": [toy(A)]}, extra={"k": stranger})
    assert len(tape.get_blocks()) == 0


@pytest.mark.parametrize("name", ["jax", "torch", "tensorflow", "autograd"])
def test_an_engine_that_is_not_installed_is_named_with_its_extra(name, monkeypatch):
    from pyadjoint_utils import registry

    original = builtins.__import__

    def without(module, *args, **kwargs):
        if module.partition(".")[0] == name and not module.startswith("bridges"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(module, *args, **kwargs)

    monkeypatch.setattr(registry, "_loaded", {k: v for k, v in registry._loaded.items() if k != name})
    for module in [m for m in sys.modules if m == f"bridges.{name}"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingEngineError, match=rf"engine '{name}'.*pip install 'pyadjoint-utils\[{name}\]'"):
        get_engine(name)
    assert name not in registry._loaded


def test_a_foreign_distribution_of_the_name_bridges_is_recognised(tmp_path):
    package = tmp_path / "bridges"
    package.mkdir()
    (package / "__init__.py").write_text("'''Something else.'''\n")
    program = """
        import pyadjoint_utils
        try:
            pyadjoint_utils.overload_jax
        except pyadjoint_utils.MissingEngineError as error:
            print(error)
    """
    root = str(Path(pyadjoint_utils.__file__).parents[1])
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {root!r}]\n" + textwrap.dedent(program),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "not the one of pyadjoint-utils" in run.stdout
    assert str(package) in run.stdout
    assert "pip uninstall bridges" in run.stdout


def test_a_subclass_of_an_engines_array_enters_as_that_array_and_a_stranger_is_refused():
    class Special(ToyArray):
        __slots__ = ()

    class Stranger:
        shape, dtype = (2,), np.dtype(float)

    x = asarray(Special(A))
    assert (x.engine, type(x.value)) == ("toy", ToyArray)
    with pytest.raises(ArgumentTypeError, match="array of numbers; got Stranger"):
        asarray(Stranger())
