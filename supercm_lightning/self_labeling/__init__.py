"""Labels made without labels, on tensors: sampling, alignment, transitions, grouping, and the adaptor of all."""

from supercm_lightning.self_labeling.adaptor import SelfLabeler
from supercm_lightning.self_labeling.alignment import align_labels
from supercm_lightning.self_labeling.cluster_map import ClusterMap
from supercm_lightning.self_labeling.grouping import group_classes, group_features, kmedoids, match_clusters
from supercm_lightning.self_labeling.initial_clusters import majority_clusters, read_clusters
from supercm_lightning.self_labeling.options import ASDOptions
from supercm_lightning.self_labeling.pseudo_labeled import PseudoLabeledSamples
from supercm_lightning.self_labeling.sampling import class_coverage, prototype_sample, random_sample
from supercm_lightning.self_labeling.transitions import ClassTransitionTracker
from supercm_lightning.self_labeling.verdict import Verdict, judge

__all__ = [
    "ASDOptions",
    "ClassTransitionTracker",
    "ClusterMap",
    "PseudoLabeledSamples",
    "SelfLabeler",
    "Verdict",
    "align_labels",
    "class_coverage",
    "group_classes",
    "group_features",
    "judge",
    "kmedoids",
    "majority_clusters",
    "match_clusters",
    "prototype_sample",
    "random_sample",
    "read_clusters",
]
