"""One LightningModule per method."""

from supercm_lightning.methods.base import Method, Step
from supercm_lightning.methods.supercm import SuperCM
from supercm_lightning.methods.supervised import Supervised

__all__ = ["Method", "Step", "SuperCM", "Supervised"]
