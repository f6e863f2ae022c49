"""The command `supercm`: LightningCLI over every method and data module."""

import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.core.saving import load_hparams_from_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from torch import distributed

# Importing them is what makes their short names known to the parser.
from supercm_lightning import __version__, callbacks, data, methods  # noqa: F401
from supercm_lightning.callbacks import AdaptationScores, PredictionWriter, RunSummary
from supercm_lightning.callbacks.runs.continued_run import ContinuedCSVLogger, ContinuedRun, rewind
from supercm_lightning.callbacks.runs.slurm_requeue import SlurmRequeue
from supercm_lightning.data import ViewDataModule
from supercm_lightning.utils.checkpoints import AtomicCheckpointIO, newest_checkpoint, read_checkpoint
from supercm_lightning.utils.options import SuperCMError


class UsageError(SuperCMError):
    """What is wrong with the command line, found before anything runs; the message is all that a user needs."""


class SuperCMCLI(LightningCLI):
    """LightningCLI that links the data's shape and classes to the model, logs into one folder and tests after `fit`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what the data knows to the model."""
        for name in ("num_classes", "input_shape"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, and reads the checkpoint first, so that a bad one is named before anything is built.

        Raises:
            FileNotFoundError: If `ckpt_path` does not exist.
            ValueError: If it is damaged or could run code.
            UsageError: If it is one of another method; or another command than `fit` has none, or `last`.
        """
        super().parse_arguments(parser, args)
        command = self.config.subcommand
        path, model = self.config[command].ckpt_path, self.config[command].model.class_path
        if path == "last" and command != "fit":
            raise UsageError(f"ckpt_path=last: goes with fit. Give {command} the path of the checkpoint.")
        if path is None and command != "fit":
            raise UsageError(f"ckpt_path: {command} without one takes untrained weights. Give --ckpt_path FILE.")
        if path in (None, "last", "best", "hpc") or "://" in str(path):
            return
        saved = read_checkpoint(Path(path)).get("hyper_parameters", {}).get("_class_path")
        if saved is not None and saved.rpartition(".")[2] != model.rpartition(".")[2]:
            raise UsageError(f"ckpt_path={path}: a checkpoint of {saved}, but the model is {model}.")

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer.

        Raises:
            UsageError: With the words of the constructor that refuses its options, without the parser's account of all
                that it was given.
        """
        options = (self.config[self.subcommand].model.get("init_args") or {}).get("backbone_options")
        if self.subcommand != "fit" and options and options.get("pretrained"):
            options["pretrained"] = False  # the checkpoint holds all weights
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException = error
            while _origin(cause).startswith("jsonargparse.") and cause.__cause__ is not None:
                cause = cause.__cause__
            # Not a constructor of somebody's own, which may have a bug and needs its traceback.
            if isinstance(cause, ValueError | OSError) and _origin(cause).startswith("supercm_lightning."):
                raise UsageError(str(cause)) from None
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what a run needs beside its configuration, unless that has its own.

        TensorBoard and CSV logs in one folder, which a resumed run continues; the run's summary; the prediction writer;
        whole checkpoints; and, for data of two domains, scores that need no target label.
        """
        config = self._get(self.config_init, "trainer", default={})
        additions: list[Callback] = [RunSummary(), PredictionWriter()]
        if getattr(self.datamodule, "is_domain_adaptation", False):
            additions.insert(0, AdaptationScores())
        if self.subcommand == "fit" and SLURMEnvironment.detect():
            additions.append(SlurmRequeue())
        if config.get("logger") in (None, True):
            kwargs["logger"] = self._logs(Path(config.get("default_root_dir") or os.getcwd()), config.get("callbacks"))
            additions.insert(0, ContinuedRun(kwargs["logger"][0].log_dir))
        plugins = config.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, Sequence) and not isinstance(plugins, str) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        trainer = super().instantiate_trainer(**kwargs)
        for callback in additions:
            if not any(isinstance(given, type(callback)) for given in trainer.callbacks):  # type: ignore[attr-defined]
                trainer.callbacks.append(callback)  # type: ignore[attr-defined]
        return trainer

    def _logs(self, root: Path, given: Any) -> list[Any]:
        """The logs of a new run, or of the one that goes on; sets the checkpoint to go on from."""
        version, path = os.environ.get("SLURM_JOB_ID"), None
        start = self._get(self.config_init, "ckpt_path")
        requeued = self.subcommand == "fit" and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        if start == "last" or (start is None and requeued):
            folder = self._same_run(root)
            if folder is not None:
                given = given if isinstance(given, Sequence) else [given]
                saving = [Path(c.dirpath) for c in given if isinstance(c, ModelCheckpoint) and c.dirpath]
                path, checkpoint = newest_checkpoint(folder, saving) or (None, {})
                version = folder.name
                if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                    rewind(folder, checkpoint.get("logs"))
                rank_zero_info(f"Going on with the run in {folder} from {path or 'its beginning'}.")
            self.config_init[self.subcommand]["ckpt_path"] = path
        # Lightning's placeholder metric stands among the curves again at every start.
        tensorboard = TensorBoardLogger(root, version=version, default_hp_metric=False)
        # One folder for both, which would count their versions apart.
        return [ContinuedCSVLogger(root, version=tensorboard.version), tensorboard]

    def _same_run(self, root: Path) -> Path | None:
        """The folder of the newest run with this model, data, seed and callbacks."""
        parser = self._parser(self.subcommand)
        mine = _identity(json.loads(parser.dump(self.config[self.subcommand], skip_none=False, format="json")))
        configs = sorted((root / "lightning_logs").glob("*/config.yaml"), key=lambda file: file.stat().st_mtime_ns)
        for config in reversed(configs):
            other = _identity(load_hparams_from_yaml(config, use_omegaconf=False))
            if other.keys() == mine.keys() and _agree(mine, other):
                return config.parent
        return None

    def after_fit(self) -> None:
        """Tests the final weights, where there is a test set, and says where everything is.

        `--trainer.limit_test_batches 0` leaves the test out.
        """
        has_test = not isinstance(self.datamodule, ViewDataModule) or self.datamodule.has_test
        if has_test and self.trainer.limit_test_batches and not self.trainer.interrupted:
            self.trainer.test(self.model, datamodule=self.datamodule)
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info(f"The run's folder is {self.trainer.log_dir}")


def _origin(error: BaseException) -> str:
    """The module that raised an exception."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"])


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same one: everything but their length, their machine and where they start from."""
    run = {name: value for name, value in config.items() if name not in ("trainer", "ckpt_path")}
    return run | {"callbacks": (config.get("trainer") or {}).get("callbacks")}


def _agree(one: Any, other: Any) -> bool:
    """Whether two configurations agree where both say something; a newer version may have an option more."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[name], other[name]) for name in one.keys() & other.keys())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_agree, one, other))
    return bool(one == other)


def run(args: ArgsType = None, extra_callbacks: Sequence[Callback] = ()) -> SuperCMCLI:
    """Runs the command line from Python.

    Args:
        args: Arguments without the program's name, as strings or as a dictionary; None: those of the process.
        extra_callbacks: Callbacks beside those of the configuration, which does not mention them.

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
    # A checkpoint is tested in another folder than it was trained in.
    warnings.filterwarnings("ignore", "The dirpath has changed from")
    # The commands beside `supercm` have arguments of their own.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended to run from within Python")
    return SuperCMCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        trainer_defaults={"callbacks": list(extra_callbacks)},
        # A requeued job finds its own config.yaml.
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"version": f"supercm_lightning {__version__}", "allow_abbrev": False},
        auto_configure_optimizers=False,
        args=args,
    )


def main(args: ArgsType = None) -> None:
    """The console script; its value would become the exit status, so it has none."""
    try:
        run(args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    # A thread of gloo that lets go of a tensor while the interpreter shuts down aborts the process, although nothing
    # failed, and Lightning ends the threads of nccl alone. Not after an error: a peer that is gone cannot answer.
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
