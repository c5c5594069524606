"""Every test records on a tape of its own."""

import pytest

from pyadjoint_utils import (
    Tape,
    annotate_tape,
    continue_annotation,
    get_working_tape,
    pause_annotation,
    set_working_tape,
)

pytest_plugins = ["pytest_pyadjoint_utils", "pyadjoint_utils.testing.plugin"]


@pytest.fixture(autouse=True)
def tape():
    """A fresh working tape with annotation on; what was there before is put back."""
    previous, was_on = get_working_tape(), annotate_tape()
    fresh = Tape()
    set_working_tape(fresh)
    continue_annotation()
    yield fresh
    set_working_tape(previous)
    (continue_annotation if was_on else pause_annotation)()
