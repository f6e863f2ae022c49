"""Combinations of methods: the bases' terms add up."""

from supercm_lightning.methods.asd import ASD
from supercm_lightning.methods.bnm import BNM
from supercm_lightning.methods.cdan import CDAN
from supercm_lightning.methods.dann import DANN
from supercm_lightning.methods.fixmatch import FixMatch
from supercm_lightning.methods.flexmatch import FlexMatch
from supercm_lightning.methods.freematch import FreeMatch
from supercm_lightning.methods.mcc import MCC
from supercm_lightning.methods.mean_teacher import MeanTeacher
from supercm_lightning.methods.pi_model import PiModel
from supercm_lightning.methods.pseudo_label import PseudoLabel
from supercm_lightning.methods.supercm import SuperCM
from supercm_lightning.methods.vat import VAT


class SuperCMPseudoLabel(SuperCM, PseudoLabel):
    """SuperCM as a regulariser of Pseudo-Label."""


class SuperCMPiModel(SuperCM, PiModel):
    """SuperCM as a regulariser of the Π-Model."""


class SuperCMMeanTeacher(SuperCM, MeanTeacher):
    """SuperCM as a regulariser of Mean Teacher."""


class SuperCMVAT(SuperCM, VAT):
    """SuperCM as a regulariser of VAT."""


class SuperCMFixMatch(SuperCM, FixMatch):
    """SuperCM as a regulariser of FixMatch."""


class SuperCMFlexMatch(SuperCM, FlexMatch):
    """SuperCM as a regulariser of FlexMatch."""


class SuperCMFreeMatch(SuperCM, FreeMatch):
    """SuperCM as a regulariser of FreeMatch."""


class SuperCMDANN(SuperCM, DANN):
    """SuperCM, its centroids those of the source, as a regulariser of DANN."""


class SuperCMCDAN(SuperCM, CDAN):
    """SuperCM, its centroids those of the source, as a regulariser of CDAN."""


class SuperCMMCC(SuperCM, MCC):
    """SuperCM, its centroids those of the source, as a regulariser of MCC."""


class SuperCMBNM(SuperCM, BNM):
    """SuperCM, its centroids those of the source, as a regulariser of BNM."""


class ASDFixMatch(ASD, FixMatch):
    """Clustering by FixMatch on labels that ASD makes."""


class ASDFreeMatch(ASD, FreeMatch):
    """Clustering by FreeMatch on labels that ASD makes."""


class ASDSuperCM(ASD, SuperCM):
    """Clustering by SuperCM on labels that ASD makes, which its centroids follow too."""


class ASDSuperCMFreeMatch(ASD, SuperCMFreeMatch):
    """Clustering by FreeMatch, with SuperCM as its regulariser, on labels that ASD makes."""
