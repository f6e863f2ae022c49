"""Loss functions on tensors: no Lightning, no state."""

from supercm_lightning.losses.balance import balanced_cross_entropy, class_balance
from supercm_lightning.losses.clustering import clustering_loss, clustering_loss_terms
from supercm_lightning.losses.consistency import (
    balanced_consistency_loss,
    consistency_loss,
    entropy,
    fairness_loss,
    pseudo_label_loss,
    virtual_adversarial_loss,
)
from supercm_lightning.losses.domain import (
    batch_nuclear_norm,
    certainty_weight,
    domain_adversarial_loss,
    fast_batch_nuclear_norm,
    minimum_class_confusion,
)

__all__ = [
    "balanced_consistency_loss",
    "balanced_cross_entropy",
    "batch_nuclear_norm",
    "certainty_weight",
    "class_balance",
    "clustering_loss",
    "clustering_loss_terms",
    "consistency_loss",
    "domain_adversarial_loss",
    "entropy",
    "fairness_loss",
    "fast_batch_nuclear_norm",
    "minimum_class_confusion",
    "pseudo_label_loss",
    "virtual_adversarial_loss",
]
