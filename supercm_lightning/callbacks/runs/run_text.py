"""What a run says about itself: its title, its results, and the page about its checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def run_title(model: str, data: str | None, options: Mapping[str, Any]) -> str:
    """Method, data and domains of a run, of the classes of the method and data module, and the latter's options.

    Examples:
        >>> run_title("DANN", None, {"dataset": "pacs", "source": ["photo"], "target": "sketch"})
        'DANN on pacs, photo → sketch'
    """
    dataset = options.get("dataset")
    title = f"{model} on {dataset if isinstance(dataset, str) else data or 'loaders'}"
    domains = [options.get(role) for role in ("source", "target")]
    names = [", ".join(map(str, domain)) if isinstance(domain, list | tuple) else domain for domain in domains]
    return f"{title}, {names[0]} → {names[1]}" if all(isinstance(name, str) for name in names) else title


def result_lines(metrics: Mapping[str, float], interval: Sequence[float] | None = None, domain: str = "") -> list[str]:
    """Metrics with four decimals, the accuracy first, with its 95 % interval.

    The domain, `source ` or `target ` for data of two, stands before accuracy and loss.

    Examples:
        >>> result_lines({"test/loss": 0.51234, "test/acc": 0.9}, (0.826, 0.945))
        ['test/acc   0.9000 (95 % interval 0.8260 to 0.9450)', 'test/loss  0.5123']
    """
    names = sorted(metrics, key=lambda name: (name != "test/acc", not name.endswith("/acc"), name))
    full = [f"{domain}{name}" if name.endswith(("/acc", "/loss")) else name for name in names]
    width = max(map(len, full), default=0)
    lines = [f"{text:{width}}  {metrics[name]:.4f}" for text, name in zip(full, names, strict=True)]
    if interval is not None and lines:
        lines[0] += f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})"
    return lines


def checkpoint_card(summary: Mapping[str, Any]) -> str:
    """The text of `card.md`, tables in Markdown, from what `RunSummary` writes."""
    steps = f"{summary['steps']:,} steps, {summary['epochs']} epochs, {summary['status']}"
    speed = f"{summary['fit_seconds']} s on {summary['world_size']} x {summary['device']}"
    best, score = summary["best_checkpoint"], summary["best_score"]
    accuracy, interval = summary["metrics"].get("test/acc"), summary.get("test_accuracy_interval")
    facts = {
        "test accuracy": result_lines({"": accuracy}, interval)[0].strip() if accuracy is not None else None,
        "warning": summary["collapse"],
        "samples": ", ".join(f"{count:,} {split}" for split, count in summary["samples"].items() if count),
        "training": f"{steps}; {speed}; seed {summary['seed']}",
        "best checkpoint": Path(best).name + (f", score {score:.4f}" if score is not None else "") if best else None,
        "last checkpoint": Path(summary["last_checkpoint"]).name if summary["last_checkpoint"] else None,
    }
    tables = {
        run_title(summary["model"], summary["data"], summary["data_options"]): {
            name: value for name, value in facts.items() if value is not None
        },
        "Metrics at the end": summary["metrics"],
        "Options of the method": summary["model_options"],
        "Options of the data": summary["data_options"],
        "Versions": summary["versions"],
    }
    return "\n".join(_table(title, rows) for title, rows in tables.items() if rows)


def _table(title: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines, ""])
