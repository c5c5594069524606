"""The conformance kit as others use it: ``pytest --engine`` in a project of their own."""

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyadjoint_utils
from pyadjoint_utils import get_engine
from pyadjoint_utils.testing import CHECKS, SCENARIOS, MissingFunctionError, namespace_of, plugin

ROOT = Path(pyadjoint_utils.__file__).parents[1]
ENGINES = """
from pyadjoint_utils import ArgumentTypeError, Engine, get_engine

Base = type(get_engine("autograd"))


class Sound(Base):
    name, holds = "sound", "numpy"


class Zeros(Base):
    name, holds = "zeros", "numpy"

    def vjp_of(self, f, n):
        right = super().vjp_of(f, n)
        return lambda x, c: tuple([0.0 * xb for xb in right(x, c)])

    def jvp_of(self, f, n):
        right = super().jvp_of(f, n)

        def jvp(x, c):
            both = right(x, c)
            return (*both[: len(both) // 2], *[0.0 * dy for dy in both[len(both) // 2 :]])

        return jvp


class Mute(Base):
    name, holds = "mute", "numpy"

    def function(self, name):
        return super().function(name) if name == "exp" else None


class Deaf(Engine):
    name = "deaf"

    def enter(self, source, dtype=None):
        raise ArgumentTypeError("no arrays today")


engine, zeros, mute, deaf = Sound(), Zeros(), Mute(), Deaf()
"""


@pytest.fixture
def project(tmp_path):
    """A project beside an installed pyadjoint-utils: pytest finds the option through its metadata."""
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").touch()
    (tmp_path / "mypackage" / "myengine.py").write_text(ENGINES)
    (tmp_path / "test_own.py").write_text(
        "import sys\n\ndef test_own(pytestconfig):\n    assert 'pyadjoint_utils' not in sys.modules\n"
    )
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    points = setup["options.entry_points"]["pytest11"]
    installed = tmp_path / "site" / "pyadjoint_utils-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: pyadjoint-utils\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[pytest11]\n{points}\n")
    return tmp_path


def run(project, *arguments):
    path = os.pathsep.join(map(str, (project, project / "site", ROOT)))
    program = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(program, capture_output=True, text=True, cwd=project, env=environment, check=False)


def table(output):
    """The printed table: ``{engine: {property: cell}}``."""
    lines = output[output.index("engines and properties") :].splitlines()[1:]
    columns = [lines[0][k : k + 13].strip() for k in range(len(lines[0]) % 13, len(lines[0]), 13)]
    rows = [re.split(r"\s{2,}", line) for line in lines[1:] if re.match(r"\w+\s{2,}[\d!~]", line)]
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}


def test_a_sound_engine_passes_and_one_of_zeros_fails(project):
    done = run(project, "--engine", "mypackage.myengine", "--engine", "mypackage.myengine:zeros", "-k", "double")
    assert done.returncode == 1, done.stdout + done.stderr
    found, count = table(done.stdout), len(SCENARIOS)
    assert set(found["sound"].values()) == {str(count)}
    assert set(found["sound"]) == set(CHECKS)
    zeros = found["zeros"]
    assert zeros["recording"] == zeros["value"] == str(count)
    assert zeros["JVP"] == zeros["VJP"] == zeros["HVP"] == zeros["points"] == zeros["chain"] == f"!{count}"
    assert zeros["Taylor"] == zeros["verify"] == f"!{count}"
    assert "test_own" not in done.stdout


def test_beside_own_tests_with_functions_or_arrays_missing(project):
    named = ("--engine", "mypackage.myengine.mute", "--engine", "mypackage.myengine:deaf")
    done = run(project, "test_own.py", *named, "-k", "HVP or own or something")
    assert done.returncode == 1
    failed = re.findall(r"^FAILED .*::(\S+)", done.stdout, re.MULTILINE)
    assert failed == ["test_own", "test_something_is_tested[deaf]"]  # the own one asserts that the kit is not loaded
    found = table(done.stdout)
    assert re.fullmatch(r"\d+ ~\d+", found["mute"]["HVP"])
    assert found["deaf"]["HVP"] == f"~{2 * len(SCENARIOS)}"


def test_nothing_is_loaded_without_the_option(project):
    done = run(project)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_an_option_of_the_same_name_stays_its_owners(project):
    (project / "conftest.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--engine')\n")
    with (project / "test_own.py").open("a") as file:
        file.write("    assert pytestconfig.getoption('engine') == 'sqlite'\n")
    done = run(project, "--engine", "sqlite")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_what_is_no_engine_is_refused(project):
    done = run(project, "--engine", "mypackage.myengine:Base")
    assert done.returncode == 4
    assert "--engine mypackage.myengine:Base: that is no instance of pyadjoint_utils.Engine" in done.stderr
    with pytest.raises(pytest.UsageError, match="--engine nowhere: No module named 'nowhere'"):
        plugin._engine("nowhere")


def test_a_namespace_names_what_is_missing():
    e = namespace_of("autograd")
    assert namespace_of(get_engine("autograd")) is e
    with pytest.raises(MissingFunctionError, match="'autograd' has no function 'frobnicate'"):
        _ = e.frobnicate
    assert not hasattr(e, "_private")
