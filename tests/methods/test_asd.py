"""ASD: what it labels and when, that it is the same resumed or distributed, and that it never reads a label."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from supercm_lightning import (
    ASD,
    EMA,
    ASDFixMatch,
    ASDFreeMatch,
    ASDSuperCM,
    ASDSuperCMFreeMatch,
    ClusteringDataModule,
    FreeMatch,
    Method,
    SemiSupervisedDataModule,
    Step,
    SuperCM,
    SuperCMVAT,
)
from supercm_lightning.data.sources.stores import Samples
from supercm_lightning.losses import balanced_consistency_loss
from supercm_lightning.metrics import ClusteringAccuracy

QUICK: dict[str, Any] = {
    "asd_hold": 3, "asd_map_every": 4, "asd_warmup": 0.4, "asd_window": 6, "asd_prototype_start": 0.6, "asd_pool": 3,
}  # fmt: skip


class ASDSuperCMVAT(ASD, SuperCMVAT):
    """A combination as users write it, of a method without a strong view."""


def trainer(steps: int, *callbacks: Callback, **kwargs: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": steps, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
    }  # fmt: skip
    return Trainer(**settings | kwargs, callbacks=list(callbacks))


def digits(**kwargs: Any) -> ClusteringDataModule:
    return ClusteringDataModule(**{"num_rows": 120, "unlabeled_batch_size": 30, "steps_per_epoch": 5} | kwargs)


def model_of(kind: type[Method] = ASDFreeMatch, **kwargs: Any) -> Any:
    seed_everything(3)
    return kind(num_classes=10, input_shape=(1, 8, 8), **QUICK | kwargs)


def blobs(n: int = 240, noise: float = 0.6, k: int = 4) -> tuple[Tensor, Tensor]:
    """Features of k groups."""
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % k
    return torch.eye(k, 8)[labels] * 4 + noise * torch.randn(n, 8, generator=stream), labels


def save_blobs(**kwargs: Any) -> None:
    features, labels = blobs(**kwargs)
    np.savez("blobs.npz", features=features.numpy(), labels=labels.numpy())


def decisions(model: Any) -> dict[str, Tensor]:
    """What the adaptor decided so far."""
    samples = model.labeler.samples
    kept = {name: getattr(samples, name).clone() for name in ("index", "labels", "unused", "last_label")}
    return kept | {"cluster_of": model.labeler.clusters.cluster_of.clone()}


class Watch(Callback):
    """Writes down every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def observe(self, trainer: Trainer, pl_module: Any, step: Step) -> None:
        labeler = pl_module.labeler
        predicted = labeler.instance_head(step.labeled_features[: len(labeler.samples)]).argmax(1)
        found = {"y": step.y.clone(), "x": step.x, "predicted": predicted, "visited": step.index}
        self.steps.append(decisions(pl_module) | found)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.steps[-1]["terms"] = {n for n in trainer.callback_metrics if n.startswith("train/")}


@pytest.fixture(scope="module")
def watched() -> list[dict[str, Any]]:
    watch = Watch()
    trainer(20, watch).fit(model_of(asd_sampler="random"), datamodule=digits())
    return watch.steps


def test_sets_are_held_and_no_sample_is_chosen_twice_before_all_were(watched: list[dict[str, Any]]) -> None:
    sets = [step["index"].tolist() for step in watched]
    for start in range(0, 18, 3):
        assert sets[start] == sets[start + 1] == sets[start + 2]
        assert watched[start]["labels"].tolist() == watched[start + 2]["labels"].tolist()
    first_pass = sets[0] + sets[3] + sets[6]
    assert sorted(first_pass) == list(range(120))
    assert sets[9] != sets[0]


def test_labels_are_permutations_and_follow_the_map_and_the_instance_head(watched: list[dict[str, Any]]) -> None:
    in_doubt = 0
    for step in watched:
        assert step["labels"].sort().values.tolist() == list(range(40))
        cluster_of, y = step["cluster_of"].tolist(), step["y"].tolist()
        expected = [
            cluster_of[label] if cluster_of[label] == cluster_of[predicted] else -1
            for label, predicted in zip(step["labels"].tolist(), step["predicted"].tolist(), strict=True)
        ]
        assert y == expected * 2  # the weak view, then the strong one
        in_doubt += expected.count(-1) if cluster_of[0] >= 0 else 0
    assert in_doubt > 0


def test_the_other_method_starts_with_the_clusters(watched: list[dict[str, Any]]) -> None:
    has_map = [bool((step["cluster_of"] >= 0).all()) for step in watched]
    first = has_map.index(True)
    assert first == 8  # the warm-up of 0.4 of 20 steps
    assert all(has_map[first:])
    for step in watched[:first]:
        assert bool((step["y"] == -1).all())
        assert "train/freematch" not in step["terms"]
    assert {"train/ce", "train/freematch", "train/instance", "train/instance_consistency"} <= watched[first]["terms"]
    assert watched[first]["cluster_of"].unique().tolist() == list(range(10))


def test_inputs_are_views_of_the_chosen_samples() -> None:
    watch = Watch()
    data = digits(shift=0)
    trainer(2, watch).fit(model_of(), datamodule=data)
    step = watch.steps[0]
    clean = data.normalize(data.samples["unlabeled"].store.data[step["index"]])
    torch.testing.assert_close(step["x"][:40], clean)
    assert not torch.equal(step["x"][40:], clean)
    assert not torch.equal(step["x"][40:], watch.steps[1]["x"][40:])  # a held set gets new views


def test_prototypes_are_chosen_by_averaged_features_equally_from_every_cluster() -> None:
    save_blobs()
    watch = Watch()
    model = ASDFixMatch(
        num_classes=4, input_shape=(8,), backbone="identity", **QUICK | {"asd_prototype_start": 0.0, "asd_pool": 10}
    )
    trainer(9, watch).fit(model, datamodule=ClusteringDataModule("features", "blobs.npz"))
    _, labels = blobs()
    for step in watch.steps:
        assert labels[step["index"]].bincount().tolist() == [4, 4, 4, 4]
    chosen = torch.cat([watch.steps[number]["index"] for number in (0, 3, 6)])
    assert len(chosen.unique()) == len(chosen)


@pytest.mark.parametrize("kind", [ASDFixMatch, ASDFreeMatch, ASDSuperCM, ASDSuperCMFreeMatch, ASDSuperCMVAT])
def test_every_term_is_there_and_every_weight_moves(kind: type[Method]) -> None:
    class Terms(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            self.last = {name: float(value) for name, value in trainer.callback_metrics.items()}

    model, terms = (
        model_of(kind, **{ASDFixMatch: {"fixmatch_threshold": 0.0}, ASDSuperCMVAT: {"vat_eps": 1.0}}.get(kind, {})),
        Terms(),
    )
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer(16, terms).fit(model, datamodule=digits())
    own = {ASDFixMatch: {"fixmatch"}, ASDFreeMatch: {"freematch", "fairness"}, ASDSuperCM: {"cm"},
           ASDSuperCMFreeMatch: {"cm", "freematch", "fairness"}, ASDSuperCMVAT: {"cm", "vat"}}[kind]  # fmt: skip
    for name in {"ce", "instance", "instance_consistency"} | own:
        assert terms.last[f"train/{name}"] != 0, name
    for name, value in model.named_parameters():
        assert not torch.equal(value, before[name]), name
    if issubclass(kind, SuperCM):
        moved = model.head.updates > 0
        assert int(moved.sum()) >= 8  # a cluster may be empty in so short a run
        assert torch.equal(moved, model.head.centroids.abs().sum(1) > 0)


def test_health_is_logged_without_labels() -> None:
    class Last(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            self.values = {name: float(value) for name, value in trainer.callback_metrics.items()}

    last = Last()
    trainer(20, last).fit(model_of(asd_sampler="random"), datamodule=digits())
    for name in ("relabel_agreement", "map_change", "agreement_ratio", "labels_used", "smallest_cluster",
                 "largest_cluster", "coverage"):  # fmt: skip
        assert 0 <= last.values[f"train/{name}"] <= 1, name
    assert last.values["train/labels_used"] > 0
    assert last.values["train/smallest_cluster"] <= 0.1 <= last.values["train/largest_cluster"]


@pytest.mark.parametrize(
    ("kind", "cost"),
    [
        (ASDFreeMatch, "logit"),
        (ASDSuperCM, "feature"),
        pytest.param(ASDFreeMatch, "feature", marks=pytest.mark.slow),
        pytest.param(ASDSuperCM, "logit", marks=pytest.mark.slow),
    ],
)
def test_resumed_run_is_bit_identical(kind: type[Method], cost: str) -> None:
    """Step 7 lies within a held set, within the window of transitions and before the first prototypes."""

    def fit(checkpoint: Path | None) -> tuple[Any, Watch]:
        model, watch = model_of(kind, asd_cost=cost, lr_schedule="cosine"), Watch()
        seed_everything(0 if checkpoint is None else 99)
        folder = "saved" if checkpoint is None else f"after_{checkpoint.stem}"
        saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=7, save_top_k=-1)
        run = trainer(20, watch, EMA(decay=0.9, refresh_batches=2), saving, enable_checkpointing=True)
        run.fit(model, datamodule=digits(), ckpt_path=checkpoint)
        return model, watch

    whole, steps = fit(None)
    for number in (7, 14):
        resumed, later = fit(Path(f"saved/step={number}.ckpt"))
        for mine, theirs in zip(later.steps, steps.steps[number:], strict=True):
            for name in ("index", "labels", "cluster_of", "unused", "last_label", "y", "x", "visited"):
                assert torch.equal(mine[name], theirs[name]), f"{name} differs after step {number}"
        expected = whole.state_dict()
        for name, value in resumed.state_dict().items():
            assert torch.equal(value, expected[name]), f"{name} differs after resuming at step {number}"
    kept = ("tracker.bank", "tracker.counts", "tracker.events", "samples.last_label", "samples.index")
    assert {f"labeler.{name}" for name in kept} <= set(expected)


def test_a_checkpoint_loads_without_the_data() -> None:
    model = model_of()
    run = trainer(10)
    run.fit(model, datamodule=digits())
    run.save_checkpoint("run.ckpt")
    loaded = ASDFreeMatch.load_from_checkpoint("run.ckpt", weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


class Forbidden(Tensor):
    """Labels that must not be touched."""

    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a label was read")


def test_a_run_never_touches_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits()
    data.setup("predict")
    store = data.samples["unlabeled"].store
    store.labels = torch.zeros(len(store)).as_subclass(Forbidden)
    with pytest.raises(AssertionError, match="a label was read"):
        _ = Samples.all_of(store).labels
    model, run = model_of(ASDSuperCMFreeMatch), trainer(20, EMA(decay=0.9, refresh_batches=2))
    run.fit(model, datamodule=data)
    predictions = run.predict(model, datamodule=data)
    assert sum(len(part["probabilities"]) for part in predictions) == 120


def test_a_run_without_labels_trains_and_predicts() -> None:
    images = [torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8) for _ in range(60)]
    data = ClusteringDataModule(images, num_classes=3, unlabeled_batch_size=20, steps_per_epoch=10, num_workers=0)
    seed_everything(0)
    model = ASDFixMatch(num_classes=3, input_shape=(1, 8, 8), **QUICK)
    run = trainer(10)
    run.fit(model, datamodule=data)
    assert sum(len(part["probabilities"]) for part in run.predict(model, datamodule=data)) == 60


def test_labels_of_a_semi_supervised_set_are_not_used() -> None:
    model = model_of(ASDFixMatch)
    trainer(4).fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20, steps_per_epoch=4))
    assert model.labeler.tracker.bank.max() >= 0


def test_methods_with_labels_say_what_clusters_without() -> None:
    with pytest.raises(ValueError, match="use ASD or one of its combinations"):
        trainer(1).fit(FreeMatch(num_classes=10, input_shape=(1, 8, 8)), datamodule=digits())


def test_without_a_second_visit_there_are_no_clusters_yet() -> None:
    watch = Watch()
    trainer(6, watch).fit(model_of(asd_warmup=0.0), datamodule=digits(num_rows=None, unlabeled_batch_size=20))
    assert all(bool((step["y"] == -1).all()) for step in watch.steps)
    assert all("train/freematch" not in step["terms"] for step in watch.steps)


def test_no_gradient_reaches_targets_nor_averages() -> None:
    strong, weak = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    share = torch.full((4,), 0.25, requires_grad=True)
    loss = balanced_consistency_loss(strong, weak, share.detach())
    grads = torch.autograd.grad(loss, (strong, weak), allow_unused=True)
    assert grads[0].abs().sum() > 0
    assert grads[1] is None
    model = model_of()
    trainer(10).fit(model, datamodule=digits())
    assert all(p.grad is None and not p.requires_grad for p in model.average.parameters())
    assert not any(buffer.requires_grad for buffer in model.buffers())


def test_balanced_consistency_is_its_formula() -> None:
    stream = torch.Generator().manual_seed(0)
    strong, weak = torch.randn(2, 6, 3, generator=stream)
    mean = torch.tensor([0.5, 0.3, 0.2])
    expected = 0.0
    for row in range(6):
        q = [float(p / m) for p, m in zip(weak[row].softmax(0), mean, strict=True)]
        q = [value**2 / sum(other**2 for other in q) for value in q]
        expected -= sum(a * float(b) for a, b in zip(q, strong[row].log_softmax(0), strict=True)) / 6
    assert balanced_consistency_loss(strong, weak, mean).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [ASDSuperCM, pytest.param(ASDFreeMatch, marks=pytest.mark.slow)])
def test_a_loss_that_is_evaluated_twice_changes_nothing(kind: type[Method]) -> None:
    class Twice(kind):  # type: ignore[misc,valid-type]
        """As an optimizer with sharpness-aware minimization does."""

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
            closure()
            super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def run(cls: type[Method]) -> tuple[Any, list[dict[str, Any]]]:
        model, watch = model_of(cls), Watch()
        trainer(20, watch).fit(model, datamodule=digits())
        return model, watch.steps

    (once, steps), (twice, again) = run(kind), run(Twice)
    assert len(again) == len(steps)
    for mine, theirs in zip(again, steps, strict=True):
        assert torch.equal(mine["y"], theirs["y"])
    for name, value in twice.state_dict().items():
        assert torch.equal(value, once.state_dict()[name]), name


# ------------------------------------------------------------------------------------------------- starting points
def test_given_clusters_are_the_labels_until_the_first_map_which_keeps_their_names() -> None:
    save_blobs()
    _, labels = blobs()
    given = torch.tensor([2, 0, 3, 1])[labels]
    np.save("given.npy", given.numpy())
    watch = Watch()
    seed_everything(0)
    model = ASDFixMatch(
        num_classes=4,
        input_shape=(8,),
        backbone="mlp",
        asd_init_labels="given.npy",
        asd_warmup=0.5,
        asd_hold=2,
        lr=0.01,
    )
    data = ClusteringDataModule("features", "blobs.npz", steps_per_epoch=60)
    run = trainer(60, watch)
    run.fit(model, datamodule=data)
    for step in watch.steps[:30]:
        assert step["y"].tolist() == given[step["index"]].tolist() * 2
        assert "train/fixmatch" in step["terms"]
    assert bool((watch.steps[-1]["cluster_of"] >= 0).all())
    predicted = torch.cat([part["probabilities"] for part in run.predict(model, datamodule=data)]).argmax(1)
    # Same clusters under the same names, not under names of its own.
    assert float((predicted == given).float().mean()) > 0.9


def test_the_table_that_predict_writes_is_a_clustering_to_start_from() -> None:
    from supercm_lightning import PredictionWriter

    model, data = model_of(), digits()
    run = trainer(10, PredictionWriter("clusters.csv"))
    run.fit(model, datamodule=data)
    run.predict(model, datamodule=data)
    again = model_of(asd_init_labels="clusters.csv")
    watch = Watch()
    trainer(2, watch).fit(again, datamodule=digits())
    expected = torch.cat([p["probabilities"] for p in run.predict(model, datamodule=data)]).argmax(1)
    assert watch.steps[0]["y"][:40].tolist() == expected[watch.steps[0]["index"]].tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [(np.zeros(7, int), r"shape \(7,\)"), (np.full(120, 10), "from 10 to 10"), (None, "no such file")],
)
def test_a_clustering_that_does_not_fit_is_refused(content: Any, message: str) -> None:
    if content is not None:
        np.save("given.npy", content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        trainer(1).fit(model_of(asd_init_labels="given.npy"), datamodule=digits())


def test_averaged_weights_start_from_given_backbone_weights() -> None:
    first = model_of()
    with torch.no_grad():
        for parameter in first.backbone.parameters():
            parameter.add_(1.0)
    torch.save(first.backbone.state_dict(), "backbone.pt")
    second = model_of(backbone_checkpoint="backbone.pt")
    trainer(1).fit(second, datamodule=digits())
    start = first.backbone.state_dict()
    for name, value in second.average.module[0].named_parameters():
        assert (value - start[name]).abs().max() < 0.01, name  # one step of Adam at lr 0.001 away


def test_a_second_fit_starts_the_labeling_anew() -> None:
    watch, again = Watch(), Watch()
    model = model_of()
    trainer(10, watch).fit(model, datamodule=digits())
    trainer(1, again).fit(model, datamodule=digits())
    assert watch.steps[-1]["cluster_of"].min() >= 0
    assert again.steps[0]["cluster_of"].max() == -1
    assert (again.steps[0]["last_label"] >= 0).sum() == 40


@pytest.mark.parametrize(
    ("steps", "options", "expected"),
    [
        (40, {}, 20),
        (40, {"accumulate_grad_batches": 4}, 80),
        (-1, {"max_epochs": 2, "limit_train_batches": 5}, 5),
        (-1, {"max_epochs": 2, "limit_train_batches": 0.25}, 25),
    ],
)
def test_window_is_a_fraction_of_the_batches(steps: int, options: dict[str, Any], expected: int) -> None:
    class Stop(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> int:
            trainer.should_stop = True
            return -1

    model = model_of(asd_window=0.5)
    trainer(steps, Stop(), **options).fit(model, datamodule=digits(steps_per_epoch=100))
    assert len(model.labeler.tracker.events) == expected


# ------------------------------------------------------------------------------------------------------ processes
class Decisions(Callback):
    """Keeps what the adaptor decided at every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def observe(self, trainer: Trainer, pl_module: Any, step: Step) -> None:
        tracked = {name: getattr(pl_module.labeler.tracker, name).clone() for name in ("matrix", "bank")}
        self.steps.append(decisions(pl_module) | tracked | {"y": step.y.clone()})


def whole_run(kind: type[Method], folder: Path, batch: int, **kwargs: Any) -> Any:
    """Decisions of 20 steps, and all that a checkpoint would hold."""
    seed_everything(0)
    data = ClusteringDataModule(
        "features",
        folder / "blobs.npz",
        unlabeled_batch_size=batch,
        steps_per_epoch=10,
        noise=0.0,
        strong_noise=1e-12,  # a view that equals the weak one
    )
    options: dict[str, Any] = {"freematch_decay": 0.9} if issubclass(kind, FreeMatch) else {"fixmatch_threshold": 0.5}
    model = kind(
        num_classes=4, input_shape=(8,), backbone="identity", optimizer="sgd", lr=0.1,
        **QUICK | {"asd_warmup": 0.3, "asd_samples": 17} | options,  # one more for the first of two processes
    )  # fmt: skip
    kept = Decisions()
    trainer(20, kept, max_epochs=2, **kwargs).fit(model, datamodule=data)
    return kept.steps, {name: value.clone() for name, value in model.state_dict().items()}


def whole_run_of_two(kind: type[Method], folder: Path) -> Any:
    """The same in a process of the pool, with half of the samples."""
    return whole_run(kind, folder, batch=30, devices=2, strategy="ddp")


def features_of_this_process() -> Tensor:
    """Features of candidates, of which this process forwards its shard alone."""
    model, forwarded = model_of(), []
    model.average.module.register_forward_hook(lambda module, inputs, outputs: forwarded.append(len(outputs)))
    data = digits()
    data.setup("predict")
    data.trainer = model.trainer = trainer(1)
    model.trainer.datamodule = data
    features = model._averaged_features(torch.arange(7, 100, 3))
    assert sum(forwarded) == len(range(torch.distributed.get_rank(), 31, 2))
    return features


def test_processes_share_the_features_of_candidates(two_processes: Callable[..., list[Any]]) -> None:
    first, second = two_processes(features_of_this_process)
    assert torch.equal(first, second)
    model, data = model_of(), digits()
    data.setup("predict")
    with torch.no_grad():
        expected = model.eval().features(data.normalize(data.samples["unlabeled"].store.data[7:100:3]))
    torch.testing.assert_close(first, expected)


@pytest.mark.parametrize("kind", [ASDFixMatch, ASDFreeMatch])
def test_two_processes_decide_what_one_does(
    kind: type[Method], tmp_path: Path, two_processes: Callable[..., list[Any]]
) -> None:
    save_blobs(noise=1.5)
    alone, weights = whole_run(kind, tmp_path, 60)
    ranks = two_processes(whole_run_of_two, kind, tmp_path)
    for number, one in enumerate(alone):
        for rank, (steps, _) in enumerate(ranks):
            for name, value in one.items():
                if name == "y":  # of a weak and a strong view, sharded
                    value = value.view(2, -1)[:, rank::2].flatten()
                assert torch.equal(steps[number][name], value), f"{name} of a rank differs at step {number}"
    assert len(alone) == 20
    assert bool((one["cluster_of"] >= 0).all())
    assert one["matrix"].sum() > 0
    for _, together in ranks:
        for name, value in weights.items():
            torch.testing.assert_close(
                together[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


# ---------------------------------------------------------------------------------------------------------- results
def test_separate_groups_are_found_and_scored() -> None:
    save_blobs(noise=0.8)
    seed_everything(0)
    data = ClusteringDataModule("features", "blobs.npz", steps_per_epoch=120)
    model = ASDFreeMatch(
        num_classes=4, input_shape=(8,), backbone="mlp", freematch_decay=0.9, lr=2e-3, asd_map_every=10
    )
    run = trainer(120)
    run.fit(model, datamodule=data)
    (scores,) = run.test(model, datamodule=data, verbose=False)
    assert scores["test/acc"] > 0.9
    assert scores["test/nmi"] > 0.7
    assert scores["test/ari"] > 0.7
    predicted = torch.cat([part["probabilities"] for part in run.predict(model, datamodule=data)]).argmax(1)
    metric = ClusteringAccuracy(4)
    metric.update(predicted, blobs()[1])
    assert scores["test/acc"] == pytest.approx(float(metric.compute()))
    assert {"test/kmeans_acc", "test/kmeans_input_acc"} <= set(scores)


@pytest.mark.slow
def test_digits_are_clustered_far_above_kmeans_on_pixels() -> None:
    seed_everything(0)
    data = ClusteringDataModule(steps_per_epoch=1000)
    model = ASDFreeMatch(
        num_classes=10, input_shape=(1, 8, 8), optimizer="adamw", lr=2e-3, weight_decay=1e-4, lr_schedule="cosine",
        freematch_decay=0.99,
    )  # fmt: skip
    run = trainer(1000, EMA(decay=0.99), log_every_n_steps=100)
    run.fit(model, datamodule=data)
    (scores,) = run.test(model, datamodule=data, verbose=False)
    assert scores["test/acc"] > 0.9
    assert scores["test/acc"] > scores["test/kmeans_input_acc"] + 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"asd_samples": 9}, "asd_samples=9"),
        ({"asd_sampler": "grid"}, "asd_sampler='grid'"),
        ({"asd_cost": "pixel"}, "asd_cost='pixel'"),
        ({"asd_hold": 0}, "asd_hold=0"),
        ({"asd_warmup": 1.5}, "asd_warmup=1.5"),
        ({"asd_window": 1.5}, "asd_window=1.5"),
        ({"asd_consistency": -1.0}, "asd_consistency=-1.0"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(**options)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named() -> None:
    with pytest.raises(FloatingPointError, match="train/instance"):
        trainer(10).fit(model_of(lr=1e30, asd_hold=1), datamodule=digits())


def test_more_samples_than_there_are_is_an_error_at_setup() -> None:
    with pytest.raises(ValueError, match=r"asd_samples: 130 .* 120"):
        trainer(1).fit(model_of(asd_samples=130), datamodule=digits())


def test_a_fraction_of_an_endless_training_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"trainer\.max_epochs or trainer\.max_steps"):
        trainer(-1, max_epochs=-1).fit(model_of(asd_window=0.3), datamodule=digits())


def test_a_fit_ends_with_a_verdict(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        trainer(5).fit(model_of(), datamodule=digits())
    assert [record for record in caplog.messages if "to be trusted" in record and "edges cross" in record]
