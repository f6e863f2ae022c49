"""One LightningModule per method."""

from supercm_lightning.contracts import Step
from supercm_lightning.methods.asd import ASD
from supercm_lightning.methods.base import Method
from supercm_lightning.methods.bnm import BNM
from supercm_lightning.methods.cdan import CDAN
from supercm_lightning.methods.combinations import (
    ASDFixMatch,
    ASDFreeMatch,
    ASDSuperCM,
    ASDSuperCMFreeMatch,
    SuperCMBNM,
    SuperCMCDAN,
    SuperCMDANN,
    SuperCMFixMatch,
    SuperCMFlexMatch,
    SuperCMFreeMatch,
    SuperCMMCC,
    SuperCMMeanTeacher,
    SuperCMPiModel,
    SuperCMPseudoLabel,
    SuperCMVAT,
)
from supercm_lightning.methods.dann import DANN
from supercm_lightning.methods.fixmatch import FixMatch
from supercm_lightning.methods.flexmatch import FlexMatch
from supercm_lightning.methods.freematch import FreeMatch
from supercm_lightning.methods.mcc import MCC
from supercm_lightning.methods.mean_teacher import MeanTeacher
from supercm_lightning.methods.pi_model import PiModel
from supercm_lightning.methods.pseudo_label import PseudoLabel
from supercm_lightning.methods.supercm import SuperCM
from supercm_lightning.methods.supervised import Supervised
from supercm_lightning.methods.vat import VAT

__all__ = [
    "ASD",
    "BNM",
    "CDAN",
    "DANN",
    "MCC",
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
    "SuperCMBNM",
    "SuperCMCDAN",
    "SuperCMDANN",
    "SuperCMFixMatch",
    "SuperCMFlexMatch",
    "SuperCMFreeMatch",
    "SuperCMMCC",
    "SuperCMMeanTeacher",
    "SuperCMPiModel",
    "SuperCMPseudoLabel",
    "SuperCMVAT",
    "Supervised",
]
