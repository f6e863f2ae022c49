"""A page about the checkpoints of a run: method, data, options, scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def checkpoint_card(summary: Mapping[str, Any]) -> str:
    """Describes the checkpoints of a run as Markdown tables.

    Args:
        summary: What `RunSummary` writes.

    Returns:
        The text of `card.md`.
    """
    steps = f"{summary['steps']:,} steps, {summary['epochs']} epochs, {summary['status']}"
    speed = f"{summary['fit_seconds']} s on {summary['world_size']} x {summary['device']}"
    best, score = summary["best_checkpoint"], summary["best_score"]
    facts = {
        "method": summary["model"],
        "data": summary["data"],
        "samples": ", ".join(f"{count:,} {split}" for split, count in summary["samples"].items() if count),
        "training": f"{steps}; {speed}; seed {summary['seed']}",
        "best checkpoint": Path(best).name + (f", score {score:.4f}" if score is not None else "") if best else None,
        "last checkpoint": Path(summary["last_checkpoint"]).name if summary["last_checkpoint"] else None,
    }
    tables = {
        f"{summary['model']}": facts,
        "Metrics at the end": summary["metrics"],
        "Options of the method": summary["model_options"],
        "Options of the data": summary["data_options"],
        "Versions": summary["versions"],
    }
    return "\n".join(_table(title, rows) for title, rows in tables.items() if rows)


def _table(title: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines, ""])
