"""Scores of a run on a target domain: what is logged, which checkpoint it selects, what is reported."""

import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from supercm_lightning import EMA, AdaptationScores, Method, RunSummary, SuperCM, Supervised, metrics
from supercm_lightning.cli import run as supercm
from supercm_lightning.data import ViewDataModule
from supercm_lightning.data.sources.stores import ArrayStore, Samples

SCORES = ("score", "im", "neg_entropy", "bnm", "snd", "class_ami", "dev")
EVERYTHING = {f"val/{name}" for name in SCORES}


class TwoDomains(ViewDataModule):
    """Four classes in eight dimensions; the target is turned and shifted."""

    is_domain_adaptation = True
    labeled_batch_size = unlabeled_batch_size = 20

    def __init__(self, oracle_labels: bool = False, domains: int = 2, eval_batch_size: int = 16) -> None:
        super().__init__(eval_batch_size, steps_per_epoch=5, num_workers=0)
        self.num_classes, self.input_shape = 4, (8,)
        self.oracle_labels, self.domains = oracle_labels, domains

    def read(self) -> dict[str, Samples]:
        stream = torch.Generator().manual_seed(0)
        labels = torch.arange(121) % 4
        centers = 1.3 * torch.randn(4, 8, generator=stream)
        source, target = (centers[labels] + torch.randn(121, 8, generator=stream) for _ in range(2))
        target = 0.7 * target + 0.5 * target.roll(1, dims=1) + 0.5
        store, other = ArrayStore(source, labels), ArrayStore(target, labels)
        unlabeled = Samples.all_of(other, hide_labels=not self.oracle_labels)
        parts = {"labeled": Samples(store, torch.arange(80)), "val": Samples(store, torch.arange(80, 121))}
        return parts | {"unlabeled": unlabeled, "test": Samples.all_of(other)}

    def configure_augmentations(self):
        return {"weak": lambda rows, stream: rows}

    def normalize(self, rows):
        return rows

    def val_dataloader(self):
        return [self._eval_dataloader(part) for part in ("val", "unlabeled", "test")[: self.domains]]

    def test_dataloader(self):
        return [self._eval_dataloader(part) for part in ("test", "val")[: self.domains]]


class Watch(Callback):
    """Metrics after each validation."""

    def __init__(self):
        self.metrics = []

    def on_validation_end(self, trainer, pl_module):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def make_model(kind=SuperCM, **options) -> Method:
    torch.manual_seed(1)
    options = {"backbone": "mlp", "optimizer": "sgd", "lr": 0.05, "batch_norm": "split"} | options
    return kind(num_classes=4, input_shape=(8,), **options)


def make_trainer(callbacks, **options) -> Trainer:
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks), "max_epochs": 4}
    return Trainer(callbacks=callbacks, default_root_dir=Path.cwd(), **(settings | options))


def fit(callbacks, data=None, model=None, ckpt_path=None, **options) -> Trainer:
    seed_everything(3, verbose=False)
    trainer = make_trainer(callbacks, **options)
    trainer.fit(model or make_model(), datamodule=data or TwoDomains(), ckpt_path=ckpt_path)
    return trainer


def features_and_logits(model, rows):
    with torch.no_grad():
        features = model.eval().features(rows.store.data[rows.index])
        return features, model.head(features)


def test_scores_are_those_of_all_target_rows_of_the_validated_weights():
    # With a sanity check before, and weights that are averaged.
    watch, scores = Watch(), AdaptationScores()
    trainer = fit([EMA(decay=0.5, refresh_batches=2), scores, watch], data=TwoDomains(oracle_labels=True))
    assert not EVERYTHING & watch.metrics[0].keys()  # the sanity check
    assert [validation["step"] for validation in scores.curve] == [5, 10, 15, 20]
    for logged, validation in zip(watch.metrics[1:], scores.curve, strict=True):
        names = {*EVERYTHING, "val/acc"}
        assert {name: logged[name] for name in names} == pytest.approx({name: validation[name] for name in names})
        assert logged["oracle/target_acc"] == pytest.approx(validation["target_acc"])
    rows, model, last = trainer.datamodule.samples, trainer.lightning_module, scores.curve[-1]
    (source, source_logits), (target, logits) = (
        features_and_logits(model, rows[part]) for part in ("val", "unlabeled")
    )
    losses = torch.nn.functional.cross_entropy(source_logits, torch.arange(80, 121) % 4, reduction="none")
    expected = {
        "val/im": metrics.information_maximization(logits),
        "val/neg_entropy": metrics.negative_entropy(logits),
        "val/bnm": metrics.batch_nuclear_norm_score(logits),
        "val/snd": metrics.soft_neighborhood_density(logits),
        "val/class_ami": metrics.class_ami(target, logits),
        "val/dev": metrics.deep_embedded_validation(losses, source, target),
        "val/score": last["val/acc"] + last["val/im"] / math.log(4),
        "target_acc": float((logits.argmax(dim=1) == torch.arange(121) % 4).double().mean()),
    }
    assert {name: last[name] for name in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("monitor", "mode"), [("val/score", "max"), ("val/im", "min")])
def test_last_selected_and_best_stand_side_by_side_in_the_summary(monitor, mode, tmp_path):
    scores, saver = AdaptationScores(), ModelCheckpoint(tmp_path, "{step}", monitor, mode=mode)
    trainer = fit([scores, RunSummary(), saver], TwoDomains(oracle_labels=True), make_model(lr=0.3), max_epochs=8)
    result = trainer.test(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    reported = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    accuracy = {validation["step"]: validation["target_acc"] for validation in scores.curve}
    kept = int(Path(saver.best_model_path).stem.split("=")[1])
    expected = {
        "target/acc_last": accuracy[40],
        "target/acc_selected": accuracy[kept],
        "oracle/target_acc_best": max(accuracy.values()),
        "test/acc": accuracy[40],  # this data's test rows are its target rows
    }
    assert {name: reported[name] for name in expected} == pytest.approx(expected)
    assert len(set(accuracy.values())) > 3
    rows, model = trainer.datamodule.samples, trainer.lightning_module
    pad = metrics.proxy_a_distance(*(features_and_logits(model, rows[part])[0] for part in ("val", "test")))
    assert 0 < pad < 2
    assert reported["test/pad"] == pytest.approx(pad)
    printed = {name: value for part in result for name, value in part.items()}
    assert printed.keys() == {*expected, "test/loss", "test/pad"}
    assert printed == pytest.approx({name: reported[name] for name in printed})


def test_no_score_depends_on_target_labels():
    known, hidden, scores = Watch(), Watch(), AdaptationScores()
    fit([AdaptationScores(), known], data=TwoDomains(oracle_labels=True), max_epochs=2)
    trainer = fit([scores, hidden], max_epochs=2)
    trainer.test(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    assert trainer.callback_metrics["test/pad"] > 0
    assert not [name for name in trainer.callback_metrics if "target" in name]
    assert {name for logged in known.metrics for name in logged} > {"oracle/target_acc"}
    for with_labels, without in zip(known.metrics, hidden.metrics, strict=True):
        assert without == pytest.approx({name: value for name, value in with_labels.items() if "oracle" not in name})


def test_validation_alone_gives_scores_and_test_alone_the_distance():
    trainer, scores = make_trainer([]), AdaptationScores()
    trainer.callbacks.append(scores)
    model, data = make_model(), TwoDomains()
    trainer.validate(model, datamodule=data, verbose=False)
    assert trainer.callback_metrics.keys() == {*EVERYTHING, "val/acc", "val/loss"}
    assert not scores.curve
    trainer.test(model, datamodule=data, verbose=False)
    assert trainer.callback_metrics.keys() == {"test/acc", "test/loss", "test/pad"}


def test_a_resumed_run_has_the_curve_of_the_whole_one_and_none_is_disturbed(tmp_path):
    def saver(folder):
        return ModelCheckpoint(tmp_path / folder, "{step}", monitor="val/score", mode="max", save_top_k=-1)

    kept, scores = AdaptationScores(), AdaptationScores()
    whole = fit([kept, saver("whole")])
    resumed = fit([scores, saver("resumed")], ckpt_path=tmp_path / "whole" / "step=10.ckpt")
    assert repr(scores.curve) == repr(kept.curve)  # not a number is not equal to itself
    assert len(scores.curve) == 4
    plain = fit([])
    for name, value in plain.lightning_module.state_dict().items():
        assert torch.equal(whole.lightning_module.state_dict()[name], value), name
        assert torch.equal(resumed.lightning_module.state_dict()[name], value), name
    # Another fit with the same callback is another curve.
    make_trainer([scores], max_epochs=1).fit(make_model(), datamodule=TwoDomains())
    assert [validation["step"] for validation in scores.curve] == [5]


def test_features_that_are_not_finite_give_no_score_and_do_not_end_the_run():
    class Broken(Supervised):
        def features(self, x):
            return super().features(x) if self.training else super().features(x) * float("nan")

    watch, scores = Watch(), AdaptationScores()
    with pytest.warns(UserWarning, match="not finite"):
        fit([scores, watch], model=make_model(Broken), max_epochs=1)
    assert all(math.isnan(watch.metrics[1][name]) for name in EVERYTHING)


def test_too_few_rows_for_a_classifier_of_domains_give_no_distance():
    trainer = fit([scores := AdaptationScores()], TwoDomains(eval_batch_size=4), max_epochs=1, limit_val_batches=1)
    assert math.isnan(scores.curve[0]["val/dev"])
    assert math.isfinite(scores.curve[0]["val/score"])
    trainer = make_trainer([AdaptationScores()], limit_test_batches=1)
    trainer.test(make_model(), datamodule=TwoDomains(eval_batch_size=4), verbose=False)
    assert "test/pad" not in trainer.callback_metrics


@pytest.mark.parametrize("domains", [1, 3])
def test_other_numbers_of_validation_loaders_are_an_error(domains):
    with pytest.raises(ValueError, match=f"two validation loaders.*{domains}"):
        fit([AdaptationScores()], data=TwoDomains(domains=domains))
    if domains == 1:  # nothing to compare, but no reason to lose a test
        trainer = make_trainer([AdaptationScores()])
        trainer.test(make_model(), datamodule=TwoDomains(domains=1), verbose=False)
        assert "test/pad" not in trainer.callback_metrics


def test_a_module_that_returns_no_features_is_an_error():
    class Silent(Supervised):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx, dataloader_idx)

    with pytest.raises(ValueError, match="needs features and logits"):
        fit([AdaptationScores()], model=make_model(Silent))
    with pytest.raises(ValueError, match="max_samples=1"):
        AdaptationScores(max_samples=1)


def scores_of_this_process() -> tuple[dict, dict, list]:
    """Validation and test of an untrained model, in a process of the pool or alone."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    trainer = make_trainer([AdaptationScores()], devices=world, strategy="ddp" if world > 1 else "auto")
    model, data = make_model(Supervised), TwoDomains()
    validated = trainer.validate(model, datamodule=data, verbose=False)[0]
    tested = trainer.test(model, datamodule=data, verbose=False)
    return validated, {name: value for part in tested for name, value in part.items()}


def test_two_processes_score_as_one(two_processes):
    # 41 and 121 rows over two processes: samplers repeat one of each, and scores must not.
    validated, tested = scores_of_this_process()
    for in_rank in two_processes(scores_of_this_process):
        for alone, together, names in ((validated, in_rank[0], EVERYTHING), (tested, in_rank[1], {"test/pad"})):
            assert {name: together[name] for name in names} == pytest.approx({n: alone[n] for n in names}, rel=1e-5)


def test_the_command_line_adds_it_for_two_domains_alone(tmp_path):
    quick = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    domains = ["--model.backbone=mlp", f"--data={__name__}.TwoDomains"]

    def added(args):
        return [
            c
            for c in supercm(["fit", "--model=Supervised", *args, *quick]).trainer.callbacks
            if isinstance(c, AdaptationScores)
        ]

    (scores,) = added([*domains, "--data.oracle_labels=true"])
    assert scores.max_samples == 5000
    summary = json.loads(next(tmp_path.rglob("summary.json")).read_text())
    assert {*EVERYTHING, "test/pad", "target/acc_selected", "oracle/target_acc_best"} <= summary["metrics"].keys()
    (scores,) = added([*domains, "--trainer.callbacks+=AdaptationScores", "--trainer.callbacks.max_samples=50"])
    assert scores.max_samples == 50
    assert not added(["--data=SemiSupervisedDataModule", "--data.num_labeled=20", "--data.steps_per_epoch=1"])


@pytest.mark.parametrize("kind", [ModelCheckpoint, EarlyStopping])
def test_choosing_by_labels_of_the_target_is_warned_of(kind):
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[kind(monitor="oracle/target_acc")])
    with pytest.warns(UserWarning, match="monitor=oracle/target_acc chooses by labels of the target"):
        AdaptationScores().setup(trainer, None, "fit")
