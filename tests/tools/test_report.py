"""The report of a run, of a real one on little data."""

import base64
import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassCalibrationError

from supercm_lightning.cli import run
from supercm_lightning.tools.bench import main
from supercm_lightning.tools.bench.report import reliability

CLASSES = ("owl & co", "cat", "10", "9")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with features of four classes and every picture."""
    place = tmp_path_factory.mktemp("run")
    labels = np.arange(200) % 4
    features = np.random.default_rng(0).normal(size=(200, 6)) + 2 * np.eye(4, 6)[labels]
    np.savez(place / "a.npz", features=features.astype("f4"), labels=labels, classes=np.array(CLASSES))
    cli = run(
        ["fit", "--model", "SuperCM", "--model.backbone", "identity", "--data", "FeatureDataModule",
         "--data.labeled", str(place / "a.npz"), "--data.num_labeled", "8", "--data.num_val", "40",
         "--data.num_test", "80", "--data.steps_per_epoch", "3", "--trainer.max_epochs", "3",
         "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false",
         "--trainer.callbacks+=FeatureProjection", "--trainer.callbacks.every_n_epochs=2",
         "--trainer.default_root_dir", str(place)]
    )  # fmt: skip
    return Path(cli.trainer.log_dir)


def pictures(page: str) -> dict[str, bytes]:
    return {
        alt: base64.b64decode(data)
        for alt, data in re.findall(r'alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    }


def test_the_page_holds_everything_and_fetches_nothing(folder: Path) -> None:
    main(["report", str(folder.parents[1]), "--output", "page.html"])
    page = Path("page.html").read_text()
    shown = pictures(page)
    assert set(shown) == {"Learning curves", "Confusion and reliability", "features_epoch_0002", "features"}
    assert shown["features_epoch_0002"] == (folder / "features_epoch_0002.png").read_bytes()
    for png in shown.values():
        assert np.asarray(Image.open(io.BytesIO(png)).convert("L")).std() > 10
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(|@import|<script', page)
    with (folder / "test_predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = sum(row["label"] == row["class"] for row in rows)
    assert f"80 rows, accuracy {100 * right / 80:.1f} %" in page
    wrong = [(row["label"], row["class"]) for row in rows if row["label"] != row["class"]]
    label, predicted = max(set(wrong), key=wrong.count)
    assert f"{label} as {predicted} ({wrong.count((label, predicted))})".replace("&", "&amp;") in page
    assert "<td>max_epochs" not in page
    assert "max_epochs: 3" in page
    assert 'class="missing"' not in page


def test_what_a_run_lacks_is_named_with_the_way_to_have_it(folder: Path) -> None:
    bare = Path("bare")
    bare.mkdir()
    (bare / "summary.json").write_text((folder / "summary.json").read_text())
    main(["report", "bare"])
    page = (bare / "report.html").read_text()
    assert not pictures(page)
    for remedy in ("CSVLogger", "supercm test --config config.yaml --ckpt_path", "FeatureProjection", "config.yaml"):
        assert re.search(rf'class="missing">[^\n]*{remedy}', page)


def test_clusters_are_matched_with_the_classes(folder: Path) -> None:
    copy = Path("clusters")
    copy.mkdir()
    (copy / "summary.json").write_text((folder / "summary.json").read_text().replace("test/loss", "test/nmi"))
    lines = [f"{row},{row % 3},{(row + 1) % 3 if row else 0},0.9" for row in range(30)]
    (copy / "test_predictions.csv").write_text("\n".join(["index,label,class,confidence", *lines]))
    main(["report", "clusters"])
    page = (copy / "report.html").read_text()
    # All but the first row follow one permutation.
    assert "30 rows, accuracy 96.7 %" in page
    assert "Most often mistaken: 0 as 2 (1)." in page


def test_calibration_error_is_that_of_torchmetrics() -> None:
    torch.manual_seed(1)
    probabilities = (3 * torch.randn(500, 4)).softmax(dim=1)
    labels = torch.randint(4, (500,))
    confidence, predicted = probabilities.max(dim=1)
    share, mean, accuracy = reliability(confidence.numpy(), (predicted == labels).numpy())
    expected = MulticlassCalibrationError(4, n_bins=15, norm="l1")(probabilities, labels)
    assert float((share * np.abs(accuracy - mean)).sum()) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("runs", "error", "message"), [(0, FileNotFoundError, "no summary.json"), (2, ValueError, "holds 2 runs")]
)
def test_a_folder_of_none_or_several_runs_is_refused(runs: int, error: type[Exception], message: str) -> None:
    for number in range(runs):
        Path("runs", str(number)).mkdir(parents=True)
        Path("runs", str(number), "summary.json").write_text("{}")
    with pytest.raises(error, match=message):
        main(["report", "runs"])
