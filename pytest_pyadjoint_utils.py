"""The option ``--engine`` of pytest; what it does is loaded when it is given.

This module stands alone because pytest loads it in every run, of any project, where pyadjoint-utils is installed.
"""

import pytest

# Before anything of it is imported.
pytest.register_assert_rewrite("pyadjoint_utils.testing")


@pytest.hookimpl(trylast=True)
def pytest_load_initial_conftests(parser):
    """Add the option when all others are known: another project's own ``--engine`` stays theirs."""
    _, unknown = parser.parse_known_and_unknown_args(["--engine=probe"])
    if unknown:
        parser.getgroup("pyadjoint-utils").addoption(
            "--engine",
            action="append",
            dest="pyadjoint_utils_engines",
            metavar="ENGINE",
            help="test an engine of pyadjoint-utils: its name, mypackage.myengine or mypackage.module:attribute",
        )


def pytest_configure(config):
    """Load the tests if an engine was named."""
    if getattr(config.option, "pyadjoint_utils_engines", None):
        config.pluginmanager.import_plugin("pyadjoint_utils.testing.plugin")
