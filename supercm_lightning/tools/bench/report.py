"""The report of a run: one HTML file with curves, errors, calibration and feature space, that needs nothing else."""

import base64
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from scipy.stats import binned_statistic, binomtest
from sklearn.metrics import ConfusionMatrixDisplay
from torchmetrics.functional.classification import binary_calibration_error

from supercm_lightning.callbacks.runs.run_text import run_title
from supercm_lightning.utils.options import MissingFileError, SuperCMError

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_BINS, _CURVES = 15, 12


def report(run: Path, output: Path | None = None) -> Path:
    """Writes the report of a run: curves, confusion matrix, reliability diagram, feature space, configuration.

    The page holds its pictures and fetches nothing. Missing files of the run are named with the way to have them.

    Args:
        run: Folder of the run, with `summary.json`; or one above it that holds a single run.
        output: The file; None: `report.html` in the run's folder.
    """
    found = [run / "summary.json"] if (run / "summary.json").is_file() else sorted(run.rglob("summary.json"))
    if not found:
        raise MissingFileError(f"run={run}: there is no summary.json in it; give the folder that `supercm fit` named.")
    if len(found) > 1:
        folders = ", ".join(str(file.parent) for file in found[:5])
        raise SuperCMError(f"run={run}: holds {len(found)} runs, {folders} …; give the folder of one.")
    folder = found[0].parent
    try:
        summary = json.loads(found[0].read_text(encoding="utf-8"))
        domains = _domains(summary["data_options"])
        facts = _facts(folder, summary, domains)
    except (KeyError, TypeError, ValueError) as error:
        raise SuperCMError(f"run={run}: {found[0]} is no summary of a run ({error!r}); run it again.") from error
    config = folder / "config.yaml"
    predictions = _predictions(folder / "test_predictions.csv", clusters="test/nmi" in summary["metrics"])
    page = _TEMPLATES.get_template("report.html").render(
        title=run_title(summary["model"], summary["data"], summary["data_options"]),
        summary=summary,
        domains=domains,
        facts=({"test accuracy": predictions["accuracy"]} if predictions else {}) | facts,
        metrics={name: f"{summary['metrics'][name]:.4f}" for name in sorted(summary["metrics"], key=_stage)},
        curves=_curves(folder / "metrics.csv"),
        predictions=predictions,
        gallery=_embedded(folder / "gallery.png"),
        pictures=[
            (file.stem, _caption(file.stem), picture)
            for file in [*sorted(folder.glob("features_epoch_*.png")), folder / "features.png"]
            if (picture := _embedded(file))
        ],
        configuration=config.read_text() if config.is_file() and not config.is_symlink() else None,
    )
    output = output or folder / "report.html"
    output.write_text(page, encoding="utf-8")
    return output


def _domains(options: Mapping[str, Any]) -> dict[str, str]:
    """Names of the source and of the target; empty for data of one domain."""
    names = {role: options.get(role) for role in ("source", "target")}
    if not all(names.values()):
        return {}
    return {role: ", ".join(name) if isinstance(name, list) else str(name) for role, name in names.items()}


def _facts(folder: Path, summary: Mapping[str, Any], domains: Mapping[str, str]) -> dict[str, Any]:
    roles = {"labeled": "source", "val": "source", "unlabeled": "target", "test": "target"} if domains else {}
    counts = {split: count for split, count in summary["samples"].items() if count}
    samples = (f"{n:,} {split}" + (f" ({roles[split]})" if split in roles else "") for split, n in counts.items())
    return {
        "folder": folder,
        **({"warning": f"{summary['collapse']}: the model has collapsed"} if summary.get("collapse") else {}),
        "status": summary["status"] + (f", {summary['error']}" if "error" in summary else ""),
        "training": f"{summary['steps']:,} steps, {summary['epochs']} epochs, seed {summary['seed']}",
        "time": f"{summary['fit_seconds']} s, {summary['images_per_second']} images per second, "
        f"{summary['world_size']} × {summary['device']}",
        "samples": ", ".join(samples),
        **domains,
        "checkpoint": summary["last_checkpoint"] or summary["best_checkpoint"],
    }


def _table(file: Path) -> pd.DataFrame:
    """A table of text, as a class may be called NA; an empty one where the file is missing or damaged."""
    try:
        return pd.read_csv(file, dtype=str, keep_default_na=False, on_bad_lines="skip")
    except (FileNotFoundError, ValueError):  # those of pandas are ValueErrors
        return pd.DataFrame()


def _curves(file: Path) -> str | None:
    """Curves of every metric that was logged more than once."""
    curves: dict[str, dict[str, pd.Series]] = defaultdict(dict)
    table = _table(file)
    table = table.apply(pd.to_numeric, errors="coerce").set_index("step") if "step" in table else pd.DataFrame()
    for name in table:
        stage, _, metric = str(name).partition("/")
        metric = metric.removesuffix("_epoch").removesuffix("_step")
        if metric and stage != "test":  # the test is one point, which stands in the summary
            earlier = [curves[metric][stage]] if stage in curves[metric] else []
            curves[metric][stage] = pd.concat([*earlier, table[name].dropna()])
    shown = [metric for metric, stages in curves.items() if max(map(len, stages.values()), default=0) > 1]
    shown = sorted(shown, key=lambda metric: ["loss", "acc", metric].index(metric))[:_CURVES]
    if not shown:
        return None
    rows = math.ceil(len(shown) / 3)
    figure = Figure(figsize=(12, 2.8 * rows), layout="constrained")
    every = figure.subplots(rows, 3, squeeze=False).flatten()
    for axes, metric in zip(every, shown, strict=False):
        for stage, points in curves[metric].items():
            axes.plot(points.index, points, label=stage, marker="." if len(points) < 30 else None)
        alone = len(curves[metric]) == 1
        axes.set(title=f"{next(iter(curves[metric]))}/{metric}" if alone else metric, xlabel="step")
        axes.grid(alpha=0.3)
        if not alone:
            axes.legend()
    for axes in every[len(shown) :]:
        axes.set_axis_off()
    return _png(figure)


def _predictions(file: Path, clusters: bool) -> dict[str, str] | None:
    """What the test predicted: numbers, the confusion matrix and the reliability diagram."""
    table = _table(file).rename(columns={"cluster": "class"})
    if not {"label", "class", "confidence"} <= {*table}:
        return None
    table["confidence"] = pd.to_numeric(table["confidence"], errors="coerce")
    table = table[table["label"].ne("") & table["label"].notna() & table["confidence"].notna()]
    if table.empty:
        return None
    note = ""
    if clusters:  # their numbers mean nothing
        counts = pd.crosstab(table["label"], table["class"])
        label, cluster = linear_sum_assignment(counts, maximize=True)
        match = dict(zip(counts.columns[cluster], counts.index[label], strict=True))
        table["class"] = [match.get(name, f"cluster {name}") for name in table["class"]]
        note = "Clusters are matched with the classes so that the most samples agree. "
    names = sorted({*table["label"], *table["class"]}, key=_natural)
    counts = pd.crosstab(table["label"], table["class"]).reindex(index=names, columns=names, fill_value=0)
    confidence, right = table["confidence"].to_numpy(), (table["label"] == table["class"]).to_numpy()
    error = float(binary_calibration_error(torch.tensor(confidence), torch.tensor(right).long(), n_bins=_BINS))
    mistakes = table[~right].groupby(["label", "class"]).size().sort_values(ascending=False, kind="stable")[:5]
    mixed = ", ".join(f"{label} as {predicted} ({count})" for (label, predicted), count in mistakes.items())
    text = (
        f"{note}{len(table):,} samples, accuracy {100 * right.mean():.1f} %, mean confidence "
        f"{100 * confidence.mean():.1f} %, expected calibration error {100 * error:.1f} % ({_BINS} bins). "
        f"Most often mistaken: {mixed or 'none'}."
    )
    low, high = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    accuracy = (
        f"{100 * right.mean():.1f} % of {len(right):,}, 95 % interval {100 * low:.1f} to {100 * high:.1f} (Wilson)"
    )
    figure = Figure(figsize=(12, 6), layout="constrained")
    matrix, diagram = figure.subplots(1, 2)
    _confusion(matrix, counts)
    _reliability(diagram, confidence, right)
    return {"text": text, "accuracy": accuracy, "png": _png(figure)}


def _confusion(axes: Any, counts: pd.DataFrame) -> None:
    few = len(counts) <= 20
    upright = max(map(len, counts.index)) <= 3 and few
    size = 8 if few else max(2, 160 / len(counts))
    names = [name.replace("$", r"\$") for name in counts.index]  # matplotlib reads formulas between dollar signs
    display = ConfusionMatrixDisplay(counts.to_numpy(), display_labels=names)
    display.plot(include_values=few, cmap="Blues", ax=axes, colorbar=False, text_kw={"size": 8})
    axes.tick_params(axis="x", labelrotation=0 if upright else 90)
    axes.tick_params(labelsize=size)
    for text in display.text_.flat if few else ():
        text.set_visible(text.get_text() != "0")
    axes.set(title="Confusion matrix: test samples", xlabel="predicted", ylabel="true")


def _reliability(axes: Any, confidence: np.ndarray, right: np.ndarray) -> None:
    """Accuracy and mean confidence in bins of equal width over the confidence (Naeini et al., 2015)."""
    (accuracy, mean), edges, _ = binned_statistic(confidence, [right, confidence], bins=_BINS, range=(0, 1))
    middle, low, gap = (edges[:-1] + edges[1:]) / 2, np.fmin(accuracy, mean), mean - accuracy
    axes.bar(middle, accuracy, 1 / _BINS, edgecolor="white", label="accuracy")
    for label, chosen, color in (("above", gap > 0, "C3"), ("below", gap < 0, "C2")):
        hatched = {"color": color, "alpha": 0.4, "hatch": "//", "label": f"confidence {label} accuracy, by this much"}
        if chosen.any():
            axes.bar(middle[chosen], np.abs(gap[chosen]), 1 / _BINS, low[chosen], **hatched)
    axes.stairs(np.histogram(confidence, edges)[0] / len(confidence), edges, color="black", label="fraction of samples")
    axes.plot([0, 1], [0, 1], color="gray", linestyle="--", label="accuracy = confidence")
    axes.set(title="Reliability diagram", xlabel="confidence", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def _embedded(file: Path) -> str | None:
    """A picture of the run; no link, as the page may be sent on, and a link may lead to any file."""
    return base64.b64encode(file.read_bytes()).decode() if file.is_file() and not file.is_symlink() else None


def _caption(name: str) -> str:
    epoch = name.removeprefix("features_epoch_")
    return f"after epoch {int(epoch)}" if epoch.isdecimal() else "at the end"


def _stage(metric: str) -> tuple[int, bool]:
    """The test comes before validation, and training last; of each the accuracy comes first."""
    stage, _, name = metric.partition("/")
    return ["test", "val", stage, "train"].index(stage), name != "acc"


def _natural(name: str) -> tuple[bool, float, str]:
    """Numbers in their order, before names."""
    return (not name.isdecimal(), float(name) if name.isdecimal() else 0.0, name)


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, format="png")
    return base64.b64encode(stream.getvalue()).decode()
