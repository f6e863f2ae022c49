"""Combinations of methods: the bases' terms add up."""

from supercm_lightning.methods.asd import ASD
from supercm_lightning.methods.bnm import BNM
from supercm_lightning.methods.cdan import CDAN
from supercm_lightning.methods.dann import DANN
from supercm_lightning.methods.fixmatch import FixMatch
from supercm_lightning.methods.flexmatch import FlexMatch
from supercm_lightning.methods.freematch import FreeMatch
from supercm_lightning.methods.label_propagation import LabelPropagation
from supercm_lightning.methods.mcc import MCC
from supercm_lightning.methods.mean_teacher import MeanTeacher
from supercm_lightning.methods.pi_model import PiModel
from supercm_lightning.methods.pseudo_label import PseudoLabel
from supercm_lightning.methods.sdat import SDAT
from supercm_lightning.methods.softmatch import SoftMatch
from supercm_lightning.methods.supercm import SuperCM
from supercm_lightning.methods.vat import VAT


class SuperCMPseudoLabel(SuperCM, PseudoLabel):
    """SuperCM as a regularizer of Pseudo-Label."""


class SuperCMPiModel(SuperCM, PiModel):
    """SuperCM as a regularizer of the Π-Model."""


class SuperCMMeanTeacher(SuperCM, MeanTeacher):
    """SuperCM as a regularizer of Mean Teacher."""


class SuperCMVAT(SuperCM, VAT):
    """SuperCM as a regularizer of VAT."""


class SuperCMFixMatch(SuperCM, FixMatch):
    """SuperCM as a regularizer of FixMatch."""


class SuperCMFlexMatch(SuperCM, FlexMatch):
    """SuperCM as a regularizer of FlexMatch."""


class SuperCMFreeMatch(SuperCM, FreeMatch):
    """SuperCM as a regularizer of FreeMatch."""


class SuperCMSoftMatch(SuperCM, SoftMatch):
    """SuperCM as a regularizer of SoftMatch."""


class SuperCMLabelPropagation(SuperCM, LabelPropagation):
    """SuperCM as a regularizer of label propagation; the recommended method without strong augmentation."""


class SuperCMLabelPropagationFlexMatch(SuperCMLabelPropagation, FlexMatch):
    """SuperCM and label propagation beside FlexMatch."""


class SuperCMLabelPropagationFreeMatch(SuperCMLabelPropagation, FreeMatch):
    """SuperCM and label propagation beside FreeMatch."""


class SuperCMDANN(SuperCM, DANN):
    """SuperCM, with the centroids of the source, as a regularizer of DANN."""


class SuperCMCDAN(SuperCM, CDAN):
    """SuperCM, with the centroids of the source, as a regularizer of CDAN."""


class SuperCMMCC(SuperCM, MCC):
    """SuperCM, with the centroids of the source, as a regularizer of MCC."""


class SuperCMBNM(SuperCM, BNM):
    """SuperCM, with the centroids of the source, as a regularizer of BNM."""


class SuperCMSDAT(SuperCM, SDAT):
    """SuperCM, with the centroids of the source, as a regularizer of SDAT."""


class ASDFixMatch(ASD, FixMatch):
    """Clustering by FixMatch on labels that ASD makes."""


class ASDFreeMatch(ASD, FreeMatch):
    """Clustering by FreeMatch on labels that ASD makes."""


class ASDSuperCM(ASD, SuperCM):
    """Clustering by SuperCM on labels that ASD makes, which its centroids follow too."""


class ASDSuperCMFreeMatch(ASD, SuperCMFreeMatch):
    """Clustering by FreeMatch, with SuperCM as its regularizer, on labels that ASD makes."""
