"""Saves the configuration of a command in its folder."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.trainer import is_dry_run


class SavedConfig(SaveConfigCallback):
    """Writes `config.yaml` in one piece; beside the one of a `fit`, `test` writes `config_test.yaml`, and so on."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file, before the first step."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # all ranks must ask together
        if trainer.is_global_zero and not self.already_saved and not is_dry_run(trainer):
            file, command = folder / "config.yaml", trainer.state.fn
            if file.exists() and command is not None and command != TrainerFn.FITTING:
                file = folder / f"config_{command.value}.yaml"
            write_atomically(file, self.parser.dump(self.config, skip_none=False))
        self.already_saved = True
