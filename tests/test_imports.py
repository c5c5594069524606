"""What importing costs and loads, and who may import whom."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyadjoint_utils

ROOT = Path(pyadjoint_utils.__file__).parents[1]
ENGINES = {"jax", "jaxlib", "torch", "tensorflow", "keras", "autograd", "onnx", "onnxruntime"}
CORE = sorted((ROOT / "pyadjoint_utils").rglob("*.py"))
BRIDGES = sorted((ROOT / "bridges").rglob("*.py"))


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def imported(path):
    """Every module that a file imports anywhere, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.module, node.lineno
            yield from [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]


def test_importing_loads_no_engine_and_no_bridge():
    loaded = run(
        "import sys, pyadjoint_utils; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ).split()
    assert "pyadjoint_utils" in loaded
    assert set(loaded) & (ENGINES | {"bridges", "matplotlib", "petsc4py", "tqdm"}) == set()


def test_scipys_expensive_parts_are_imported_where_they_are_used():
    before = "import sys, pyadjoint; there = set(sys.modules); import pyadjoint_utils; "
    program = before + "print([m for m in ('scipy.optimize', 'scipy.sparse') if m in sys.modules and m not in there])"
    assert run(program) == "[]"


def test_importing_makes_a_tape_and_turns_annotation_on():
    program = (
        "import pyadjoint; assert pyadjoint.get_working_tape() is None; import pyadjoint_utils as p; "
        "print(type(p.get_working_tape()) is p.Tape, p.annotate_tape())"
    )
    assert run(program) == "True True"


def test_importing_leaves_a_tape_that_is_there():
    program = (
        "import pyadjoint; t = pyadjoint.Tape(); pyadjoint.set_working_tape(t); import pyadjoint_utils; "
        "print(pyadjoint.get_working_tape() is t, pyadjoint.annotate_tape())"
    )
    assert run(program) == "True False"


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_imports_neither_engines_nor_bridges(path):
    wrong = [(name, line) for name, line in imported(path) if name.partition(".")[0] in ENGINES | {"bridges"}]
    assert wrong == []


@pytest.mark.parametrize("path", BRIDGES, ids=lambda path: path.stem)
def test_a_bridge_imports_its_own_engine_alone(path):
    own = path.stem.partition("_")[0]
    packages = {name.partition(".")[0] for name, _ in imported(path)}
    others = ENGINES - {
        own,
        *{"jax": ("jaxlib",), "tensorflow": ("keras",), "onnx": ("onnxruntime",)}.get(own, ()),
    }
    assert packages & others == set()
    bridges = {name.split(".")[1] for name, _ in imported(path) if name.startswith("bridges.")}
    assert all(name.partition("_")[0] == own for name in bridges)


def test_only_its_bridge_imports_an_engine():
    homes = {}
    for path in BRIDGES:
        for name, _ in imported(path):
            if name.partition(".")[0] in ENGINES:
                homes.setdefault(name.partition(".")[0], set()).add(path.stem.partition("_")[0])
    assert homes
    assert all(len(home) == 1 for home in homes.values())


@pytest.mark.parametrize("path", [*CORE, *BRIDGES], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_there_are_no_star_imports(path):
    stars = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    assert not any(alias.name == "*" for n in stars for alias in n.names)


def test_every_public_name_resolves():
    assert len(set(pyadjoint_utils.__all__)) == len(pyadjoint_utils.__all__)
    for name in pyadjoint_utils.__all__:
        assert getattr(pyadjoint_utils, name) is not None
    assert pyadjoint_utils.__all__ == sorted(pyadjoint_utils.__all__)


def test_every_public_name_has_documentation():
    ours = [getattr(pyadjoint_utils, name) for name in pyadjoint_utils.__all__]
    ours = [value for value in ours if getattr(value, "__module__", "").startswith("pyadjoint_utils")]
    assert ours
    assert [value for value in ours if not value.__doc__] == []


def test_what_is_defined_here_and_imported_at_the_top_is_public():
    public = {
        name
        for name, value in vars(pyadjoint_utils).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("pyadjoint_utils.")
    }
    assert public - set(pyadjoint_utils.__all__) - set(pyadjoint_utils._IN_BRIDGES) <= {"install_on_adjfloat"}


def test_no_public_name_is_also_a_submodule():
    submodules = {module.name for module in pkgutil.iter_modules(pyadjoint_utils.__path__)}
    public = {*pyadjoint_utils.__all__, *pyadjoint_utils._IN_BRIDGES}
    assert public & submodules == set()


def test_names_in_bridges_are_known_without_loading_them():
    assert set(pyadjoint_utils._IN_BRIDGES) <= set(dir(pyadjoint_utils))
    assert set(pyadjoint_utils._IN_BRIDGES.values()) <= set(pyadjoint_utils.engine_names())


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pyadjoint_utils.nonsense
    assert not hasattr(pyadjoint_utils, "__wrapped__")


def test_crikits_module_of_jax_names_is_a_thin_face():
    module = importlib.import_module("pyadjoint_utils.jax_adjoint")
    for name in ("array", "asarray", "ndarray", "to_adjfloat", "to_jax"):
        assert getattr(module, name) is getattr(pyadjoint_utils, name)
    for name in ("set_default_dtype", "get_default_dtype"):
        with pytest.raises(pyadjoint_utils.RemovedOptionError, match="dtype= to array"):
            getattr(module, name)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = module.nonsense
