"""What clustering without labels needs, on tensors: no Lightning."""

from supercm_lightning.self_labeling.alignment import align_labels
from supercm_lightning.self_labeling.cluster_map import ClusterMap, majority_clusters
from supercm_lightning.self_labeling.grouping import group_classes, kmedoids, match_clusters
from supercm_lightning.self_labeling.pseudo_labeled import PseudoLabeledSamples
from supercm_lightning.self_labeling.sampling import class_coverage, prototype_sample, random_sample
from supercm_lightning.self_labeling.transitions import ClassTransitionTracker

__all__ = [
    "ClassTransitionTracker",
    "ClusterMap",
    "PseudoLabeledSamples",
    "align_labels",
    "class_coverage",
    "group_classes",
    "kmedoids",
    "majority_clusters",
    "match_clusters",
    "prototype_sample",
    "random_sample",
]
