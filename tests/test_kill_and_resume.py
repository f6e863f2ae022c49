"""The documented command, killed with SIGKILL and given again, ends as if it had never been killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.kill_and_resume import EVERY, METHODS, command, differences, run, run_and_kill
from supercm_lightning.utils.checkpoints import read_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_run_is_bit_identical(method: str, request: pytest.FixtureRequest) -> None:
    if method.startswith("uda/"):
        request.getfixturevalue("data_root")
    whole, broken = Path("whole").resolve(), Path("broken").resolve()
    run(command(method, whole))
    # Before the first checkpoint, which comes at step 8; then within the second and at the end of the third epoch.
    for step in (3, 30, 59):
        run_and_kill(command(method, broken), broken, step)
    run(command(method, broken))
    assert not differences(whole, broken)


@pytest.mark.slow
def test_checkpoints_of_the_config_itself_resume_too() -> None:
    whole, broken = Path("whole").resolve(), Path("broken").resolve()
    at_validation = ("--trainer.callbacks.monitor", "val/acc", "--trainer.callbacks.mode", "max")
    assert at_validation != EVERY
    run(command("ssl/digits/supercm_cpu", whole, at_validation))
    run_and_kill(command("ssl/digits/supercm_cpu", broken, at_validation), broken, 37)
    run(command("ssl/digits/supercm_cpu", broken, at_validation))
    assert not differences(whole, broken)


SAVE_WITHOUT_END = """
import sys, torch
from supercm_lightning.utils.checkpoints import AtomicCheckpointIO

number = 0
while True:
    number += 1
    state = {"state_dict": {"weight": torch.full((2_000_000,), float(number))}}
    AtomicCheckpointIO().save_checkpoint(state, "last.ckpt")
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_last_checkpoint_that_was_complete() -> None:
    for delay in (0.0, 0.003, 0.006, 0.01, 0.015):
        with subprocess.Popen([sys.executable, "-c", SAVE_WITHOUT_END], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(3):
                process.stdout.readline()
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
            saved = [int(line) for line in process.stdout]
        weight = read_checkpoint(Path("last.ckpt"))["state_dict"]["weight"]
        # The rename may have come before the line that tells of it.
        assert weight[0] in (max(saved, default=3), max(saved, default=3) + 1)
        assert torch.equal(weight, weight[:1].expand_as(weight))
