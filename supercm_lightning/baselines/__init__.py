"""What costs no training: simple methods on the samples of a data module, the rows under every table."""

# Importing them registers the methods, in the order of a table.
from supercm_lightning.baselines import classifiers, clusters  # noqa: F401
from supercm_lightning.baselines.advice import advise, mean_accuracy
from supercm_lightning.baselines.floor import FLOOR_FILE, below_floor, keep_rows
from supercm_lightning.baselines.label_spreading import neighbor_graph, spread_labels
from supercm_lightning.baselines.registry import BASELINES
from supercm_lightning.baselines.run import default_names, prepare, run_baseline, run_baselines

__all__ = [
    "BASELINES",
    "FLOOR_FILE",
    "advise",
    "below_floor",
    "default_names",
    "keep_rows",
    "mean_accuracy",
    "neighbor_graph",
    "prepare",
    "run_baseline",
    "run_baselines",
    "spread_labels",
]
