"""The methods that tests run over: whatever `supercm_lightning.methods` exports and learns from unlabeled samples."""

from typing import Any

from supercm_lightning import DANN, VAT, Clusterer, FixMatch, Method, PseudoLabel, Supervised, methods

METHODS: list[type[Method]] = [
    kind
    for kind in (getattr(methods, name) for name in methods.__all__)
    if issubclass(kind, Method)
    and kind not in (Method, Supervised)
    and not issubclass(kind, Clusterer)  # need no labels: test_clusterer.py, test_asd.py
]


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
    return [name for name in model.hparams if name == "beta" or name.endswith("_weight")]
