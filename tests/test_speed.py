"""The speed benchmark compares like with like, and its GPU table runs through; no time is asserted."""

import pytest
import torch
from torch import nn

from benchmarks import speed
from supercm_lightning import FixMatch, Method, SuperCM
from supercm_lightning.nn import evaluating

SHAPE = {"num_classes": 3, "input_shape": (5,), "backbone": "mlp"}


def batches(steps: int):
    stream = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x, u, v = (torch.randn(6, 5, generator=stream) for _ in range(3))
        yield x, torch.randint(3, (6,), generator=stream), u, v


def test_the_published_loop_takes_the_same_steps_as_supercm() -> None:
    torch.manual_seed(0)
    model = SuperCM(**SHAPE, beta=0.372, counter="global", lr=3e-4)
    head = nn.Linear(model.num_features, 3)
    head.load_state_dict(model.head.linear.state_dict())
    network = speed.build_backbone("mlp", (5,))
    network.load_state_dict(model.backbone.state_dict())
    published = speed.published_supercm(network, head, classes=3)
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)
    for x, y, u, _ in batches(5):
        y[:3] = torch.arange(3)  # the published rule differs where a class is absent
        with torch.no_grad(), evaluating(model):
            model.head.update(model.features(x), y)
        optimizer.zero_grad()
        step = model.joint_forward({"labeled": (x, y), "unlabeled": ((u,), torch.arange(6))})
        loss = sum(model.losses(step).values())
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(published(x, y, u), loss.detach(), rtol=1e-4, atol=1e-5)


def test_the_published_loop_takes_the_same_steps_as_fixmatch() -> None:
    torch.manual_seed(0)
    options = speed.GPU_METHODS[FixMatch]
    model = FixMatch(**SHAPE, **options)
    nn.init.normal_(model.head.weight, std=3)  # confident enough for the threshold
    head = nn.Linear(model.num_features, 3)
    head.load_state_dict(model.head.state_dict())
    network = speed.build_backbone("mlp", (5,))
    network.load_state_dict(model.backbone.state_dict())
    published = speed.published_fixmatch(network, head)
    optimizer = model.configure_optimizers()
    counted = 0.0
    for x, y, weak, strong in batches(5):
        optimizer.zero_grad()
        step = model.joint_forward({"labeled": (x, y), "unlabeled": ((weak, strong), torch.arange(6))})
        loss = sum(model.losses(step).values())
        counted += float(model.diagnostics(step)["mask_ratio"])
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(published(x, y, weak, strong), loss.detach(), rtol=1e-4, atol=1e-5)
    assert counted > 0


@pytest.mark.parametrize("kind", [SuperCM, FixMatch])
@pytest.mark.filterwarnings("ignore")
def test_the_gpu_table_runs_through_on_a_cpu(kind: type[Method]) -> None:
    rungs = {name: rung for name, rung in speed.RUNGS.items() if not rung.options.get("compile")}
    rungs["fused"] = speed.Rung(speed.FAST, "bf16-mixed", fused=True)
    rows = speed.ladder(kind, 4, 6, torch.device("cpu"), rungs, 3, 1, backbone="small_cnn", workers=0)
    assert [row[2] for row in rows] == ["published style, float32", *rungs]
    for row in rows:
        rate, ratio, _, hours, accuracy = row[3:]
        assert min(float(rate), float(ratio), float(hours)) > 0
        assert 0 < float(accuracy) <= 100


def test_the_gpu_table_says_that_there_is_no_gpu(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    speed.gpu()
    assert "there is none" in capsys.readouterr().out
