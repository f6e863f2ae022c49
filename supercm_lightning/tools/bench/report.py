"""The report of a run: one HTML file with curves, errors, calibration and feature space, that needs nothing else."""

import base64
import csv
import html
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

from supercm_lightning.utils.options import SuperCMError

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222; }}
h2 {{ margin-top: 2em; border-bottom: 1px solid #ccc; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; font-size: 14px; }}
td {{ border-top: 1px solid #ddd; padding: 2px 1em 2px 0; vertical-align: top; overflow-wrap: anywhere; }}
td:first-child {{ white-space: nowrap; }}
pre {{ background: #f5f5f5; padding: 1em; overflow-x: auto; font-size: 13px; }}
.missing {{ background: #fff6dd; padding: .5em 1em; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def report(run: Path, output: Path | None = None) -> Path:
    """Writes the report of a run: curves, confusion matrix, reliability diagram, feature space, configuration.

    The page holds its pictures and fetches nothing. What the run did not keep is named, with the way to have it.

    Args:
        run: Folder of the run, with `summary.json`; or one above it that holds a single run.
        output: The file; None: `report.html` in the run's folder.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no run in the folder.
        ValueError: If there are several.
    """
    found = [run / "summary.json"] if (run / "summary.json").is_file() else sorted(run.rglob("summary.json"))
    if not found:
        raise FileNotFoundError(f"run={run}: there is no summary.json in it; give the folder that `supercm fit` named.")
    if len(found) > 1:
        raise SuperCMError(f"run={run}: holds {len(found)} runs, {', '.join(str(file.parent) for file in found[:5])} …")
    folder = found[0].parent
    summary = json.loads(found[0].read_text())
    sections: dict[str, Callable[[Path, Mapping[str, Any]], str]] = {
        "Summary": _summary,
        "Learning curves": _curves,
        "Test predictions": _predictions,
        "Feature space": _features,
        "Configuration": _configuration,
    }
    body = "\n".join(f"<h2>{title}</h2>\n{section(folder, summary)}" for title, section in sections.items())
    output = output or folder / "report.html"
    title = html.escape(f"{summary['model']} on {summary['data_options'].get('dataset', summary['data'])}")
    output.write_text(_PAGE.format(title=title, body=body), encoding="utf-8")
    return output


def _summary(folder: Path, summary: Mapping[str, Any]) -> str:
    seconds, speed = summary["fit_seconds"], summary["images_per_second"]
    facts = {
        "folder": folder,
        "status": summary["status"] + (f", {summary['error']}" if "error" in summary else ""),
        "training": f"{summary['steps']:,} steps, {summary['epochs']} epochs, seed {summary['seed']}",
        "time": f"{seconds} s, {speed} images per second, {summary['world_size']} × {summary['device']}",
        "rows": ", ".join(f"{count:,} {part}" for part, count in summary["rows"].items() if count),
        "checkpoint": summary["last_checkpoint"] or summary["best_checkpoint"],
    }
    tables = {
        "": facts,
        "Metrics at the end": {name: f"{value:.4f}" for name, value in summary["metrics"].items()},
        "Options of the method": summary["model_options"],
        "Options of the data": summary["data_options"],
        "Versions": summary["versions"],
    }
    return "\n".join(
        f"<details{' open' if number < 2 else ''}><summary>{title or 'Run'}</summary>{_table(rows)}</details>"
        for number, (title, rows) in enumerate(tables.items())
    )


def _curves(folder: Path, summary: Mapping[str, Any]) -> str:
    file = folder / "metrics.csv"
    if not file.is_file():
        return _missing("This run has no metrics.csv: leave `trainer.logger` to the command line, or add `CSVLogger`.")
    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    with file.open(newline="") as table:
        for line in csv.DictReader(table):
            for name, value in line.items():
                stage, _, metric = name.partition("/")
                # The test is one point, and stands in the summary.
                if metric and value and stage != "test":
                    curves[metric.removesuffix("_epoch").removesuffix("_step")][stage].append(
                        (int(line["step"]), float(value))
                    )
    # One point is no curve; what runs have in common comes first.
    shown = [metric for metric, stages in curves.items() if max(map(len, stages.values())) > 1]
    shown.sort(key=lambda metric: ["loss", "acc", metric].index(metric))
    if not shown:
        return _missing("Nothing was logged twice: train for longer, or lower `trainer.log_every_n_steps`.")
    rows = math.ceil(len(shown) / 3)
    figure = Figure(figsize=(12, 2.8 * rows), layout="constrained")
    every = figure.subplots(rows, 3, squeeze=False).flatten()
    for axes, metric in zip(every, shown, strict=False):
        for stage, points in curves[metric].items():
            axes.plot(*zip(*points, strict=True), label=stage, marker="." if len(points) < 30 else None)
        alone = len(curves[metric]) == 1
        axes.set(title=f"{next(iter(curves[metric]))}/{metric}" if alone else metric, xlabel="step")
        axes.grid(alpha=0.3)
        if not alone:
            axes.legend()
    for axes in every[len(shown) :]:
        axes.set_axis_off()
    return _image(figure, "Learning curves")


def _predictions(folder: Path, summary: Mapping[str, Any]) -> str:
    file = folder / "test_predictions.csv"
    if not file.is_file():
        return _missing(
            "This run has no test_predictions.csv, which every test writes: "
            "<code>supercm test --config config.yaml --ckpt_path …</code>, or a test set in `data`."
        )
    with file.open(newline="") as table:
        lines = [line for line in csv.DictReader(table) if line["label"]]
    names = sorted({line[key] for line in lines for key in ("label", "class")}, key=_natural)
    place = {name: number for number, name in enumerate(names)}
    label = np.array([place[line["label"]] for line in lines])
    predicted = np.array([place[line["class"]] for line in lines])
    confidence = np.array([float(line["confidence"]) for line in lines])
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (label, predicted), 1)
    note = ""
    if "test/nmi" in summary["metrics"]:
        # Numbers of clusters mean nothing: the best match with the classes.
        order = linear_sum_assignment(counts, maximize=True)[1]
        counts, predicted = counts[:, order], np.argsort(order)[predicted]
        note = "Clusters are matched with the classes so that the most rows agree. "
    right = predicted == label
    share, mean_confidence, accuracy = reliability(confidence, right)
    error = float((share * np.abs(accuracy - mean_confidence)).sum())
    worst = [(counts[i, j], names[i], names[j]) for i in range(len(names)) for j in range(len(names)) if i != j]
    mixed = ", ".join(f"{a} as {b} ({count})" for count, a, b in sorted(worst, reverse=True)[:5] if count)
    text = (
        f"<p>{note}{len(lines):,} rows, accuracy {100 * right.mean():.1f} %, mean confidence "
        f"{100 * confidence.mean():.1f} %, expected calibration error {100 * error:.1f} % (15 bins). "
        f"Most often mistaken: {html.escape(mixed) or 'none'}.</p>"
    )
    return text + _image(_errors_figure(counts, names, share, mean_confidence, accuracy), "Confusion and reliability")


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> tuple[np.ndarray, ...]:
    """Share of the rows, mean confidence and accuracy in bins of equal width; the latter two zero in empty bins.

    The expected calibration error (Naeini et al., 2015) is the mean of |accuracy − confidence|, weighted by the share.

    Args:
        confidence: Probability of the predicted class, (n,), in [0, 1].
        right: Whether it is the true one, (n,).
        bins: Number of bins over [0, 1], open on the left.

    Returns:
        Three arrays, (bins,).
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count, filled = np.bincount(place, minlength=bins), np.maximum(np.bincount(place, minlength=bins), 1)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (confidence, right.astype(float))]
    return count / len(confidence), sums[0] / filled, sums[1] / filled


def _errors_figure(
    counts: np.ndarray, names: Sequence[str], share: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray
) -> Figure:
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    matrix, diagram = figure.subplots(1, 2)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 20:
        matrix.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
        matrix.set_yticks(range(len(names)), names)
        for (i, j), count in np.ndenumerate(counts):
            if count:
                matrix.text(
                    j, i, count, ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black", size=8
                )
    matrix.set(title="Confusion matrix: rows of the test", xlabel="predicted", ylabel="true")
    width = 1 / len(share)
    filled = share > 0
    middle = (np.arange(len(share)) + 0.5) * width
    diagram.bar(middle[filled], accuracy[filled], width, edgecolor="white", label="accuracy")
    gap = {"bottom": np.minimum(accuracy, confidence)[filled], "color": "C3", "alpha": 0.3, "hatch": "//"}
    diagram.bar(middle[filled], np.abs(accuracy - confidence)[filled], width, label="distance from confidence", **gap)
    diagram.stairs(share, np.linspace(0, 1, len(share) + 1), color="black", label="share of the rows")
    diagram.plot([0, 1], [0, 1], color="grey", linestyle="--")
    diagram.set(title="Reliability diagram", xlabel="confidence", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    figure.legend(loc="outside lower right", ncols=3)
    return figure


def _features(folder: Path, summary: Mapping[str, Any]) -> str:
    pictures = [*sorted(folder.glob("features_epoch_*.png")), *folder.glob("features.png")]
    if not pictures:
        return _missing(
            "This run drew none: <code>--trainer.callbacks+=FeatureProjection "
            "--trainer.callbacks.every_n_epochs=10</code>."
        )
    return "\n".join(
        f"<figure>{_embedded(file.read_bytes(), file.stem)}<figcaption>{_caption(file)}</figcaption></figure>"
        for file in pictures
    )


def _caption(picture: Path) -> str:
    epoch = picture.stem.removeprefix("features_epoch_")
    return f"after epoch {int(epoch)}" if epoch.isdecimal() else "at the end"


def _configuration(folder: Path, summary: Mapping[str, Any]) -> str:
    file = folder / "config.yaml"
    if not file.is_file():
        return _missing("This run has no config.yaml; those of the command line do.")
    return f"<details><summary>config.yaml</summary><pre>{html.escape(file.read_text())}</pre></details>"


def _missing(text: str) -> str:
    return f'<p class="missing">{text}</p>'


def _table(rows: Mapping[str, Any]) -> str:
    lines = (
        f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items()
    )
    return f"<table>{''.join(lines)}</table>"


def _natural(name: str) -> tuple[bool, float, str]:
    """Numbers in their order, before names."""
    return (not name.isdecimal(), float(name) if name.isdecimal() else 0.0, name)


def _image(figure: Figure, text: str) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, format="png")
    return _embedded(stream.getvalue(), text)


def _embedded(png: bytes, text: str) -> str:
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
