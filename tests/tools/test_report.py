"""The report of a run, of a real one on little data."""

import base64
import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from supercm_lightning.cli import run
from supercm_lightning.tools.bench import main
from supercm_lightning.tools.bench.report import _reliability

GALLERY = "Gallery of the predicted classes"
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
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), "u1")).save(folder / "gallery.png")
    main(["report", str(folder.parents[1]), "--output", "page.html"])
    (folder / "gallery.png").unlink()
    page = Path("page.html").read_text()
    shown = pictures(page)
    assert set(shown) == {"Learning curves", "Confusion and reliability", "features_epoch_0002", "features", GALLERY}
    assert shown["features_epoch_0002"] == (folder / "features_epoch_0002.png").read_bytes()
    for png in shown.values():
        assert np.asarray(Image.open(io.BytesIO(png)).convert("L")).std() > 10
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(|@import|<script', page)
    with (folder / "test_predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = sum(row["label"] == row["class"] for row in rows)
    assert f"80 samples, accuracy {100 * right / 80:.1f} %" in page
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
    (copy / "test_predictions.csv").write_text("\n".join(["index,label,cluster,confidence", *lines]))
    main(["report", "clusters"])
    page = (copy / "report.html").read_text()
    # All but the first row follow one permutation.
    assert "30 samples, accuracy 96.7 %" in page
    assert "Most often mistaken: 0 as 2 (1)." in page


def test_calibration_error_of_the_page_is_that_of_its_bins(folder: Path) -> None:
    copy = Path("calibration")
    copy.mkdir()
    (copy / "summary.json").write_text((folder / "summary.json").read_text())
    rows = [("a", "a", 0.99)] * 6 + [("b", "a", 0.99)] * 2 + [("b", "b", 0.55)] * 2
    lines = [f"{number},{label},{predicted},{c}" for number, (label, predicted, c) in enumerate(rows)]
    (copy / "test_predictions.csv").write_text("\n".join(["index,label,class,confidence", *lines]))
    main(["report", "calibration"])
    # Eight samples with confidence 0.99 and accuracy 0.75, two with 0.55 and 1.
    assert "expected calibration error 28.2 %" in (copy / "report.html").read_text()


def test_two_domains_are_named_with_their_roles(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    summary["collapse"] = "98 % of 20 samples are predicted to be dog"
    summary["data_options"] |= {"dataset": "pacs", "source": ["photo", "art"], "target": "sketch <b>"}
    Path("domains").mkdir()
    Path("domains/summary.json").write_text(json.dumps(summary))
    main(["report", "domains"])
    page = Path("domains/report.html").read_text()
    assert "<h1>SuperCM on pacs, photo, art → sketch &lt;b&gt;</h1>" in page
    assert re.search(r"8 labeled \(source\), .*unlabeled \(target\)", page)
    assert "<b>" not in page
    assert "predicted to be dog: the model has collapsed" in page


def test_bars_of_both_kinds_are_in_the_legend() -> None:
    axes = Figure().subplots()
    _reliability(axes, np.array([0.94, 0.95, 0.3, 0.35]), np.array([False, True, True, True]))
    bars = {bars.get_label(): [bar.get_height() for bar in bars if bar.get_height() > 0] for bars in axes.containers}
    assert [len(heights) for label, heights in bars.items() if "above" in label] == [1]
    assert [len(heights) for label, heights in bars.items() if "below" in label] == [2]
    legend = axes.get_legend()
    assert legend is not None
    assert set(bars) <= {text.get_text() for text in legend.get_texts()}


@pytest.mark.parametrize(
    ("runs", "message"), [(0, "run=runs: there is no summary.json"), (2, "run=runs: holds 2 runs")]
)
def test_a_folder_of_none_or_several_runs_is_refused(
    runs: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").mkdir()
    for number in range(runs):
        Path("runs", str(number)).mkdir()
        Path("runs", str(number), "summary.json").write_text("{}")
    with pytest.raises(SystemExit, match="2"):
        main(["report", "runs"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test_predictions.csv", ""),
        ("test_predictions.csv", "sample,label,class,confidence\n"),
        ("test_predictions.csv", "sample,class,confidence\n0,cat,0.5\n"),
        ("test_predictions.csv", "sample,label,class,confidence\n0,cat,cat,0.5\n1,ca"),
        ("test_predictions.csv", "sample,label,class,confidence\n0,$\\foo$,$\\foo$,0.5\n1,$\\foo$,cat,0.4\n"),
        ("metrics.csv", "step,train/loss\n0,abc\n1,0.5\n2,0.4\n"),
        ("metrics.csv", "train/loss\n0.5\n"),
        pytest.param(
            "metrics.csv",
            "step," + ",".join(f"train/{n}" for n in range(300)) + "\n" + ("1" + ",2" * 300 + "\n") * 2,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_damaged_and_odd_files_of_a_run_leave_a_page(folder: Path, name: str, content: str) -> None:
    Path("copy").mkdir()
    shutil.copy(folder / "summary.json", "copy")  # the other files' pictures would take their time
    Path("copy", name).write_text(content)
    main(["report", "copy"])
    assert "Configuration" in Path("copy/report.html").read_text()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"data_options": {}, "samples": {}}'])
def test_a_damaged_summary_is_named(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/summary.json").write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main(["report", "run"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "run/summary.json is no summary of a run" in line


def test_no_file_that_a_link_leads_to_is_on_the_page(folder: Path) -> None:
    Path("copy").mkdir()
    shutil.copy(folder / "summary.json", "copy")
    Path("secret").write_bytes(b"secret of another folder")
    for name in ("features.png", "gallery.png", "config.yaml"):
        Path("copy", name).symlink_to(Path("secret").resolve())
    main(["report", "copy"])
    page = Path("copy/report.html").read_text()
    assert "secret of another folder" not in page
    assert base64.b64encode(b"secret of another folder").decode() not in page


def test_the_accuracy_stands_first_with_its_interval(folder: Path) -> None:
    main(["report", str(folder), "--output", "page.html"])
    first = re.search(r"<td>(.*?)</td><td>(.*?)</td>", Path("page.html").read_text())
    assert first is not None
    assert first[1] == "test accuracy"
    accuracy, low, high = (float(number) for number in re.findall(r"\d+\.\d", first[2]))
    assert low < accuracy < high
    metrics = re.findall(r"<td>((?:test|val)/\w+)</td>", Path("page.html").read_text())
    assert metrics.index("test/acc") < metrics.index("test/loss") < metrics.index("val/acc") < metrics.index("val/loss")
