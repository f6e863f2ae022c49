"""SuperCM: its term, its centroids, and that it learns."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer, seed_everything

from supercm_lightning import CentroidUpdate, Method, SemiSupervisedDataModule, SuperCM, Supervised


def trainer(steps: int, *callbacks: Callback, **kwargs: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    return Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1, callbacks=list(callbacks), **kwargs,
    )  # fmt: skip


def test_term_is_the_distortion_to_the_centroids_of_the_labelled_features() -> None:
    model = SuperCM(num_classes=2, input_shape=(2,), backbone="identity", beta=0.5, temperature=2.0)
    model.head.update(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
    x, u = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, -1.0], [0.0, 2.0]])
    step = model.joint_forward({"labeled": (x, torch.tensor([0])), "unlabeled": ((u,), torch.arange(2))})
    terms = model.losses(step)
    rows = torch.cat([x, u])
    gamma = (model.head(rows) / 2.0).softmax(1)
    slow = sum(
        gamma[i, k] * (rows[i] - mu).square().sum() for i in range(3) for k, mu in enumerate(model.head.centroids)
    )
    assert terms["cm"].item() == pytest.approx(0.5 * slow.item() / (3 * 2))
    assert terms["ce"].item() == pytest.approx(F.cross_entropy(model.head(x), torch.tensor([0])).item())


def test_term_reaches_backbone_and_head_but_not_the_centroids() -> None:
    model = SuperCM(num_classes=3, input_shape=(1, 8, 8))
    model.head.update(torch.randn(6, 128), torch.tensor([0, 1, 2, 0, 1, 2]))
    x, u, y = torch.randn(4, 1, 8, 8), torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    step = model.joint_forward({"labeled": (x, y), "unlabeled": ((u,), torch.arange(5))})
    model.losses(step)["cm"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert not model.head.centroids.requires_grad


@pytest.mark.parametrize("given", [None, "eval_forward", "reuse"])
def test_centroids_move_once_a_step_with_the_callback_and_without(given: Any) -> None:
    run = trainer(2, *([CentroidUpdate(given)] if given else []))
    model = SuperCM(num_classes=10, input_shape=(1, 8, 8))
    run.fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20))
    assert model.head.updates.tolist() == [2] * 10


def test_centroids_are_the_class_means_of_fixed_features() -> None:
    """With frozen weights and one labelled batch after another, they converge to the means of the labelled features."""

    class Frozen(SuperCM):
        def losses(self, step: Any) -> Any:
            return {name: term * 0 for name, term in super().losses(step).items()}

    data = SemiSupervisedDataModule(num_labeled=20, labeled_batch_size=20, shift=0, steps_per_epoch=5)
    model = Frozen(num_classes=10, input_shape=(1, 8, 8))
    run = trainer(5, CentroidUpdate("eval_forward"))
    before = model.backbone.layers[1].running_mean.clone()
    # Batch norm statistics follow the training forward; freezing them keeps the features of all steps comparable.
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.0
    run.fit(model, datamodule=data)
    assert torch.equal(model.backbone.layers[1].running_mean, before)
    rows = data.samples["labeled"]
    with torch.no_grad():
        features = model.eval().features(data.normalize(rows.store.data[rows.index]))
    means = torch.stack([features[rows.labels == k].mean(0) for k in range(10)])
    torch.testing.assert_close(model.head.centroids, means, atol=1e-5, rtol=1e-4)


def test_diagnostics_add_up_to_the_unweighted_term() -> None:
    run = trainer(3)
    run.fit(
        SuperCM(num_classes=10, input_shape=(1, 8, 8), beta=2.0), datamodule=SemiSupervisedDataModule(num_labeled=20)
    )
    logged = run.logged_metrics
    parts = sum(float(logged[f"train/cm_{name}"]) for name in ("reconstruction", "sparsity", "merging"))
    assert float(logged["train/cm"]) == pytest.approx(2.0 * parts, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"), [({"beta": -1.0}, "beta=-1.0"), ({"temperature": 0.0}, "temperature=0.0")]
)
def test_an_option_out_of_range_is_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SuperCM(num_classes=3, input_shape=(4,), backbone="mlp", **options)


def test_centroid_update_on_another_method_is_refused() -> None:
    run = trainer(1, CentroidUpdate())
    with pytest.raises(ValueError, match=r"CentroidUpdate: Supervised .* SuperCM"):
        run.fit(Supervised(num_classes=10, input_shape=(1, 8, 8)), datamodule=SemiSupervisedDataModule(num_labeled=20))


def accuracy(kind: type[Method], seed: int, steps: int, **kwargs: Any) -> float:
    """Test accuracy after a short run on the digits with 20 labels."""
    seed_everything(seed)
    data = SemiSupervisedDataModule(num_labeled=20, split_seed=seed)
    run = trainer(steps)
    model = kind(num_classes=10, input_shape=(1, 8, 8), **kwargs)
    run.fit(model, datamodule=data)
    return run.test(model, datamodule=data, verbose=False)[0]["test/acc"]


@pytest.mark.slow
def test_supercm_beats_the_supervised_baseline() -> None:
    seeds, steps = (0, 1), 300
    with_cm = sum(accuracy(SuperCM, seed, steps) for seed in seeds) / len(seeds)
    without = sum(accuracy(Supervised, seed, steps, use_unlabeled=True) for seed in seeds) / len(seeds)
    assert without > 0.6
    assert with_cm > without + 0.03
