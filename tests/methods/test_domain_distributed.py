"""Domain adaptation in two processes: losses of the whole batch, with the gradient that one process has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from supercm_lightning import BNM, CDAN, MCC, Method, SuperCMBNM, SuperCMCDAN, SuperCMMCC

SOURCE, TARGET = (
    torch.randn(8, 6, generator=torch.Generator().manual_seed(0)),
    torch.randn(12, 6, generator=torch.Generator().manual_seed(1)),
)
LABELS = torch.arange(8) % 4


def terms_and_gradients(
    kind: type[Method], options: dict[str, Any], rank: int, world: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Terms and gradients of a step of which this process has every `world`-th row; without batch norm."""
    torch.manual_seed(0)
    model = kind(num_classes=4, input_shape=(6,), backbone="identity", **options)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            part.eval()  # as when frozen; synchronised batch norm is torch's own matter
    if issubclass(kind, CDAN):
        type(model).adaptation_factor = property(lambda self: 0.7)  # type: ignore[attr-defined]
    x, y, u = SOURCE[rank::world], LABELS[rank::world], TARGET[rank::world]
    step = model.joint_forward({"labeled": (x, y), "unlabeled": ((u,), torch.arange(len(u)))})
    if hasattr(model.head, "update"):
        model.head.update(*model.centroid_samples(step))
    terms = model.losses(step)
    torch.stack(list(terms.values())).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if world > 1:  # as DDP does
        for gradient in gradients.values():
            distributed.all_reduce(gradient)
            gradient /= world
    return {name: float(term.detach()) for name, term in terms.items()}, gradients


def of_this_process(kind: type[Method], options: dict[str, Any]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """As `terms_and_gradients`, in a process of the pool."""
    return terms_and_gradients(kind, options, distributed.get_rank(), distributed.get_world_size())


SMALL = {"dann_hidden_features": 5}
CASES: list[tuple[type[Method], dict[str, Any]]] = [
    *((MCC, {}), (BNM, {}), (BNM, {"bnm_fast": True}), (CDAN, SMALL), (CDAN, SMALL | {"cdan_entropy": True})),
    *((SuperCMMCC, {}), (SuperCMBNM, {}), (SuperCMCDAN, SMALL)),
]


@pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=["-".join((kind.__name__, *options)) for kind, options in CASES]
)
def test_gradients_of_two_processes_are_those_of_one(
    kind: type[Method], options: dict[str, Any], two_processes: Callable[..., list[Any]]
) -> None:
    terms, gradients = terms_and_gradients(kind, options, 0, 1)
    ranks = two_processes(of_this_process, kind, options)
    for name, value in terms.items():
        mean = sum(own[name] for own, _ in ranks) / len(ranks)
        assert mean == pytest.approx(value, rel=1e-5), name
    for _, own in ranks:
        assert own.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(own[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
