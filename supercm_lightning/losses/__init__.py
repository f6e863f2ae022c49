"""Loss functions on tensors: no Lightning, no state."""

from supercm_lightning.losses.clustering import clustering_loss, clustering_loss_terms

__all__ = ["clustering_loss", "clustering_loss_terms"]
