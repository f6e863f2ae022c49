"""One LightningModule per method; a new one needs its file and one import here."""

from supercm_lightning.contracts import Step as Step
from supercm_lightning.methods.asd import ASD as ASD
from supercm_lightning.methods.base import Method as Method
from supercm_lightning.methods.bnm import BNM as BNM
from supercm_lightning.methods.cdan import CDAN as CDAN
from supercm_lightning.methods.clusterer import Clusterer as Clusterer
from supercm_lightning.methods.combinations import *  # noqa: F403
from supercm_lightning.methods.dann import DANN as DANN
from supercm_lightning.methods.fixmatch import FixMatch as FixMatch
from supercm_lightning.methods.flexmatch import FlexMatch as FlexMatch
from supercm_lightning.methods.freematch import FreeMatch as FreeMatch
from supercm_lightning.methods.label_propagation import LabelPropagation as LabelPropagation
from supercm_lightning.methods.mcc import MCC as MCC
from supercm_lightning.methods.mean_teacher import MeanTeacher as MeanTeacher
from supercm_lightning.methods.pi_model import PiModel as PiModel
from supercm_lightning.methods.pseudo_label import PseudoLabel as PseudoLabel
from supercm_lightning.methods.sdat import SDAT as SDAT
from supercm_lightning.methods.softmatch import SoftMatch as SoftMatch
from supercm_lightning.methods.supercm import SuperCM as SuperCM
from supercm_lightning.methods.supervised import Supervised as Supervised
from supercm_lightning.methods.vat import VAT as VAT

__all__ = ["Step", *sorted(name for name, it in vars().items() if isinstance(it, type) and issubclass(it, Method))]
