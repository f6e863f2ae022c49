"""Loggers by one word, `--trainer.logger wandb`, with their files in the run's folder."""

import os
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from supercm_lightning.utils.options import SuperCMError


class NamedLogger(DummyLogger):
    """Stands for loggers until the run's folder is known. The command line knows its subclasses by their names.

    Args:
        project: Project of W&B or experiment of MLflow; None: method and data.
    """

    package: str | None = None

    def __init__(self, project: str | None = None) -> None:
        super().__init__()
        self.project = project
        if self.package is not None and find_spec(self.package) is None:
            raise SuperCMError(f"trainer.logger={self.package}: not installed. Run `pip install {self.package}`.")

    def beside(self, folder: Path, title: str) -> list[Logger]:
        """What logs beside the files of every run.

        Args:
            folder: The run's folder.
            title: Method and data.
        """
        return []


class tensorboard(NamedLogger):
    """TensorBoard's event file and `metrics.csv`, as without a logger."""


class csv(NamedLogger):
    """`metrics.csv` alone."""


class wandb(NamedLogger):
    """Weights & Biases; a resumed run goes on with its own.

    Args:
        project: Name of the project; None: method and data.
        offline: Send nothing; `wandb sync FOLDER` does later.
    """

    package = "wandb"

    def __init__(self, project: str | None = None, offline: bool = False) -> None:
        super().__init__(project)
        self.offline = offline

    def beside(self, folder: Path, title: str) -> list[Logger]:
        """The logger of W&B."""
        former = sorted(folder.glob("wandb/*run-*-*"), key=os.path.getmtime)
        number = former[-1].name.rpartition("-")[2] if former else None
        project = self.project or title
        return [WandbLogger(folder.name, str(folder), None, self.offline, id=number, project=project, resume="allow")]


class mlflow(NamedLogger):
    """MLflow, into the run's folder or to the server that `MLFLOW_TRACKING_URI` names."""

    package = "mlflow"

    def beside(self, folder: Path, title: str) -> list[Logger]:
        """The logger of MLflow."""
        server, place = os.environ.get("MLFLOW_TRACKING_URI"), folder.absolute() / "mlflow"
        address, artifacts = server or f"sqlite:///{place}.db", None if server else str(place)
        return [MLFlowLogger(self.project or title, folder.name, address, artifact_location=artifacts)]
