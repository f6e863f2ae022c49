"""The command `supercm`: LightningCLI over every method and data module."""

import os
import sys
import warnings
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

# Importing them is what makes their short names known to the parser.
from supercm_lightning import __version__, callbacks, data, methods  # noqa: F401
from supercm_lightning.callbacks import AdaptationScores, PredictionWriter, RunSummary
from supercm_lightning.data import ViewDataModule


class SuperCMCLI(LightningCLI):
    """LightningCLI that links the data's shape and classes to the model, logs into one folder and tests after `fit`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what the data knows to the model."""
        for name in ("num_classes", "input_shape"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds logs, summary and predictions of the run, scores for two domains, unless configured otherwise."""
        config = self._get(self.config_init, "trainer", default={})
        if config.get("logger") in (None, True):
            root = config.get("default_root_dir") or os.getcwd()
            tensorboard = TensorBoardLogger(root, version=os.environ.get("SLURM_JOB_ID"))
            # One folder for both, which would count their versions apart; CSV first, which warns of a folder in use.
            kwargs["logger"] = [CSVLogger(root, version=tensorboard.version), tensorboard]
        trainer = super().instantiate_trainer(**kwargs)
        scores = [AdaptationScores] if getattr(self.datamodule, "two_domains", False) else []
        for callback in (*scores, RunSummary, PredictionWriter):
            if not any(isinstance(given, callback) for given in trainer.callbacks):  # type: ignore[attr-defined]
                trainer.callbacks.append(callback())  # type: ignore[attr-defined]
        return trainer

    def after_fit(self) -> None:
        """Tests the final weights, where there is a test set, and says where everything is.

        `--trainer.limit_test_batches 0` leaves the test out.
        """
        has_test = not isinstance(self.datamodule, ViewDataModule) or len(self.datamodule.rows.get("test", ()))
        if has_test and self.trainer.limit_test_batches and not self.trainer.interrupted:
            self.trainer.test(self.model, datamodule=self.datamodule)
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info(f"The run's folder is {self.trainer.log_dir}")


def run(args: ArgsType = None) -> SuperCMCLI:
    """Runs the command line from Python.

    Args:
        args: Arguments without the program's name, as strings or as a dictionary; None: those of the process.

    Returns:
        The command line object, with its `trainer`, `model` and `datamodule`.
    """
    # A console script does not see the current folder, where users keep their own methods.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    # Lightning and torchmetrics warn of their own use of torch, Lightning of validation sets that are empty on purpose.
    warnings.filterwarnings("ignore", r".isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
    warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
    return SuperCMCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        # A requeued job finds its own config.yaml.
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"version": f"supercm_lightning {__version__}"},
        auto_configure_optimizers=False,
        args=args,
    )


def main(args: ArgsType = None) -> None:
    """The console script; its value would become the exit status, so it has none."""
    run(args)
