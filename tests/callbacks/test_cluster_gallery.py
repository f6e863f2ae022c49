"""The contact sheet of classes and clusters, of predictions made by hand."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch.utils.data import TensorDataset

from supercm_lightning import ClusterGallery, ClusteringDataModule, FeatureDataModule, SemiSupervisedDataModule
from supercm_lightning.callbacks.evaluation import cluster_gallery
from supercm_lightning.methods import ASD, Clusterer, Supervised

# Confidence of class 1, and label, of six samples; sample n is an image of gray level 40 n.
SURE, LABELS = [0.9, 0.6, 0.2, 0.8, 0.7, 0.45], [1, 0, 0, 0, 1, 1]


class ByHand(Supervised):
    """Gives the samples their predictions by their index."""

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, torch.Tensor]:
        p = torch.tensor(SURE)[batch[2]]
        return {"logits": torch.stack([1 - p, p], dim=1).log(), "features": batch[0].flatten(1)}

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, torch.Tensor | None]:
        return {"probabilities": self.test_step(batch, 0)["logits"].softmax(1), "index": batch[2]}


class Clusters(ByHand, Clusterer):
    """The same numbers, as clusters."""


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Headings and bands of every sheet; the sheet itself is drawn too."""
    drawn: list[Any] = []
    draw = cluster_gallery.contact_sheet

    def record(headings: Any, bands: Any, columns: int, size: int) -> Image.Image:
        drawn.append(
            (headings, [(title, [[read(one) for one in group] for group in groups]) for title, groups in bands])
        )
        return draw(headings, bands, columns, size)

    def read(one: Any) -> tuple[int, str, bool]:
        return round(float(np.asarray(one.image).mean()) / 40), " ".join(one.lines), one.is_wrong

    monkeypatch.setattr(cluster_gallery, "contact_sheet", record)
    return drawn


def trainer_of(*callbacks: Any, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(**quiet, enable_model_summary=False, callbacks=list(callbacks), **options)


def gray() -> torch.Tensor:
    return (torch.arange(6, dtype=torch.uint8) * 40).view(6, 1, 1, 1).expand(6, 1, 8, 8).contiguous()


def test_the_sheet_has_the_surest_the_most_doubtful_and_the_mistaken(sheets: list[Any]) -> None:
    samples, test = (TensorDataset(gray(), torch.tensor(LABELS)) for _ in range(2))
    data = SemiSupervisedDataModule(samples, unlabeled=gray(), test=test)
    data.class_names = ("cat", "dog")
    model = ByHand(num_classes=2, input_shape=(1, 8, 8))
    trainer_of(ClusterGallery(columns=2)).test(model, data, verbose=False)
    headings, bands = sheets.pop()
    assert headings == ["surest", "most doubtful", "mistaken: predicted / true"]
    assert bands == [
        ("cat: 2 samples, 1 mistaken", [
            [(2, "80 %", False), (5, "55 %", True)], [], [(5, "55 % cat / dog", True)]]),
        ("dog: 4 samples, 2 mistaken", [
            [(0, "90 %", False), (3, "80 %", True)],
            [(1, "60 %", True), (4, "70 %", False)],
            [(3, "80 % dog / cat", True), (1, "60 % dog / cat", True)]]),
    ]  # fmt: skip
    assert np.asarray(Image.open("gallery.png")).std() > 10
    trainer_of(ClusterGallery(columns=1)).predict(model, data)
    headings, bands = sheets.pop()
    assert headings == ["surest", "most doubtful"]
    assert [[group for group in groups if group] for _, groups in bands] == [
        [[(2, "80 %", False)], [(5, "55 %", False)]],
        [[(0, "90 %", False)], [(1, "60 %", False)]],
    ]
    assert Path("predict_gallery.png").exists()


def test_clusters_are_matched_with_the_classes(sheets: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.SURE", [1 - p for p in SURE])
    data = ClusteringDataModule(TensorDataset(gray(), torch.tensor([1, 1, 0, 0, 1, 1])))
    trainer_of(ClusterGallery(columns=2)).test(Clusters(num_classes=2, input_shape=(1, 8, 8)), data, verbose=False)
    ((_, bands),) = sheets
    assert [title for title, _ in bands] == ["cluster 0: 4 samples, 1 mistaken", "cluster 1: 2 samples, 1 mistaken"]
    assert bands[0][1][2] == [(3, "80 % 1 / 0", True)]


def test_only_the_files_that_are_shown_are_read(sheets: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for number, label in enumerate(LABELS):
        for part in ("train", "test"):
            file = Path("photos", part, str(label), f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (30, 20), number * 40 + (part == "train")).save(file)
    data = SemiSupervisedDataModule(
        "folder", root="photos", num_labeled=2, image_size=8, in_memory=False, num_workers=0
    )
    monkeypatch.setattr(f"{__name__}.SURE", [0.9, 0.6, 0.7, 0.8, 0.7, 0.55])
    from supercm_lightning.callbacks.evaluation import contact_sheet

    shown, read = [], contact_sheet.read_image
    monkeypatch.setattr(contact_sheet, "read_image", lambda file, *a, **k: shown.append(file) or read(file, *a, **k))
    trainer_of(ClusterGallery(columns=1)).test(ByHand(num_classes=2, input_shape=(1, 8, 8)), data, verbose=False)
    ((_, bands),) = sheets
    sample = [int(Path(data.describe_sample("test", place)).stem) for place in range(6)]
    assert bands[1][1][0] == [(sample[0], "90 %", LABELS[sample[0]] == 0)]
    assert 0 < len({*shown}) <= 4


def test_features_have_a_gallery_where_their_images_are(
    sheets: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("photos").mkdir()
    for number, image in enumerate(gray()):
        Image.fromarray(image[0].numpy()).save(f"photos/{number}.png")
    features = np.random.default_rng(0).normal(size=(6, 4)).astype("f4")
    for name in ("train", "test"):
        files = [f"{number}.png" for number in range(6)] if name == "test" else [f"{n}" for n in range(6)]
        np.savez(f"{name}.npz", features=features + (name == "test"), labels=LABELS, files=files)
    data = FeatureDataModule("train.npz", test="test.npz", num_labeled=2)
    model = ByHand(num_classes=2, input_shape=(4,), backbone="identity")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO):
        trainer_of(ClusterGallery()).test(model, data, verbose=False)
    assert not sheets
    assert not Path("gallery.png").exists()
    assert sum("ClusterGallery(root" in record.getMessage() for record in caplog.records) == 1
    Path("photos/4.png").write_bytes(b"damaged")
    trainer_of(ClusterGallery(root="photos")).test(model, data, verbose=False)
    assert [one for one, _, _ in sheets[0][1][1][1][0]] == [0, 3, 3, 1]  # gray in place of the damaged one


def test_fit_draws_the_clusters(sheets: list[Any]) -> None:
    data = ClusteringDataModule("digits", num_rows=100, steps_per_epoch=2)
    trainer = trainer_of(ClusterGallery(), max_epochs=1)
    trainer.fit(ASD(num_classes=10, input_shape=(1, 8, 8)), data)
    ((headings, bands),) = sheets
    assert len(headings) == 2
    assert sum(int(title.split()[2]) for title, _ in bands) == 100
    assert {title.split()[0] for title, _ in bands} == {"cluster"}
