"""One LightningModule per method."""

from supercm_lightning.methods.asd import ASD
from supercm_lightning.methods.base import Method, Step
from supercm_lightning.methods.combinations import (
    ASDFixMatch,
    ASDFreeMatch,
    ASDSuperCM,
    ASDSuperCMFreeMatch,
    SuperCMFixMatch,
    SuperCMFlexMatch,
    SuperCMFreeMatch,
    SuperCMMeanTeacher,
    SuperCMPiModel,
    SuperCMPseudoLabel,
    SuperCMVAT,
)
from supercm_lightning.methods.fixmatch import FixMatch
from supercm_lightning.methods.flexmatch import FlexMatch
from supercm_lightning.methods.freematch import FreeMatch
from supercm_lightning.methods.mean_teacher import MeanTeacher
from supercm_lightning.methods.pi_model import PiModel
from supercm_lightning.methods.pseudo_label import PseudoLabel
from supercm_lightning.methods.supercm import SuperCM
from supercm_lightning.methods.supervised import Supervised
from supercm_lightning.methods.vat import VAT

__all__ = [
    "ASD",
    "VAT",
    "ASDFixMatch",
    "ASDFreeMatch",
    "ASDSuperCM",
    "ASDSuperCMFreeMatch",
    "FixMatch",
    "FlexMatch",
    "FreeMatch",
    "MeanTeacher",
    "Method",
    "PiModel",
    "PseudoLabel",
    "Step",
    "SuperCM",
    "SuperCMFixMatch",
    "SuperCMFlexMatch",
    "SuperCMFreeMatch",
    "SuperCMMeanTeacher",
    "SuperCMPiModel",
    "SuperCMPseudoLabel",
    "SuperCMVAT",
    "Supervised",
]
