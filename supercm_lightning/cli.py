"""The command `supercm`: LightningCLI over every method and data module."""

import io
import json
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import distributed

# Importing them is what makes their short names known to the parser.
from supercm_lightning import __version__, callbacks, data, methods  # noqa: F401
from supercm_lightning.baselines import FLOOR_FILE, below_floor
from supercm_lightning.callbacks import (
    AdaptationScores,
    ClusterGallery,
    PredictionCollapse,
    PredictionWriter,
    RunSummary,
)
from supercm_lightning.callbacks.runs.continued_run import ContinuedRun
from supercm_lightning.callbacks.runs.named_loggers import NamedLogger, tensorboard
from supercm_lightning.callbacks.runs.run_folder import RunFolder, local_folder, run_folder
from supercm_lightning.callbacks.runs.run_summary import accuracy_interval
from supercm_lightning.callbacks.runs.run_text import result_lines, run_title
from supercm_lightning.callbacks.runs.saved_config import SavedConfig
from supercm_lightning.callbacks.runs.slurm_requeue import SlurmRequeue
from supercm_lightning.data import ViewDataModule
from supercm_lightning.methods import predict_files
from supercm_lightning.utils.checkpoints import AtomicCheckpointIO, check_classes, check_method, read_checkpoint
from supercm_lightning.utils.configs import found_configs
from supercm_lightning.utils.help import asked_help, class_help
from supercm_lightning.utils.loggers import without_messages
from supercm_lightning.utils.options import SuperCMError, user_error
from supercm_lightning.utils.overview import answer
from supercm_lightning.utils.parser import CommandParser, errors_in_one_line, find_local_modules
from supercm_lightning.utils.saved_options import agreed_options
from supercm_lightning.utils.text import printable
from supercm_lightning.utils.trainer import callbacks_of, is_dry_run

_WARNINGS = (
    # Lightning and torchmetrics use what torch deprecates.
    r".isinstance\(treespec, LeafSpec\)",
    "Sparse invariant checks are implicitly disabled",
    # A validation set may be empty on purpose.
    "Total length of `list` across ranks is zero",
    # A checkpoint is tested in another folder than it was trained in.
    "The dirpath has changed from",
    # The commands beside `supercm` have arguments of their own.
    "LightningCLI's args parameter is intended to run from within Python",
)


class SuperCMCLI(LightningCLI):
    """LightningCLI that links the data's shape and classes to the model, logs into one folder and tests after `fit`."""

    _folder: RunFolder | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given, commands = kwargs["args"], self.subcommands()
        if isinstance(given, list) and given and given[0] in commands:
            # The parsers of the other commands would take most of the time before the run.
            vars(self)["subcommands"] = partial(dict, {given[0]: commands[given[0]]})
        failed = True
        try:
            super().__init__(*args, **kwargs)
            failed = False
        finally:
            if self._folder is not None:
                self._folder.close(failed)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the lock of the run's folder with the process that holds it (ddp_spawn)."""
        return vars(self) | {"_folder": None}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser with short messages."""
        self.parser_class = CommandParser
        return super().init_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what the data knows to the model."""
        for name in ("num_classes", "input_shape"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, and reads the checkpoint, so that a bad one is named before anything is built."""
        for section, name in asked_help(args):
            print(class_help(section, name))
            sys.exit(0)
        try:
            super().parse_arguments(parser, args)
        except UnicodeDecodeError as error:
            raise SuperCMError(f"config: a file is no text in UTF-8 ({error}). Give a YAML file.") from error
        command = self.config.subcommand
        seed = self.config[command].seed_everything
        if seed is False or (seed is not True and not 0 <= seed < 2**32):
            raise SuperCMError(f"seed_everything={seed}: must be from 0 to 2**32 - 1, or true for one drawn at random.")
        path, trainer = self.config[command].ckpt_path, self.config[command].trainer
        if trainer.default_root_dir is not None:
            trainer.default_root_dir = str(local_folder(trainer.default_root_dir))
        if path == "last" and command != "fit":
            raise SuperCMError(f"ckpt_path=last: goes with fit. Give {command} the path of the checkpoint.")
        if path is None and command != "fit":
            raise SuperCMError(f"ckpt_path: {command} without one takes untrained weights. Give --ckpt_path FILE.")
        if path not in (None, "last", "best", "hpc"):
            parse: Any = parser.parse_object if isinstance(args, dict | Namespace) else parser.parse_args
            self._take_options(parser, parse(args, defaults=False)[command], path)
        ends = trainer.max_epochs, trainer.max_time, trainer.fast_dev_run or None, trainer.barebones or None
        if command == "fit" and trainer.max_steps == -1 and all(end is None for end in ends):
            raise SuperCMError("trainer.max_epochs: give it, or trainer.max_steps; Lightning would train 1,000 epochs.")

    def _take_options(self, parser: LightningArgumentParser, given: Namespace, path: Any) -> None:
        """Takes the options of a checkpoint: those of its method, and how its samples were prepared."""
        command, checkpoint = self.config.subcommand, read_checkpoint(path)
        options = dict(checkpoint.get("hyper_parameters", {}))
        check_method(path, options, self.config[command].model.class_path)
        check_classes(path, options)
        samples = self.config[command].get("data") or Namespace(class_path="")
        prepared = checkpoint.get(samples.class_path.rpartition(".")[2], {}).get("options", {})
        # The data gives the shape and the classes; the rest of what Lightning keeps is no option.
        network = {n: v for n, v in options.items() if n[0] != "_" and n not in ("num_classes", "input_shape")}
        for section, saved in (("model", network), ("data", prepared)):
            own = (given.get(section) or Namespace()).get("init_args") or Namespace()
            taken = agreed_options(section, own.as_dict(), saved, command == "fit", path)
            if taken:
                classed = {"class_path": self.config[command][section].class_path, "init_args": taken}
                self.config = parser.parse_object({command: {section: classed}}, self.config)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let every option of the checkpoint replace one that was given."""

    def before_instantiate_classes(self) -> None:
        """Lets `test` and `predict` fetch no published weights: the checkpoint holds all; keeps the configuration."""
        options = (self.config[self.subcommand].model.get("init_args") or {}).get("backbone_options")
        if self.subcommand != "fit" and options and options.get("pretrained"):
            options["pretrained"] = False
        # Lightning would write YAML and read it.
        dumped = self.parser.dump(self.config, skip_link_targets=False, skip_none=False, format="json")
        self.config_dump = json.loads(dumped)[self.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what a run needs beside its configuration, unless the configuration has its own.

        TensorBoard and CSV logs in one folder, which a resumed run goes on with; the run's summary; predictions and
        their gallery; atomic checkpoints; and, for data of two domains, scores that need no target label.
        """
        config = self.config_init[self.subcommand].get("trainer") or {}
        if config.get("enable_model_summary") is None:
            kwargs["enable_model_summary"] = False  # it has FLOPs, all 0; `before_fit` prints the parameters
        additions: list[Callback] = [PredictionCollapse(), RunSummary(), PredictionWriter(), ClusterGallery()]
        if isinstance(self.datamodule, ViewDataModule) and self.datamodule.is_domain_adaptation:
            additions.insert(0, AdaptationScores())
        if self.subcommand == "fit" and SLURMEnvironment.detect():
            additions.append(SlurmRequeue())
        logger = tensorboard() if config.get("logger") in (None, True) else config["logger"]
        if isinstance(logger, NamedLogger) and not config.get("fast_dev_run") and not config.get("barebones"):
            start = self.config_init[self.subcommand].get("ckpt_path")
            self._folder = run_folder(self.subcommand, start, self.config_dump, config.get("callbacks"))
            self.config_init[self.subcommand]["ckpt_path"] = self._folder.checkpoint
            kwargs["logger"] = self._folder.loggers(logger, self._title)
            additions.insert(0, ContinuedRun())
        plugins = config.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, Sequence) and not isinstance(plugins, str) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError) as error:
            raise user_error(error) or SuperCMError(f"trainer: {error}") from error
        present = callbacks_of(trainer)
        present += [own for own in additions if not any(isinstance(callback, type(own)) for callback in present)]
        return trainer

    def before_fit(self) -> None:
        """Prints what is trained."""
        rank_zero_info(f"{self._title}: {sum(p.numel() for p in self.model.parameters()):,} parameters")

    @property
    def _title(self) -> str:
        options = self.datamodule.hparams if self.datamodule is not None else {}
        return run_title(type(self.model).__name__, type(self.datamodule).__name__, options)

    def test(self, verbose: bool = True, **options: Any) -> None:
        """Tests, and prints the results with four decimals."""
        results = self.trainer.test(verbose=False, **options)
        if verbose and self.trainer.is_global_zero:
            interval = accuracy_interval(self.trainer, results[0]) if results else None
            self._print(results, ("target ", "source "), interval)

    def validate(self, verbose: bool = True, **options: Any) -> None:
        """Validates, and prints the results with four decimals."""
        results = self.trainer.validate(verbose=False, **options)
        if verbose and self.trainer.is_global_zero:
            self._print(results, ("source ", "target "), None)

    def _print(self, results: Any, domains: tuple[str, str], interval: tuple[float, float] | None) -> None:
        is_adaptation = isinstance(self.datamodule, ViewDataModule) and self.datamodule.is_domain_adaptation
        shown: dict[str, float] = {}  # what the end of an epoch logs is among the results of every loader
        for domain, metrics in zip(domains if is_adaptation else ("",) * len(results), results, strict=False):
            if new := {name: value for name, value in metrics.items() if name not in shown}:
                print("\n".join(result_lines(new, interval, domain)))
            shown, interval = shown | metrics, None

    def after_fit(self) -> None:
        """Tests the final weights, where there is a test set, and prints the run's folder.

        `--trainer.limit_test_batches 0` leaves the test out.
        """
        samples = self.datamodule
        if isinstance(samples, ViewDataModule) and not samples.samples:
            samples.setup("test")  # the processes that have read the data are gone (ddp_spawn)
        has_test = not isinstance(samples, ViewDataModule) or samples.has_test
        if has_test and self.trainer.limit_test_batches and not self.trainer.interrupted:
            self.test(model=self.model, datamodule=self.datamodule)
            self._compare_with_floor()
        if not is_dry_run(self.trainer):
            rank_zero_info(f"The run's folder is {self.trainer.log_dir}")
            if Path(self.trainer.log_dir or "", "gallery.png").is_file():
                rank_zero_info("Its gallery.png shows images of each class or cluster.")
            if isinstance(self.model, methods.Clusterer):
                rank_zero_info(f"The cluster of each sample: supercm predict --run {self.trainer.log_dir}")

    def _compare_with_floor(self) -> None:
        """Says so where the run ends below what `supercm-baselines` reached on its data."""
        metrics = self.trainer.callback_metrics
        if isinstance(self.datamodule, ViewDataModule) and "test/acc" in metrics:
            file = Path(self.trainer.default_root_dir, FLOOR_FILE)
            if (line := below_floor(file, self.datamodule.hparams, float(metrics["test/acc"]))) is not None:
                rank_zero_info(line)


def run(args: ArgsType = None, extra_callbacks: Sequence[Callback] = ()) -> SuperCMCLI:
    """Runs the command line from Python.

    Args:
        args: Arguments without the program's name, as strings or as a dictionary; None: those of the process. Configs
            of the package may be named from any folder, such as `--config quickstart`.
        extra_callbacks: Callbacks beside those of the configuration, which does not mention them.

    Returns:
        The command line object, with its `trainer`, `model` and `datamodule`.

    Raises:
        SuperCMError: If an option, a file or the data cannot be used; the message names it.
        SystemExit: If the arguments cannot be parsed; the reason is printed.
    """
    args = sys.argv[1:] if args is None else args
    args = found_configs(args) if isinstance(args, list) else args
    with (
        warnings.catch_warnings(),
        without_messages("lightning.pytorch.utilities.rank_zero", "Tip: For seamless cloud"),
    ):
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message)
        try:
            return SuperCMCLI(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                seed_everything_default=0,
                trainer_defaults={"callbacks": list(extra_callbacks)},
                save_config_callback=SavedConfig,
                parser_kwargs={"prog": "supercm", "version": f"supercm_lightning {__version__}", "allow_abbrev": False},
                auto_configure_optimizers=False,
                args=args,
            )
        except Exception as error:
            if (cause := user_error(error)) in (None, error):
                raise
            raise cause from None  # without the parser's account of all that it was given


def main(args: ArgsType = None) -> None:
    """The console script: prints a `SuperCMError` as one line and exits with status 2."""
    given = sys.argv[1:] if args is None else args
    if isinstance(given, list) and (text := answer(given)) is not None:
        print(text)
        return
    find_local_modules()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    warnings.formatwarning = lambda message, *_: f"warning: {printable(str(message))}\n"
    try:
        with errors_in_one_line():
            if isinstance(given, list) and given[0] == "predict" and any(re.match("--run(=|$)", one) for one in given):
                args = predict_files.main(given[1:])
            if args or args is None:
                run(args)
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)  # Lightning means 0, with which a script would go on
    # A thread of gloo that releases a tensor while the interpreter shuts down aborts the process, although nothing
    # failed, and Lightning ends the threads of nccl alone. Not after an error: a peer that is gone cannot answer.
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
