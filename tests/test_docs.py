"""Everything that the documentation shows runs: pages, docstrings, and the links between them."""

import doctest
import importlib
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import bridges
import pyadjoint_utils
from pyadjoint_utils import registry

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted(
    module.name
    for package in (pyadjoint_utils, bridges)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)
OPTIONAL = ("jax", "tensorflow", "torch", "onnx", "matplotlib", "optax")
SYBIL = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], path=str(ROOT))


def _skip_without_engines(text):
    for name in OPTIONAL:
        if re.search(rf"^\W*(import|from) {name}\b|(overload|to)_{name}\b", text, re.MULTILINE) and not find_spec(name):
            pytest.skip(f"needs {name}")


def _name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    _skip_without_engines(page.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    for name in ("_loaded", "_owners"):  # the page on bridges registers an engine
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    document = SYBIL.parse(page)
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings_run(module):
    package, _, bridge = module.partition(".")
    if package == "bridges" and (missing := [n for n in OPTIONAL if bridge.startswith(n) and not find_spec(n)]):
        pytest.skip(f"needs {missing[0]}")
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module)):
        _skip_without_engines("\n".join(example.source for example in test.examples))
        doctest.DebugRunner(verbose=False).run(test)


def test_contents_name_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    toctree = re.search(r"^```\{toctree\}\n(.*?)^```", index, re.MULTILINE | re.DOTALL)
    entries = [line for line in toctree[1].split("\n") if line and not line.startswith(":")]
    assert sorted(entries) == sorted(page.stem for page in PAGES if page.parent.name == "docs" and page.stem != "index")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_between_files_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_pages_stand_alone(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(work|home|tmp|root)/", text)
