"""The file of the rows that were computed for some data, against which a run of `supercm fit` is held."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supercm_lightning.baselines.advice import mean_accuracy
from supercm_lightning.utils.files import write_atomically

FLOOR_FILE = "baselines.json"
"""Name of the file in the folder where `supercm-baselines` and `supercm fit` run."""
_LOADING = ("batch_size", "num_workers", "predict_on", "steps_per_epoch", "in_memory", "download", "oracle_labels")


def keep_rows(file: Path, data: Mapping[str, Any], seed: int, rows: Sequence[dict[str, Any]]) -> None:
    """Adds the rows of some data and seed to a file, in place of older ones; other data and seeds stay.

    Args:
        file: The JSON file, `{"runs": [{"data": …, "seed": …, "rows": […]}, …]}`.
        data: Options of the data module, its `hparams`.
        seed: Seed of the run.
        rows: Rows of `run_baselines`.
    """
    key = {"data": _samples_of(data), "seed": seed}
    others = [run for run in _runs(file) if {name: run[name] for name in key} != key]
    write_atomically(file, json.dumps({"runs": [*others, {**key, "rows": list(rows)}]}, indent=2) + "\n")


def below_floor(file: Path, data: Mapping[str, Any], accuracy: float) -> str | None:
    """Compares a run with the best row that the file has for its data.

    Args:
        file: The file.
        data: Options of the run's data module.
        accuracy: The run's `test/acc`.

    Returns:
        One line about the best row, where the run ended below it; None otherwise, and where there are no such rows.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "baselines.json")
        >>> keep_rows(file, {"num_labeled": 20}, 0, [{"method": "label_spreading", "test/acc": 0.92}])
        >>> print(below_floor(file, {"num_labeled": 20, "num_workers": 2}, 0.84))
        test/acc 84.0 % is below label_spreading (92.0 %), which needs no training: see supercm-baselines.
    """
    rows = [row for run in _runs(file) if run["data"] == _samples_of(data) for row in run["rows"]]
    floor = mean_accuracy(rows)
    best = max(floor, key=floor.__getitem__, default=None)
    if best is None or accuracy >= floor[best]:
        return None
    start = f"test/acc {100 * accuracy:.1f} % is below {best} ({100 * floor[best]:.1f} %)"
    return f"{start}, which needs no training: see supercm-baselines."


def _runs(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else []


def _samples_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide about samples, as JSON holds them."""
    kept = {name: value for name, value in data.items() if not name.endswith(_LOADING) and not name.startswith("_")}
    return json.loads(json.dumps(kept, default=str))
