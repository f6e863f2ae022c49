"""Source and target as the methods receive them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from supercm_lightning import (
    DANN,
    EMA,
    SWA,
    DomainAdaptationDataModule,
    FeatureProjection,
    FixMatch,
    Method,
    PredictionWriter,
    RunSummary,
    SuperCM,
    Supervised,
)
from supercm_lightning.data import DATASETS, Normalization
from supercm_lightning.data.sources.make import IMAGENET_MEAN, IMAGENET_STD
from supercm_lightning.data.sources.stores import ArrayStore
from supercm_lightning.data.sources.worker_stores import FileStore

CLASSES = ("bike", "mug", "pen")
SMALL = {"source_batch_size": 6, "target_batch_size": 9, "steps_per_epoch": 3, "image_size": 28}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains in the form of Office-31, Office-Home, and without labels; each in a colour of its own."""
    root, stream = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for domain, place, color, each in (("amazon", "images/", 0, 20), ("Real World", "", 1, 12), ("phone", "", 2, 10)):
        for name in CLASSES if domain != "phone" else ("",):
            folder = root / domain / place / name
            folder.mkdir(parents=True)
            for number in range(each):
                pixels = np.zeros((36, 48, 3), np.uint8)
                pixels[..., color] = stream.integers(100, 256, pixels.shape[:2])
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DomainAdaptationDataModule]:
    """Digits with a few random images in place of the files."""
    for number, name in enumerate(("mnist", "usps", "svhn")):
        spec = DATASETS[name]

        def load(root: Path, part: str, download: bool, number: int = number, shape: Any = spec.input_shape) -> Any:
            labels = torch.arange(10).repeat(6 if part == "train" else 2)
            stream = torch.Generator().manual_seed(number)
            pixels = torch.randint(0, 256, (len(labels), *shape), generator=stream)
            return pixels.to(torch.uint8), labels

        monkeypatch.setitem(DATASETS, name, replace(spec, load=load))

    def make(source: Any, target: Any, **kwargs: Any) -> DomainAdaptationDataModule:
        return DomainAdaptationDataModule(source, target, "digits", **({"steps_per_epoch": 2} | kwargs))

    return make


def folder(root: Path, source: Any = "amazon", target: str = "Real World", **kwargs: Any) -> DomainAdaptationDataModule:
    return DomainAdaptationDataModule(source, target, "folder", root, **(SMALL | kwargs))


def read(data: DomainAdaptationDataModule) -> DomainAdaptationDataModule:
    data.setup("fit")
    return data


def sizes(data: DomainAdaptationDataModule) -> dict[str, int]:
    return {part: len(rows) for part, rows in data.samples.items()}


class Outputs(Callback):
    """Keeps what evaluation steps receive and return, by loader."""

    def __init__(self) -> None:
        self.val: dict[int, list[Any]] = {}
        self.test: dict[int, list[Any]] = {}

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.val.setdefault(dataloader_idx, []).append((batch, outputs))

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.test.setdefault(dataloader_idx, []).append((batch, outputs))


def column(kept: list[Any], number: int) -> torch.Tensor:
    return torch.cat([batch[number] for batch, _ in kept])


class TestRows:
    """Which rows take which part."""

    def test_all_of_the_target_is_trained_and_tested_on_and_a_tenth_of_the_source_held_out(self, photos):
        data = read(folder(photos))
        assert sizes(data) == {"labeled": 54, "unlabeled": 36, "val": 6, "test": 36}
        assert (data.num_classes, data.input_shape, data.class_names) == (3, (3, 28, 28), CLASSES)
        assert data.samples["val"].labels.bincount().tolist() == [2, 2, 2]
        both = torch.cat([data.samples["labeled"].index, data.samples["val"].index])
        assert both.sort().values.tolist() == list(range(60))
        assert data.samples["test"].labels.bincount().tolist() == [12, 12, 12]

    @pytest.mark.parametrize("oracle", [False, True])
    def test_labels_of_the_target_training_rows_are_hidden_unless_asked_for(self, photos, oracle):
        labels = read(folder(photos, oracle_labels=oracle)).samples["unlabeled"].labels
        assert labels.tolist() == ([k for k in range(3) for _ in range(12)] if oracle else [-1] * 36)

    def test_split_seed_alone_draws_the_validation_rows(self, photos):
        rows = {}
        for seed in (0, 1):
            for run in (0, 1):
                seed_everything(run)
                rows[seed, run] = read(folder(photos, split_seed=seed)).samples["val"].index.tolist()
        assert rows[0, 0] == rows[0, 1]
        assert rows[0, 0] != rows[1, 0]

    @pytest.mark.parametrize(("num_val", "count"), [(9, 9), (0.5, 30), (0, 0)])
    def test_number_of_validation_rows(self, photos, num_val, count):
        assert sizes(read(folder(photos, num_val=num_val)))["val"] == count

    def test_several_sources_give_their_shares(self, photos):
        data = read(folder(photos, ["amazon", "real_world"], "phone", num_val=0.25))
        assert sizes(data) == {"labeled": 72, "unlabeled": 10, "val": 24, "test": 0}
        names = [data.describe_sample("val", number) for number in range(24)]
        assert sum("amazon" in name for name in names) == 15
        assert data.samples["val"].labels.bincount().tolist() == [8, 8, 8]

    def test_digits_are_tested_on_the_target_s_own_test_set(self, digits):
        data = read(digits("mnist", "U"))
        assert sizes(data) == {"labeled": 54, "unlabeled": 60, "val": 6, "test": 20}
        assert data.samples["unlabeled"].labels.unique().tolist() == [-1]

    def test_the_target_is_stored_once(self, photos):
        data = read(folder(photos))
        assert data.samples["test"].store is data.samples["unlabeled"].store


class TestDigits:
    """Brought to one size and number of channels."""

    @pytest.mark.parametrize(
        ("source", "target", "size", "shape"),
        [
            ("mnist", "usps", None, (1, 28, 28)),
            ("usps", "mnist", None, (1, 28, 28)),
            ("mnist", "usps", 32, (1, 32, 32)),
            ("svhn", "mnist", None, (3, 32, 32)),
            (["usps", "mnist"], "svhn", None, (3, 32, 32)),
            ("svhn", "usps", 16, (3, 16, 16)),
        ],
    )
    def test_shape(self, digits, gather, source, target, size, shape):
        data = digits(source, target, image_size=size)
        assert data.input_shape == shape
        for part in ("labeled", "unlabeled", "test"):
            assert gather(data, part)[0].shape[1:] == shape

    def test_only_what_must_change_changes(self, digits):
        data = read(digits("mnist", "svhn"))
        svhn = DATASETS["svhn"].load(Path(), "train", False)[0]
        assert torch.equal(data.samples["unlabeled"].store.data, svhn)
        grey = data.samples["labeled"].store.data
        assert (grey == grey[:, :1]).all()

    def test_enlarged_digits_keep_their_brightness(self, digits):
        given = DATASETS["usps"].load(Path(), "train", False)[0].float()
        found = read(digits("mnist", "usps")).samples["unlabeled"].store.data.float()
        torch.testing.assert_close(found.mean((1, 2, 3)), given.mean((1, 2, 3)), rtol=0.03, atol=0)

    def test_real_pair(self, data_root, gather):
        data = DomainAdaptationDataModule("usps", "mnist", "digits", data_root)
        data.setup("fit")
        assert sizes(data) == {"labeled": 6562, "unlabeled": 60000, "val": 729, "test": 10000}
        assert data.samples["test"].labels[:5].tolist() == [7, 2, 1, 0, 4]
        # Strokes are bright on dark ground in both domains.
        means = [data.samples[part].store.data.float().mean() for part in ("labeled", "unlabeled")]
        assert max(means) < 80

    def test_downloads_both_domains(self, digits, monkeypatch):
        asked = []
        for name in ("mnist", "usps", "svhn"):
            spec = DATASETS[name]

            def load(root: Path, part: str, download: bool, name: str = name, load: Any = spec.load) -> Any:
                asked.append((name, part, download))
                return load(root, part, False)

            monkeypatch.setitem(DATASETS, name, replace(spec, load=load))
        digits("mnist", "usps", download=True).prepare_data()
        assert asked == [("mnist", "train", True), ("usps", "train", True), ("usps", "test", True)]
        asked.clear()
        digits("mnist", "usps").prepare_data()
        assert not asked


class TestPhotographs:
    """Stored larger than the model sees them, cropped on the device."""

    def test_stored_at_eight_sevenths_with_both_sides_resized(self, photos):
        data = read(folder(photos))
        store = data.samples["labeled"].store
        assert isinstance(store, ArrayStore)
        assert store.data.shape[1:] == (3, 32, 32)
        expected = Image.open(store.names[0]).resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0)
        assert np.array_equal(store.data[0].permute(1, 2, 0).numpy(), np.asarray(expected))

    def test_default_size(self, photos):
        data = folder(photos, image_size=None)
        assert data.input_shape == (3, 224, 224)
        assert data.source.sample_shape == (3, 256, 256)

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_evaluation_sees_the_normalised_centre(self, photos, gather, in_memory):
        data = folder(photos, in_memory=in_memory, num_workers=0)
        x, y, index = gather(data, "test")
        store = read(folder(photos)).samples["test"].store
        expected = Normalization(IMAGENET_MEAN, IMAGENET_STD)(store.data[:, :, 2:30, 2:30])
        assert torch.equal(x, expected)
        assert y.tolist() == store.labels.tolist()
        assert index.tolist() == list(range(36))
        assert isinstance(data.samples["test"].store, ArrayStore if in_memory else FileStore)

    def test_workers_give_the_batches_of_memory(self, photos, fit):
        first, second = (fit(folder(photos, in_memory=m, num_workers=w)).batches for m, w in ((True, 0), (False, 2)))
        torch.testing.assert_close(first, second, rtol=0, atol=0)

    def test_broken_file_is_named(self, photos, tmp_path):
        photos = copytree(photos, tmp_path / "copy")
        (photos / "Real World/mug/3.png").write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"Real World/mug/3\.png: cannot be read as an image"):
            read(folder(photos))

    def test_office_caltech_end_to_end(self, data_root, fit):
        data = DomainAdaptationDataModule(
            ["D", "webcam"], "amazon", "office_caltech10", data_root, image_size=32, steps_per_epoch=2
        )
        recorder = fit(data, SuperCM)
        assert sizes(data) == {"labeled": 407, "unlabeled": 958, "val": 45, "test": 958}
        assert data.class_names[0] == "backpack"
        assert all(batch["labeled"][0].isfinite().all() for batch in recorder.batches)


class TestTrainingBatch:
    """The batches of the semi-supervised modules, source as labelled and target as unlabelled rows."""

    def test_sizes_and_origin(self, photos, fit):
        data = folder(photos, crop="center")
        zero = (0 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
        for batch in fit(data).batches:
            x, y = batch["labeled"]
            (view,), index = batch["unlabeled"]
            assert (len(x), len(y), len(view), len(index)) == (6, 6, 9, 9)
            # amazon is red, the target green
            assert torch.allclose(x[:, 1], zero[1])
            assert (x[:, 0] > zero[0] + 1).all()
            assert torch.allclose(view[:, 0], zero[0])
            assert (view[:, 1] > zero[1] + 1).all()

    def test_every_image_of_a_batch_is_cropped_by_itself(self, photos, fit):
        # One image alone in the source: crops of it differ.
        rows = TensorDataset(torch.arange(40).repeat(40, 1).to(torch.uint8).expand(3, 1, 40, 40), torch.arange(3))
        data = DomainAdaptationDataModule(
            rows, TensorDataset(rows.tensors[0]), crop="resized", image_size=24, num_val=0, source_batch_size=20,
            steps_per_epoch=1, num_workers=0,
        )  # fmt: skip
        x, _ = fit(data).batches[0]["labeled"]
        assert len(x[:, 0, 0, 0].unique()) > 10

    def test_same_seed_same_batches(self, photos, fit):
        first, again, other = (fit(folder(photos, noise=0.1), seed=seed).batches for seed in (0, 0, 1))
        torch.testing.assert_close(first, again, rtol=0, atol=0)
        assert not torch.equal(first[0]["labeled"][0], other[0]["labeled"][0])

    def test_a_resumed_run_gets_the_batches_of_the_uninterrupted_one(self, photos, fit):
        class Saves(Callback):
            def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
                trainer.save_checkpoint(f"{trainer.global_step}.ckpt")

        whole = fit(folder(photos, noise=0.1), DANN, callbacks=[Saves()], max_epochs=2).batches
        resumed = fit(folder(photos, noise=0.1), DANN, seed=7, ckpt_path=Path("4.ckpt"), max_epochs=2).batches
        assert len(whole) == 6
        torch.testing.assert_close(resumed, whole[4:], rtol=0, atol=0)

    def test_the_target_may_have_an_augmentation_of_its_own(self, photos, fit):
        data = folder(photos, num_workers=0, target_augment={"crop": "center", "flip": False})
        batch = fit(data).batches[0]
        (view,), index = batch["unlabeled"]
        target = data.samples["unlabeled"].store.data
        assert torch.equal(view, data.normalization(target[index][:, :, 2:30, 2:30]))
        source = data.normalization(data.samples["labeled"].store.data[:, :, 2:30, 2:30])
        x, _ = batch["labeled"]
        assert not (x.flatten(1)[:, None] == source.flatten(1)[None]).all(2).any()

    def test_source_augmentation_alone(self, photos, fit):
        data = folder(photos, crop="center", flip=False, noise=0.2, target_augment={"noise": 0.0})
        batch = fit(data).batches[0]
        (view,), index = batch["unlabeled"]
        assert torch.equal(view, data.normalize(data.samples["unlabeled"].store.data[index]))
        table = data.normalize(data.samples["labeled"].store.data).flatten(1)
        x = batch["labeled"][0].flatten(1)
        nearest = torch.cdist(x, table).min(1).values / x.shape[1] ** 0.5
        assert ((nearest > 0.18) & (nearest < 0.22)).all()

    def test_strong_views(self, photos, fit):
        data = folder(photos)
        for batch in fit(data, FixMatch).batches:
            views, _ = batch["unlabeled"]
            assert [view.shape for view in views] == [(9, 3, 28, 28)] * 2
            assert (views[0] != views[1]).flatten(1).any(1).all()

    def test_a_method_that_adapts_trains(self, photos, fit):
        before = folder(photos)
        recorder = fit(before, DANN, max_epochs=2)
        assert len(recorder.batches) == 6


class TestEvaluation:
    """Lists of loaders, of which the first is measured."""

    @pytest.mark.parametrize("oracle", [False, True])
    def test_validation_reads_the_source_and_then_the_target(self, photos, trainer, model, oracle):
        data, outputs = folder(photos, oracle_labels=oracle), Outputs()
        run = trainer(callbacks=[outputs])
        run.fit(model(data), datamodule=data)
        assert sorted(outputs.val) == [0, 1]
        assert torch.equal(column(outputs.val[0], 1), data.samples["val"].labels)
        expected = [k for k in range(3) for _ in range(12)] if oracle else [-1] * 36
        assert column(outputs.val[1], 1).tolist() == expected
        assert column(outputs.val[1], 2).tolist() == list(range(36))
        for kept in outputs.val.values():
            assert all(len(out["logits"]) == len(out["features"]) == len(batch[1]) for batch, out in kept)
        logits = torch.cat([out["logits"] for _, out in outputs.val[0]])
        accuracy = (logits.argmax(1) == data.samples["val"].labels).float().mean()
        assert run.callback_metrics["val/acc"] == accuracy

    def test_test_reads_the_target_and_then_the_source(self, photos, trainer, model):
        data, outputs = folder(photos), Outputs()
        run = trainer(callbacks=[outputs])
        run.test(model(data), datamodule=data, verbose=False)
        assert column(outputs.test[0], 1).tolist() == [k for k in range(3) for _ in range(12)]
        assert torch.equal(column(outputs.test[1], 1), data.samples["val"].labels)
        logits = torch.cat([out["logits"] for _, out in outputs.test[0]])
        assert run.callback_metrics["test/acc"] == (logits.argmax(1) == column(outputs.test[0], 1)).float().mean()

    def test_target_labels_change_nothing_but_the_test(self, photos, trainer, model):
        results = []
        for permuted in (False, True):
            seed_everything(0)
            data = folder(photos)
            if permuted:
                stores = data.source.read()
                # Not a permutation: a model that tells no sample from another would have the same loss.
                stores["unlabeled"].labels = stores["unlabeled"].labels.clamp_min(1)
                data.source.read = lambda stores=stores: stores
            fitted, run = model(data, DANN), trainer(max_epochs=2)
            run.fit(fitted, datamodule=data)
            metrics = run.callback_metrics
            run.test(fitted, datamodule=data, verbose=False)
            results.append((metrics, fitted.state_dict(), run.callback_metrics["test/loss"]))
        (metrics, weights, test), (other_metrics, other_weights, other_test) = results
        assert {"val/acc", "train/dann"} <= set(metrics)
        torch.testing.assert_close(metrics, other_metrics, rtol=0, atol=0)
        for name in ("head.weight", "backbone.1.weight"):
            assert torch.equal(weights[name], other_weights[name])
        assert test != other_test

    def test_without_validation_rows_there_is_one_loader(self, photos, trainer, model):
        data, outputs = folder(photos, num_val=0), Outputs()
        run = trainer(callbacks=[outputs])
        run.fit(model(data), datamodule=data)
        assert not outputs.val
        run.test(model(data), datamodule=data, verbose=False)
        assert sorted(outputs.test) == [0]
        with pytest.raises(ValueError, match="no source validation samples: set num_val"):
            run.validate(model(data), datamodule=data)

    def test_target_without_labels_trains_and_predicts_but_is_not_tested(self, photos, trainer, model, tmp_path):
        data = folder(photos, "amazon", "phone")
        run = trainer(callbacks=[PredictionWriter(str(tmp_path / "table.csv"))])
        fitted = model(data)
        run.fit(fitted, datamodule=data)
        with pytest.raises(
            ValueError, match=r"The target has no labels, so that there is nothing to test. Use predict"
        ):
            run.test(fitted, datamodule=data)
        run.predict(fitted, datamodule=data)
        lines = (tmp_path / "table.csv").read_text().splitlines()
        assert len(lines) == 11
        assert lines[1].split(",")[0] == str(photos / "phone/0.png")
        assert {line.split(",")[1] for line in lines[1:]} <= set(CLASSES)

    @pytest.mark.parametrize("average", [EMA, SWA])
    def test_callbacks_of_the_package_read_lists_of_loaders(self, photos, trainer, model, tmp_path, average):
        data = folder(photos)
        callbacks = [
            FeatureProjection("pca", every_n_epochs=1), RunSummary(), average(),
            ModelCheckpoint(tmp_path / "kept", monitor="val/acc", mode="max"),
        ]  # fmt: skip
        run = trainer(callbacks=callbacks, max_epochs=3, default_root_dir=tmp_path / "run", enable_checkpointing=True)
        fitted = model(data, SuperCM)
        run.fit(fitted, datamodule=data)
        run.test(fitted, datamodule=data, verbose=False)
        assert {"features.png", "features_epoch_0001.png", "summary.json"} <= {
            file.name for file in (tmp_path / "run").iterdir()
        }
        assert list((tmp_path / "kept").glob("*.ckpt"))

    def test_picture_shows_source_classes_and_grey_target(self, photos, trainer, model, monkeypatch):
        drawn = []
        monkeypatch.setattr(FeatureProjection, "draw", lambda self, *args: drawn.append(args) or _Figure())
        data = folder(photos)
        trainer(callbacks=[FeatureProjection("pca")]).fit(model(data), datamodule=data)
        ((_, labels, *_),) = drawn
        assert torch.equal(labels[:6], data.samples["val"].labels)
        assert labels[6:].tolist() == [-1] * 36


class _Figure:
    def savefig(self, *args: Any, **kwargs: Any) -> None:
        pass


class TestDatasets:
    """Torch data sets in place of names."""

    def images(self, n: int, kind: torch.dtype = torch.uint8) -> TensorDataset:
        pixels = torch.randint(0, 256, (n, 3, 10, 10), generator=torch.Generator().manual_seed(n)).to(kind)
        return TensorDataset(pixels, torch.arange(n) % 3)

    def test_parts(self, gather):
        source, target, test = self.images(30), self.images(12), self.images(6)
        data = DomainAdaptationDataModule(source, target, test=test, steps_per_epoch=1, num_workers=0)
        x, y, _ = gather(data, "unlabeled")
        assert torch.equal(x, Normalization()(target.tensors[0]))
        assert y.tolist() == [-1] * 12
        assert gather(data, "test")[1].tolist() == test.tensors[1].tolist()
        assert sizes(data) == {"labeled": 27, "unlabeled": 12, "val": 3, "test": 6}

    def test_labels_of_the_target_are_never_read(self, fit):
        class Unreadable:
            def __int__(self) -> int:
                raise AssertionError("a label of the target was read")

            __index__ = __int__

        class Target(Dataset[Any]):
            def __len__(self) -> int:
                return 12

            def __getitem__(self, row: int) -> Any:
                return torch.zeros(3, 10, 10, dtype=torch.uint8), Unreadable()

        data = DomainAdaptationDataModule(self.images(30), Target(), steps_per_epoch=1, num_workers=0)
        batches = fit(data).batches
        assert len(batches[0]["unlabeled"][1]) == 32

    def test_several_sources_and_a_validation_set(self):
        data = read(
            DomainAdaptationDataModule(
                [self.images(30), self.images(15)], self.images(12), val=self.images(9), in_memory=True
            )
        )
        assert sizes(data) == {"labeled": 45, "unlabeled": 12, "val": 9, "test": 0}
        assert torch.equal(data.samples["labeled"].store.data[30:], self.images(15).tensors[0])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"target": "same"}, "source and target are the same data set"),
            ({"target": TensorDataset(torch.zeros(5, 3, 10, 10))}, "target: images of type torch.float32"),
            ({"source": TensorDataset(torch.zeros(5, 7), torch.arange(5))}, r"source: items of shape \(7,\)"),
            ({"image_size": 12}, r"image_size=12: larger than the images, \(10, 10\)"),
            ({"source": "amazon"}, "dataset: name the data set of the domains, one of digits, office31"),
        ],
    )
    def test_wrong_ones(self, change, message):
        given = {"source": self.images(30), "target": self.images(12)}
        change = {name: given["source"] if value == "same" else value for name, value in change.items()}
        with pytest.raises(ValueError, match=message):
            DomainAdaptationDataModule(**(given | change))


class TestWrongOptions:
    """The message names the option and the way out."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"target": "amazon"}, "source and target are the same domain, amazon"),
            ({"source": ["amazon", "Real_World"]}, "source and target are the same domain, Real World"),
            ({"source": ["amazon", "Amazon"], "target": "phone"}, "a domain is named twice"),
            ({"source": []}, "give source and target by name"),
            ({"source": "dslr"}, r"source='dslr': folder has the domains Real World, amazon, phone"),
            ({"source_batch_size": 0}, "source_batch_size=0: must be at least 1"),
            ({"target_batch_size": -1}, "target_batch_size=-1: must be at least 1"),
            ({"crop": "middle"}, "crop='middle': choose one of resized, center"),
            ({"crop_scale": (0.5, 0.2)}, r"crop_scale=\(0.5, 0.2\): give two ascending numbers"),
            ({"crop_scale": (0.0, 0.2)}, r"crop_scale=\(0.0, 0.2\): give two ascending numbers"),
            ({"target_augment": {"hue": 1}}, "target_augment: 'hue' is none of its options crop, crop_scale, flip"),
            ({"target_augment": {"crop": "middle"}}, "crop='middle'"),
            ({"target_augment": {"noise": -1.0}}, "noise=-1.0: must"),
            ({"shift": 224}, "shift=224: must be from 0 to less than"),
            ({"std": (0.1, 0.2)}, "std: give one value or one for each of the 3 channels"),
            ({"image_size": 0}, "image_size=0: must be at least 1"),
            ({"download": True}, "download: only digits can be fetched"),
            ({"test": TensorDataset(torch.zeros(1))}, "test: goes with torch data sets"),
            ({"predict_on": "target"}, "predict_on='target': choose one of unlabeled, labeled, val, test"),
        ],
    )
    def test_option(self, photos, options, message):
        given = {"source": "amazon", "target": "Real World", "dataset": "folder", "root": photos}
        with pytest.raises(ValueError, match=message):
            DomainAdaptationDataModule(**(given | options))

    def test_unknown_set(self):
        with pytest.raises(ValueError, match=r"dataset='office': choose one of digits, office31, .*, pacs, .*folder"):
            DomainAdaptationDataModule("A", "W", "office")

    def test_missing_digits(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"usps: not found under root=.* \(expected USPS/usps.bz2"):
            read(DomainAdaptationDataModule("usps", "mnist", "digits", tmp_path))

    def test_more_validation_images_than_there_are(self, photos):
        with pytest.raises(ValueError, match=r"num_val=70 .* ask for more than the 60 samples"):
            read(folder(photos, num_val=70))

    def test_a_method_with_a_view_nobody_made(self, photos, fit):
        class Sketches(Method):
            views = ("sketch",)

        with pytest.raises(ValueError, match="Sketches needs the view 'sketch'; DomainAdaptationDataModule has"):
            fit(folder(photos), Sketches)


def test_default_length_of_an_epoch_is_one_pass_over_the_target(photos, fit):
    batches = fit(folder(photos, steps_per_epoch=None), Supervised).batches
    index = torch.cat([batch["unlabeled"][1] for batch in batches])
    assert index.sort().values.tolist() == list(range(36))
