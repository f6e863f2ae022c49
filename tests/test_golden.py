"""A checkpoint of an earlier day loads and gives the logits of that day."""

import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from supercm_lightning import SuperCM

GOLDEN = Path(__file__).parent / "golden"


def test_the_golden_checkpoint_gives_its_logits() -> None:
    expected = torch.tensor(json.loads((GOLDEN / "supercm_digits.json").read_text(encoding="utf-8")))
    pixels, _ = load_digits(return_X_y=True)
    x = torch.tensor(pixels[: len(expected)], dtype=torch.float32) / 16
    model = SuperCM.load_from_checkpoint(GOLDEN / "supercm_digits.ckpt", weights_only=True, map_location="cpu").eval()
    with torch.no_grad():
        logits = model(x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert model.head.centroids.norm(dim=1).min() > 0
    assert model.hparams.beta == 1.0
