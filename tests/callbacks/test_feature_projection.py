"""The picture of the features: what is drawn, when, and that it disturbs nothing."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.colors import to_hex
from matplotlib.image import imread
from torch.utils.data import DataLoader, TensorDataset

from supercm_lightning.callbacks import SWA, FeatureProjection
from supercm_lightning.methods import Supervised
from supercm_lightning.utils.options import SuperCMError


def scatters(figure):
    """Number of points and first color of each labeled scatter of a figure, and the stars apart."""
    found = {}
    for part in figure.axes[0].collections:
        found[part.get_label()] = len(part.get_offsets()), to_hex(part.get_facecolors()[0])
    return found


def watch(**options):
    """A projection by PCA that notes what it draws."""

    class Watch(FeatureProjection):
        def draw(self, *args):
            self.seen.append(args)
            return super().draw(*args)

    projection = Watch(**({"method": "pca", "max_samples": 320} | options))
    projection.seen = []
    return projection


class Own(Supervised):
    """Takes batches of labeled samples alone."""

    views = ()

    def labeled_samples(self, batch):
        return batch


def clusters(num_classes, per_class, width=6):
    generator = torch.Generator().manual_seed(0)
    centers = 5 * torch.randn(num_classes, width, generator=generator)
    labels = torch.arange(num_classes).repeat(per_class)
    return centers[labels] + torch.randn(len(labels), width, generator=generator), labels, centers


def test_every_sample_is_drawn_in_the_color_of_its_class():
    features, labels, centroids = clusters(3, 20)
    labels[:6] = -1
    centroids[1] = float("nan")
    figure = FeatureProjection(method="pca").draw(features, labels, centroids, ("cat", "dog", "frog"), "title")
    found = scatters(figure)
    assert {name: count for name, (count, _) in found.items() if not name.startswith("_")} == {
        "cat": 18,
        "dog": 18,
        "frog": 18,
        "unlabeled": 6,
        "centroid": 0,
    }
    stars = next(part for part in figure.axes[0].collections if part.get_label().startswith("_"))
    assert len(stars.get_offsets()) == 2
    colors = [found[name][1] for name in ("cat", "frog")]
    assert [to_hex(color) for color in stars.get_facecolors()] == colors
    assert len({color for _, color in found.values()}) == len(found) - 1  # the first star has its class's color
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["cat", "dog", "frog", "unlabeled", "centroid"]
    assert figure.axes[0].get_title() == "title"


def test_centroids_share_the_embedding_of_the_features():
    features, labels, _ = clusters(3, 20)
    means = torch.stack([features[labels == number].mean(dim=0) for number in range(3)])
    figure = FeatureProjection(method="pca").draw(features, labels, means)
    *points, stars, _ = figure.axes[0].collections
    # PCA is linear: the star of a class is the mean of its points.
    np.testing.assert_allclose(stars.get_offsets(), [part.get_offsets().mean(axis=0) for part in points], atol=1e-5)


def test_domains_differ_by_marker_and_classes_by_color():
    features, labels, centroids = clusters(3, 20)
    is_target = torch.arange(60) % 4 == 0
    labels[is_target & (labels == 2)] = -1
    names = ("cat", "dog", "frog")
    figure = FeatureProjection(method="pca").draw(features, labels, centroids, names, "title", is_target)
    parts = [part for part in figure.axes[0].collections if len(part.get_offsets())]
    outlines = [len(part.get_paths()[0].vertices) for part in parts]
    discs, crosses, stars = parts[:3], parts[3:6], parts[6]
    assert outlines[0] == outlines[1] == outlines[2] != outlines[3] == outlines[4] == outlines[5] != outlines[6]
    assert [len(part.get_offsets()) for part in (*discs, *crosses, stars)] == [15, 15, 15, 5, 5, 5, 3]
    for disc, cross in zip(discs[:2], crosses[:2], strict=True):
        assert to_hex(disc.get_facecolors()[0]) == to_hex(cross.get_edgecolors()[0])
    points = FeatureProjection(method="pca").embed(torch.cat([features, centroids]))[:60]
    for cross, number in zip(crosses, (0, 1, -1), strict=True):
        np.testing.assert_allclose(cross.get_offsets(), points[(is_target & (labels == number)).numpy()])
    written = [text.get_text() for text in figure.legends[0].get_texts()]
    assert written == ["cat", "dog", "frog", "unlabeled", "source", "target", "centroid"]


def test_pictures_of_two_domains_say_which_is_which_and_whose_the_accuracy_is(short):
    drawn = []

    class Seen(FeatureProjection):
        def draw(self, features, labels, centroids, names, title, is_target):
            drawn.append((title, labels, is_target))
            return super().draw(features, labels, centroids, names, title, is_target)

    data = short.make_data(num_val=30, num_test=70)
    data.is_domain_adaptation = True
    data.val_dataloader = lambda: [data._eval_dataloader(part) for part in ("val", "unlabeled")]
    data.test_dataloader = lambda: [data._eval_dataloader(part) for part in ("test", "val")]
    trainer, model, _ = short.run([Seen(method="pca", max_samples=200)], data=data)
    # Source rows are validation's first loader and the test's second.
    accuracy = 100 * float(trainer.callback_metrics["val/acc"])
    tester = short.make_trainer([Seen(method="pca", max_samples=200)])
    tester.test(model, datamodule=data, verbose=False)
    (title, labels, is_target), (test_title, test_labels, is_test_target) = drawn
    assert title == f"Validation features, source accuracy {accuracy:.1f} %"
    assert test_title == f"Test features, target accuracy {100 * float(tester.callback_metrics['test/acc']):.1f} %"
    source = sorted(data.samples["val"].labels.tolist())
    assert sorted(labels[~is_target].tolist()) == sorted(test_labels[~is_test_target].tolist()) == source
    assert (int(is_target.sum()), int(is_test_target.sum())) == (100, 70)


@pytest.mark.parametrize(("num_classes", "legends"), [(24, 1), (100, 0)])
def test_many_classes_are_numbered_in_place_of_a_legend(num_classes, legends):
    features, labels, centroids = clusters(num_classes, 2)
    figure = FeatureProjection(method="pca").draw(features, labels, centroids)
    assert len(figure.legends) == legends
    written = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(written, key=int) == ([] if legends else [str(number) for number in range(num_classes)])
    colors = {color for name, (_, color) in scatters(figure).items() if name.isdigit()}
    assert len(colors) == num_classes


@pytest.mark.parametrize("count", [2, 3, 5, 40])
@pytest.mark.parametrize("width", [1, 60])
def test_tsne_embeds_any_number_of_samples(count, width):
    features = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    points = FeatureProjection(method="tsne").embed(features)
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
    assert np.ptp(points, axis=0).max() > 0


def test_tsne_keeps_clusters_apart_and_is_reproducible():
    features, labels, _ = clusters(3, 15)
    points = FeatureProjection(method="tsne").embed(features)
    np.testing.assert_array_equal(points, FeatureProjection(method="tsne").embed(features))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    assert (labels.numpy()[distances.argmin(axis=1)] == labels.numpy()).all()


def test_pictures_of_a_fit(short, tmp_path, plain):
    logger = TensorBoardLogger(tmp_path, "runs")
    projection = FeatureProjection(method="pca", every_n_epochs=2, max_samples=60)
    drawn = []
    draw = projection.draw
    projection.draw = lambda *args: drawn.append(args) or draw(*args)
    # In front of the averaging, whose weights it must show all the same.
    trainer, model, recorder = short.run([projection, SWA(start=4)], logger=logger, log_every_n_steps=1)
    folder = tmp_path / "runs" / "version_0"
    assert sorted(path.name for path in folder.glob("*.png")) == ["features.png", "features_epoch_0002.png"]
    assert imread(folder / "features.png").shape[0] > 600
    assert len(drawn) == 2
    features, labels, centroids, names, title, is_target = drawn[-1]
    assert is_target is None
    assert features.shape == (60, 8)
    assert len(set(labels.tolist())) > 5
    assert torch.equal(centroids, model.head.centroids)
    assert names == trainer.datamodule.class_names
    assert title == f"Validation features, accuracy {100 * recorder.metrics[12]:.1f} %"
    for step, state in plain.items():
        for name, value in state.items():
            assert torch.equal(recorder.trained[step][name], value)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Images("features")] == [8, 12]
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.filterwarnings("ignore:Total length of `list`")
def test_test_samples_are_drawn_without_validation_samples_and_after_test_alone(short, tmp_path):
    titles = []

    class Titled(FeatureProjection):
        def draw(self, features, labels, centroids, names, title, is_target):
            titles.append((title.split(",")[0], len(features), centroids))
            return super().draw(features, labels, centroids, names, title, is_target)

    model = short.make_model(Supervised)
    data = short.make_data(num_val=0)
    trainer, _, _ = short.run([Titled(method="pca")], model=model, data=data)
    assert titles == [("Test features", 450, None)]
    trainer.test(model, datamodule=data, verbose=False)
    assert len(titles) == 1
    short.make_trainer([Titled(method="pca")]).test(model, datamodule=data, verbose=False)
    assert titles[1:] == [("Test features", 450, None)]


@pytest.mark.filterwarnings("ignore:Total length of `list`")
def test_training_samples_are_drawn_where_no_others_are_left_unlabeled_ones_in_gray(short, tmp_path):
    data = short.make_data(num_val=0, num_test=0)
    drawn = watch()
    short.run([drawn], model=short.make_model(Supervised), data=data)
    ((features, labels, _, _, title, _),) = drawn.seen
    assert title == "Training features"
    assert len(labels) == len(features) == 200
    assert sorted(labels.tolist()) == sorted([-1] * 160 + data.samples["labeled"].labels.tolist())
    assert (tmp_path / "features.png").exists()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but")
def test_loaders_without_validation_draw_nothing_until_the_test(short, tmp_path):
    samples = TensorDataset(torch.randn(40, 1, 8, 8), torch.arange(40) % 10)
    module, trainer = short.make_model(Own), short.make_trainer([FeatureProjection(method="pca")], max_steps=2)
    with pytest.warns(UserWarning, match="drew nothing"):
        trainer.fit(module, DataLoader(samples, 20))
    assert not (tmp_path / "features.png").exists()
    trainer.test(module, DataLoader(samples, 20), verbose=False)
    assert (tmp_path / "features.png").exists()


def test_a_module_without_features_is_refused(short):
    class Other(LightningModule):
        pass

    with pytest.raises(SuperCMError, match="features"):
        FeatureProjection().setup(short.make_trainer(), Other(), "fit")


def test_features_that_are_not_finite_do_not_end_the_run(short, tmp_path):
    class Broken(Supervised):
        def features(self, x):
            return super().features(x) if self.training else super().features(x) * float("nan")

    with pytest.warns(UserWarning, match="drew nothing"):
        short.run([FeatureProjection(method="pca")], model=short.make_model(Broken))
    assert not (tmp_path / "features.png").exists()


def test_wrong_options_and_a_missing_umap_are_errors(short, monkeypatch):
    for arguments in ({"method": "mds"}, {"max_samples": 1}, {"every_n_epochs": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            FeatureProjection(**arguments)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install supercm-lightning\[umap\]"):
        FeatureProjection(method="umap").setup(short.make_trainer(), short.make_model(), "fit")
