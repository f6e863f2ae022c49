"""One test for each private name of Lightning and PyTorch: it fails in the release that takes the name away."""

import ast
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader

import supercm_lightning
from supercm_lightning.utils import lightning_private
from supercm_lightning.utils.lightning_private import (
    before_batch_transfer,
    datamodule_of_call,
    is_compiled,
    trainer_of,
    without_iterator,
)


class Doubling(LightningDataModule):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch * 2


class Probe(LightningModule):
    def training_step(self, batch, batch_idx):
        self.seen = before_batch_transfer(self, torch.ones(2), 0)

    def configure_optimizers(self):
        return None


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_before_batch_transfer_asks_the_data_module():
    data, module = Doubling(), Probe()
    data.train_dataloader = lambda: DataLoader(torch.ones(1, 2))
    trainer = Trainer(max_steps=1, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert module.seen.tolist() == [2.0, 2.0]


def test_is_compiled_tells_whether_compile_was_called():
    module = nn.Linear(2, 2)
    assert not is_compiled(module)
    module.compile()
    assert is_compiled(module)


def test_without_iterator_leaves_the_running_epoch_of_persistent_workers_alone():
    loader = DataLoader(torch.arange(6), batch_size=1, num_workers=1, persistent_workers=True)
    running = iter(loader)
    assert next(running).item() == 0
    assert [batch.item() for batch in without_iterator(loader)] == list(range(6))
    assert [batch.item() for batch in running] == [1, 2, 3, 4, 5]


def test_every_function_has_a_test_here():
    names = [node.name for node in ast.parse(Path(lightning_private.__file__).read_text()).body
             if isinstance(node, ast.FunctionDef)]  # fmt: skip
    tests = [name for name in globals() if name.startswith("test_")]
    assert all(any(name in test for test in tests) for name in names)


def test_no_other_file_uses_private_names_of_trainers_and_modules():
    root = Path(supercm_lightning.__file__).parent
    # Methods of this package, functions of torch and of named tuples begin with an underscore too.
    own = re.compile(r"def (_\w+)|(?:self|cls)\.(_\w+)\b.*=")
    files = [file for file in root.rglob("*.py") if file != Path(lightning_private.__file__)]
    known = {"_replace"} | {name for file in files for pair in own.findall(file.read_text()) for name in pair if name}
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Attribute) or not re.match(r"_[a-z]", node.attr) or node.attr in known:
                continue
            if isinstance(node.value, ast.Name) and node.value.id == "torch":
                continue
            found.append(f"{file.relative_to(root)}:{node.lineno} {ast.unparse(node)}")
    assert not found


def test_trainer_of_a_module_is_one_or_none():
    module = LightningModule()
    assert trainer_of(module) is None
    module.trainer = trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert trainer_of(module) is trainer


def test_datamodule_of_call_is_not_that_of_an_earlier_one():
    data, module = Doubling(), Probe()
    data.test_dataloader = lambda: DataLoader(torch.ones(1, 2))
    module.test_step = lambda batch, batch_idx: None
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    assert datamodule_of_call(trainer) is None
    trainer.test(module, datamodule=data)
    assert datamodule_of_call(trainer) is data
    trainer.test(module, dataloaders=DataLoader(torch.ones(1, 2)))
    assert (datamodule_of_call(trainer), trainer.datamodule) == (None, data)


def test_the_command_line_takes_options_of_checkpoints_in_one_place():
    assert callable(vars(LightningCLI)["_parse_ckpt_path"])
