"""Conformance of an engine: a table of scenarios with closed forms, and what is checked of each.

``pytest --engine mypackage.myengine`` runs the whole table on an engine.
"""

from pyadjoint_utils.testing.checks import CHECKS, Case, record
from pyadjoint_utils.testing.namespace import MissingFunctionError, Namespace, namespace_of
from pyadjoint_utils.testing.scenarios import BY_NAME, SCENARIOS, Scenario

__all__ = [
    "BY_NAME",
    "CHECKS",
    "SCENARIOS",
    "Case",
    "MissingFunctionError",
    "Namespace",
    "Scenario",
    "namespace_of",
    "record",
]
