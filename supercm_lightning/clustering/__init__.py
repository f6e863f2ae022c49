"""What clustering without labels needs, on tensors: no Lightning."""

from supercm_lightning.clustering.alignment import align_labels
from supercm_lightning.clustering.cluster_map import ClusterMap, majority_clusters
from supercm_lightning.clustering.drawn_rows import DrawnRows
from supercm_lightning.clustering.kmedoids import group_classes, kmedoids, match_clusters
from supercm_lightning.clustering.sampling import class_coverage, prototype_sample, random_sample
from supercm_lightning.clustering.transitions import ClassTransitionTracker

__all__ = [
    "ClassTransitionTracker",
    "ClusterMap",
    "DrawnRows",
    "align_labels",
    "class_coverage",
    "group_classes",
    "kmedoids",
    "majority_clusters",
    "match_clusters",
    "prototype_sample",
    "random_sample",
]
