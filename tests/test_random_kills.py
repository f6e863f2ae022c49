"""Commands killed with SIGKILL at random moments leave no half of a file, and end as if they had not been killed.

The environment variable SUPERCM_KILLS is the number of kills of each command, SUPERCM_KILL_SEED draws other moments.
"""

import os
import random
from pathlib import Path

import pytest

from benchmarks.random_kills import CASES, round_of, write_files


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_killed_command_ends_as_one_that_was_left_alone(name: str) -> None:
    write_files(Path.cwd())
    chance = random.Random(f"{name} {os.environ.get('SUPERCM_KILL_SEED', '0')}")
    found = round_of(name, Path.cwd(), int(os.environ.get("SUPERCM_KILLS", "2")), chance)
    assert found["wrong"] == []
