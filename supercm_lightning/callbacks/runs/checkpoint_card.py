"""A page about the checkpoints of a run: method, data, options, scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supercm_lightning.callbacks.runs.run_text import result_lines, run_title


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
