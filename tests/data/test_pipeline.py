"""What a model receives from a data module in a real run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from supercm_lightning import Method, SuperCM, Supervised
from supercm_lightning.callbacks import CentroidUpdate
from supercm_lightning.data import FeatureDataModule, Normalization, SemiSupervisedDataModule, move_batch

SMALL = {"num_labeled": 20, "labeled_batch_size": 8, "unlabeled_batch_size": 12, "steps_per_epoch": 4}


def digits(**kwargs: Any) -> SemiSupervisedDataModule:
    return SemiSupervisedDataModule(**(SMALL | kwargs))


def plain(data: SemiSupervisedDataModule, part: str, index: Tensor) -> Tensor:
    """Normalised images of a part's rows, from the data module's table."""
    rows = data.samples[part]
    return Normalization()(rows.store.data[rows.index[index]])


class ThreeViews(Method):
    """Asks for three copies of the unlabelled rows."""

    views = ("weak", "weak", "weak")


class Sketches(Method):
    """Asks for a view that no data module of the package has."""

    views = ("weak", "sketch")


class NeedsClean(Callback):
    """Asks for the labelled rows without augmentation."""

    needs_clean_labeled = True


class TestTrainingBatch:
    """Its parts and their contents."""

    def test_labelled_images_carry_their_labels_and_views_their_positions(self, fit):
        data = digits(shift=0)
        for batch in fit(data).batches:
            assert sorted(batch) == ["labeled", "unlabeled"]
            x, y = batch["labeled"]
            matches = (plain(data, "labeled", torch.arange(20)).flatten(1)[None] == x.flatten(1)[:, None]).all(2)
            assert matches.any(1).all()
            assert torch.equal(data.samples["labeled"].labels[matches.float().argmax(1)], y)
            views, index = batch["unlabeled"]
            assert isinstance(views, tuple)
            assert len(views) == 1
            assert torch.equal(views[0], plain(data, "unlabeled", index))
            assert (len(x), len(index)) == (8, 12)

    def test_every_unlabelled_row_comes_once_in_an_epoch_of_default_length(self, fit):
        data = digits(steps_per_epoch=None, unlabeled_batch_size=107)  # 1,177 = 11 x 107
        batches = fit(data).batches
        index = torch.cat([batch["unlabeled"][1] for batch in batches])
        assert index.sort().values.tolist() == list(range(1177))

    def test_default_length_without_views_is_a_pass_over_the_labelled_rows(self, trainer, model):
        data = digits(steps_per_epoch=None, num_labeled=40)
        run = trainer()
        run.fit(model(data, use_unlabeled=False), datamodule=data)
        assert run.global_step == 5

    def test_method_without_views_gets_none(self, fit):
        class Alone(Supervised):
            def __init__(self, **kwargs: Any) -> None:
                super().__init__(use_unlabeled=False, **kwargs)

        assert all(list(batch) == ["labeled"] for batch in fit(digits(), Alone).batches)

    def test_views_of_one_batch_are_drawn_apart_from_the_same_rows(self, fit):
        data = digits(noise=0.1, shift=0)
        views, index = fit(data, ThreeViews).batches[0]["unlabeled"]
        assert len(views) == 3
        noise = [view - plain(data, "unlabeled", index) for view in views]
        assert all(0.08 < one.std() < 0.12 for one in noise)
        assert np.abs(np.corrcoef([one.flatten().numpy() for one in noise])[np.triu_indices(3, 1)]).max() < 0.15

    def test_clean_images_are_there_only_for_a_callback_that_asks(self, fit):
        data = digits(noise=0.1)
        batch = fit(data, callbacks=[NeedsClean()]).batches[0]
        x, y = batch["clean"]
        assert torch.equal(y, batch["labeled"][1])
        table = plain(data, "labeled", torch.arange(20)).flatten(1)
        assert all((table == row).all(1).any() for row in x.flatten(1))
        assert not torch.equal(x, batch["labeled"][0])

    @pytest.mark.parametrize(("mode", "clean"), [("reuse", False), ("eval_forward", True)])
    def test_centroids_ask_according_to_their_mode(self, fit, mode, clean):
        batches = fit(digits(), SuperCM, callbacks=[CentroidUpdate(mode)]).batches
        assert all(("clean" in batch) == clean for batch in batches)

    @pytest.mark.parametrize("repeated", [False, True])
    def test_labelled_images_are_unlabelled_ones_only_when_asked(self, fit, repeated):
        data = digits(labeled_in_unlabeled=repeated, unlabeled_batch_size=400, shift=0)
        batches = fit(data).batches
        seen = {row for batch in batches for row in data.samples["unlabeled"].index[batch["unlabeled"][1]].tolist()}
        assert len(seen) == 1177 + 20 * repeated
        assert len(seen & set(data.samples["labeled"].index.tolist())) == 20 * repeated

    def test_double_precision_reaches_the_views(self, fit):
        batch = fit(digits(), precision="64-true").batches[0]
        assert batch["unlabeled"][0][0].dtype == batch["labeled"][0].dtype == torch.float64

    def test_method_with_a_view_nobody_made_is_told(self, fit):
        with pytest.raises(ValueError, match="Sketches needs the view 'sketch'; SemiSupervisedDataModule has weak"):
            fit(digits(), Sketches)

    def test_own_view_of_a_subclass(self, fit):
        class Mine(SemiSupervisedDataModule):
            def configure_augmentations(self) -> dict[str, Any]:
                return super().configure_augmentations() | {"sketch": lambda rows, stream: -self.normalize(rows)}

        views, _ = fit(Mine(**SMALL, shift=0), Sketches).batches[0]["unlabeled"]
        assert torch.equal(views[1], -views[0])


class TestRandomness:
    """A function of seed, step and rank."""

    def test_same_seed_same_batches(self, fit):
        first, second = (fit(digits(noise=0.1), max_epochs=2).batches for _ in range(2))
        torch.testing.assert_close(first, second, rtol=0, atol=0)

    def test_same_seed_same_batches_with_one_data_module_for_both_runs(self, fit):
        data = digits(noise=0.1)
        first, other, again = (fit(data, seed=seed).batches for seed in (0, 1, 0))
        torch.testing.assert_close(first, again, rtol=0, atol=0)
        assert not torch.equal(first[0]["unlabeled"][1], other[0]["unlabeled"][1])

    def test_seed_of_the_run_leaves_the_split_alone(self, fit):
        first, second = digits(), digits()
        fit(first, seed=0)
        fit(second, seed=1)
        assert first.split == second.split
        third = digits(split_seed=1)
        fit(third, seed=0)
        assert third.split != first.split

    def test_steps_draw_anew(self, fit):
        # One labelled row per class in a batch of ten: every step has the same ten images.
        data = digits(num_labeled=10, labeled_batch_size=10, unlabeled_batch_size=1, noise=1.0, shift=0)
        table = plain_of_labels = None
        noise = []
        for batch in fit(data, max_epochs=2).batches:
            x, y = batch["labeled"]
            table = plain(data, "labeled", torch.arange(10))
            plain_of_labels = table[data.samples["labeled"].labels.argsort()]
            noise.append((x - plain_of_labels[y]).flatten().numpy())
        assert np.abs(np.corrcoef(noise)[np.triu_indices(8, 1)]).max() < 0.15

    def test_ranks_draw_apart(self, fit, monkeypatch):
        data = digits(noise=0.1)
        fit(data)
        run = data.trainer
        pixels = torch.zeros(4, 1, 8, 8)
        first = data._view("weak", pixels, "labeled")
        monkeypatch.setattr(type(run), "global_rank", property(lambda self: 1))
        assert not torch.equal(first, data._view("weak", pixels, "labeled"))

    def test_batches_leave_the_global_random_state_alone(self, fit):
        changed = []

        class Watched(SemiSupervisedDataModule):
            def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
                self.state = torch.get_rng_state()
                return super().on_before_batch_transfer(batch, dataloader_idx)

            def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
                batch = super().on_after_batch_transfer(batch, dataloader_idx)
                changed.append(not torch.equal(self.state, torch.get_rng_state()))
                return batch

        fit(Watched(**SMALL, noise=0.1), ThreeViews)
        assert len(changed) > 4
        assert not any(changed)

    @pytest.mark.parametrize("workers", [None, 0, 1])
    @pytest.mark.parametrize("stop", [3, 4, 6])
    def test_resumed_run_walks_on_within_an_epoch(self, fit, image_folder, stop, workers):
        if workers is None:
            options: dict[str, Any] = {}
        else:
            root = image_folder({"a": 12, "b": 12})
            options = {"dataset": "folder", "root": root, "in_memory": False, "num_workers": workers, "image_size": 8}

        class Saves(Callback):
            def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
                trainer.save_checkpoint(f"{trainer.global_step}.ckpt")

        whole = fit(digits(noise=0.1, **options), callbacks=[Saves()], max_epochs=3).batches
        # Another seed than the first run's: the checkpoint's counts.
        resumed = fit(digits(noise=0.1, **options), seed=1, ckpt_path=Path(f"{stop}.ckpt"), max_epochs=3).batches
        assert len(whole) == 12
        torch.testing.assert_close(resumed, whole[stop:], rtol=0, atol=0)


class TestEvaluation:
    """Validation, test and prediction."""

    @pytest.mark.parametrize("part", ["labeled", "unlabeled", "val", "test"])
    def test_every_part_can_be_predicted_in_order(self, gather, part):
        data = digits(noise=0.5, eval_batch_size=100)
        x, y, index = gather(data, part)
        assert index.tolist() == list(range(len(data.samples[part])))
        assert torch.equal(x, plain(data, part, index))
        assert torch.equal(y, data.samples[part].labels)

    def test_validation_rows_are_seen_once_and_plain(self, fit):
        data = digits(noise=0.5, eval_batch_size=64)
        batches = fit(data).val_batches
        x, _, index = (torch.cat(column) for column in zip(*batches, strict=True))
        assert index.tolist() == list(range(150))
        assert torch.equal(x, plain(data, "val", index))

    def test_without_validation_rows_fit_runs_and_validate_says_what_is_missing(self, fit, trainer, model):
        data = digits(num_val=0)
        recorded = fit(data)
        assert (len(recorded.batches), recorded.val_batches) == (4, [])
        with pytest.raises(ValueError, match=r"no validation samples. Give a validation set, or set num_val"):
            trainer().validate(model(data), datamodule=data)

    def test_without_test_rows_test_says_what_is_missing(self, trainer, model):
        data = digits(num_test=0)
        with pytest.raises(ValueError, match=r"no test samples. Give a test set, or set num_test"):
            trainer().test(model(data), datamodule=data)

    def test_rows_are_described_by_their_file(self, gather, image_folder):
        data = SemiSupervisedDataModule("folder", root=image_folder({"labeled/a": 3, "labeled/b": 2, "unlabeled/x": 4}))
        _, _, index = gather(data, "unlabeled")
        names = [data.describe_sample("predict", int(row)) for row in index]
        assert names == [str(Path(data.hparams.root) / f"unlabeled/x/{row}.png") for row in range(4)]
        assert data.describe_sample("labeled", 4) == str(Path(data.hparams.root) / "labeled/b/1.png")

    def test_rows_without_file_are_described_by_their_index(self):
        data = digits()
        data.setup("fit")
        assert data.describe_sample("test", 7) == "7"


class TestOutsideTheLoops:
    """`move_batch`, for callbacks that read batches themselves."""

    def test_gives_what_the_model_would_get(self, trainer, model):
        data, found = digits(shift=0), {}

        class Reads(Callback):
            def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
                # Any number of times, and without an effect on the run's own walk.
                for name in ("val", "test"):
                    raw = next(iter(getattr(data, f"{name}_dataloader")()))
                    found[name] = move_batch(raw, trainer, pl_module)
                raw = {part: next(iter(loader)) for part, loader in data.train_dataloader().items()}
                found["train"] = move_batch(raw, trainer, pl_module)

        trainer(callbacks=[Reads()]).fit(model(data), datamodule=data)
        for name in ("val", "test"):
            x, y, index = found[name]
            assert torch.equal(x, plain(data, name, index))
            assert torch.equal(y, data.samples[name].labels[index])
        views, index = found["train"]["unlabeled"]
        assert torch.equal(views[0], plain(data, "unlabeled", index))

    def test_reading_beside_the_run_does_not_change_the_run(self, fit):
        data = digits(noise=0.1)

        class Reads(Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
                raw = {part: next(iter(loader)) for part, loader in data.train_dataloader().items()}
                move_batch(raw, trainer, pl_module)

        torch.testing.assert_close(fit(data, callbacks=[Reads()]).batches, fit(data).batches, rtol=0, atol=0)

    def test_works_for_loaders_and_data_modules_of_a_user(self, trainer, model):
        x, y = torch.randn(6, 1, 8, 8), torch.arange(6)
        found = []

        class Reads(Callback):
            def on_test_end(self, trainer: Any, pl_module: Any) -> None:
                found.append(move_batch(next(iter(loader)), trainer, pl_module))

        class Mine(LightningDataModule):
            def test_dataloader(self) -> Any:
                return loader

            def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
                return batch[0] + 1, batch[1]

        loader = DataLoader(TensorDataset(x, y), batch_size=6)
        trainer(callbacks=[Reads()]).test(model(digits()), loader)
        trainer(callbacks=[Reads()]).test(model(digits()), datamodule=Mine())
        assert torch.equal(found[0][0], x)
        assert torch.equal(found[1][0], x + 1)


class TestBadInput:
    """Options that cannot work."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"labeled_batch_size": 0}, "labeled_batch_size=0: must be at least 1"),
            ({"unlabeled_batch_size": -3}, "unlabeled_batch_size=-3: must be at least 1"),
            ({"eval_batch_size": 0}, "eval_batch_size=0: must be at least 1"),
            ({"steps_per_epoch": 0}, "steps_per_epoch=0: must be at least 1"),
            ({"num_workers": -1}, "num_workers=-1: must be at least 0"),
            ({"predict_on": "train"}, "predict_on='train': choose one of unlabeled, labeled, val, test"),
            ({"num_labeled": 9}, "num_labeled=9: fewer labels than the 10 classes"),
            ({"shift": 8}, r"shift=8: must be from 0 to less than the images' \(8, 8\)"),
            ({"shift": -1}, "shift=-1"),
            ({"noise": -0.1}, "noise=-0.1"),
            ({"mean": (0.5, 0.5, 0.5)}, "mean: give one value or one for each of the 1 channels"),
            ({"std": (0.0,)}, r"std=\(0.0,\): must be positive"),
            ({"whitening": True, "in_memory": False}, "whitening=true needs all images in memory"),
        ],
    )
    def test_refused_at_once(self, options, message):
        with pytest.raises(ValueError, match=message):
            digits(**options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"num_labeled": 1500},
                "num_labeled=1500, num_val=150 and num_test=450 ask for more than the 1,797 samples",
            ),
            ({"num_val": 1797}, "num_val=1797 .* ask for more"),
            ({"num_val": -1}, "num_val=-1: must not be negative"),
            ({"num_test": -0.1}, "num_test=-0.1: must not be negative"),
        ],
    )
    def test_refused_when_the_data_is_read(self, options, message):
        with pytest.raises(ValueError, match=message):
            digits(**options).setup("fit")

    def test_share_of_the_training_set(self):
        data = digits(num_val=0.1)
        data.setup("fit")
        assert len(data.samples["val"]) == 180

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize("limit", [{"max_epochs": 1}, {"max_steps": 5, "max_epochs": -1}])
    @pytest.mark.parametrize("kind", ["digits", "features"])
    def test_no_unlabelled_rows_stop_a_method_that_needs_them(self, fit, limit, kind):
        if kind == "digits":
            data: Any = digits(num_labeled=None)
        else:
            data = FeatureDataModule(TensorDataset(torch.randn(12, 3), torch.arange(12) % 3))
        with pytest.raises(ValueError, match=r"The unlabeled set is empty.*set num_labeled below"):
            fit(data, SuperCM, **limit)

    def test_no_unlabelled_rows_are_no_trouble_for_the_supervised_method(self, trainer, model):
        data = digits(num_labeled=None)
        run = trainer()
        run.fit(model(data, use_unlabeled=False), datamodule=data)
        assert run.global_step == 4

    def test_loaders_before_the_data_was_read(self):
        for loaders in (digits().train_dataloader, digits().test_dataloader):
            with pytest.raises(RuntimeError, match=r'call setup\("fit"\) first'):
                loaders()
