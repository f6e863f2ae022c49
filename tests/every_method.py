"""The methods that tests run over: whatever `supercm_lightning.methods` exports and learns from unlabeled samples."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from supercm_lightning import DANN, VAT, Clusterer, FixMatch, Method, PseudoLabel, Step, Supervised, methods

METHODS: list[type[Method]] = [
    kind
    for kind in (getattr(methods, name) for name in methods.__all__)
    if issubclass(kind, Method)
    and kind not in (Method, Supervised)
    and not issubclass(kind, Clusterer)  # need no labels: test_clusterer.py, test_asd.py
]


def combinations_slow(kinds: Iterable[type[Method]]) -> list[Any]:
    """Methods as parameters; a combination adds nothing to its bases but their sum, and is left to the slow tests."""
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(kind, id=kind.__name__, marks=marks[len(kind.__bases__) > 1]) for kind in kinds]


def state_of(model: nn.Module, without: str = "\0") -> dict[str, Tensor]:
    """Every tensor of a model."""
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith(without)}


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not the same."""
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


class Twice(Callback):
    """Takes the losses of the first four steps twice and compares values and state."""

    def __init__(self) -> None:
        self.compared = 0

    @torch.enable_grad()
    def observe(self, trainer: Trainer, pl_module: Method, step: Step) -> None:
        """Called once a batch, after the state has moved."""
        if self.compared == 4:
            return
        # A discriminator's batch norm counts its batches, as that of the backbone does in a forward.
        before = state_of(pl_module, "discriminator")
        with torch.random.fork_rng():
            first = pl_module.losses(step)
        with torch.random.fork_rng():
            second = pl_module.losses(step)
        assert {name: term.item() for name, term in first.items()} == {n: term.item() for n, term in second.items()}
        assert not differing(before, state_of(pl_module))
        self.compared += 1


def eager_options(kind: type[Method]) -> dict[str, Any]:
    """Options with which the terms of a method act from the first step on, when nothing is confident yet."""
    options: dict[str, Any] = {"ramp_up": 0.0}
    if issubclass(kind, PseudoLabel):
        options["pseudo_label_threshold"] = 0.0
    if issubclass(kind, FixMatch):
        options["fixmatch_threshold"] = 0.0
    if issubclass(kind, VAT):
        options["vat_eps"] = 1.0
    if issubclass(kind, DANN):
        options["dann_hidden_features"] = 16
    return options


def weight_options(model: Method) -> list[str]:
    """Names of the options that weigh a method's unlabeled terms."""
    return [name for name in model.hparams if name == "beta" or (name.endswith("_weight") and name != "class_weight")]
