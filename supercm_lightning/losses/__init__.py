"""Loss functions on tensors: no Lightning, no state."""

from supercm_lightning.losses.clustering import clustering_loss, clustering_loss_terms
from supercm_lightning.losses.consistency import (
    balanced_consistency_loss,
    consistency_loss,
    entropy,
    fairness_loss,
    pseudo_label_loss,
    virtual_adversarial_loss,
)

__all__ = [
    "balanced_consistency_loss",
    "clustering_loss",
    "clustering_loss_terms",
    "consistency_loss",
    "entropy",
    "fairness_loss",
    "pseudo_label_loss",
    "virtual_adversarial_loss",
]
