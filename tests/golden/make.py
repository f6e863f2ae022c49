"""Writes the checkpoint that later releases must keep loading, and the logits that it must give.

`python tests/golden/make.py` is run again only where a release breaks with earlier checkpoints on purpose.
"""

import json
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from sklearn.datasets import load_digits

from supercm_lightning import FeatureDataModule, SuperCM

FOLDER = Path(__file__).parent
SHOWN = 8


def main() -> None:
    """Trains a small SuperCM on the pixels of the digits."""
    torch.set_num_threads(1)
    seed_everything(0)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    data = FeatureDataModule((x, y), num_labeled=50, steps_per_epoch=50)
    model = SuperCM(
        num_classes=10, input_shape=(64,), backbone="mlp",
        backbone_options={"hidden_features": 32, "num_features": 16}, beta=1.0, lr=0.01,
    )  # fmt: skip
    trainer = Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(FOLDER / "supercm_digits.ckpt")
    with torch.no_grad():
        logits = model.eval()(x[:SHOWN])
    (FOLDER / "supercm_digits.json").write_text(json.dumps(logits.tolist()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
