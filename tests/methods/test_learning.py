"""A method that does not learn is a bug: each beats the supervised baseline on real digits, as its config stands."""

from functools import cache
from pathlib import Path

import pytest
import yaml

from supercm_lightning import Method
from supercm_lightning.cli import run
from tests.every_method import METHODS

DIGITS = Path(__file__).parents[2] / "configs" / "ssl" / "digits"
# Of several configs of a method the first by name is the plain one.
CONFIGS = {yaml.safe_load(f.read_text())["model"]["class_path"]: f for f in sorted(DIGITS.glob("*_cpu.yaml"))[::-1]}
LEARNERS = [kind for kind in METHODS if kind.__name__ in CONFIGS]


@cache
def accuracy(name: str) -> float:
    """Test accuracy after the 1,000 steps of the method's config, from 20 labels."""
    cli = run(
        ["fit", "--config", str(CONFIGS[name]), "--trainer.limit_val_batches", "0", "--trainer.logger", "false",
         "--trainer.callbacks", "null", "--trainer.enable_checkpointing", "false",
         "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    )  # fmt: skip
    return float(cli.trainer.callback_metrics["test/acc"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEARNERS, ids=lambda kind: kind.__name__)
def test_method_beats_the_supervised_baseline_on_digits(kind: type[Method]) -> None:
    # By 4 points (VAT) to 25; 2 points are nine images.
    assert accuracy(kind.__name__) > accuracy("Supervised") + 0.02
