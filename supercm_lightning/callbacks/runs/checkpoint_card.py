"""What a checkpoint is, in words and tables for whoever finds it."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PLAIN = (bool, int, float, str, Path, type(None))


def constructor_options(instance: Any) -> dict[str, Any]:
    """Options of an object's constructor that it keeps under their names, those that are plain values."""
    options = {}
    for name in inspect.signature(type(instance)).parameters:
        value = getattr(instance, name, inspect.Parameter.empty)
        if isinstance(value, _PLAIN) or (isinstance(value, list | tuple) and all(isinstance(v, _PLAIN) for v in value)):
            options[name] = str(value) if isinstance(value, Path) else value
    return options


def checkpoint_card(summary: Mapping[str, Any]) -> str:
    """The card of the checkpoints of a run, as Markdown.

    Args:
        summary: What `RunSummary` writes.
    """
    steps = f"{summary['steps']:,} steps, {summary['epochs']} epochs, {summary['status']}"
    speed = f"{summary['fit_seconds']} s on {summary['world_size']} x {summary['device']}"
    best, score = summary["best_checkpoint"], summary["best_score"]
    facts = {
        "method": summary["model"],
        "data": summary["data"],
        "rows": ", ".join(f"{count:,} {part}" for part, count in summary["rows"].items() if count),
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
