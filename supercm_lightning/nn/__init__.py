"""Networks and their parts: no Lightning."""

from supercm_lightning.nn.averaging import Ema, ema_decay
from supercm_lightning.nn.backbones import TimmBackbone, build_backbone
from supercm_lightning.nn.batch_norm import evaluating, frozen_batch_norm_stats
from supercm_lightning.nn.buffers import resize_buffers
from supercm_lightning.nn.clustering_head import ClusteringHead, class_totals, initialize_head
from supercm_lightning.nn.domain import DomainDiscriminator, MultilinearMap, reverse_gradient
from supercm_lightning.nn.fast_cnn import FastCNN
from supercm_lightning.nn.small import MLP, Identity, ResNet18, SmallCNN
from supercm_lightning.nn.weights import check_weights, freeze_stages, load_backbone_weights
from supercm_lightning.nn.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "ClusteringHead",
    "DomainDiscriminator",
    "Ema",
    "FastCNN",
    "Identity",
    "MultilinearMap",
    "ResNet18",
    "SmallCNN",
    "TimmBackbone",
    "WideResNet",
    "build_backbone",
    "check_weights",
    "class_totals",
    "ema_decay",
    "evaluating",
    "freeze_stages",
    "frozen_batch_norm_stats",
    "initialize_head",
    "load_backbone_weights",
    "resize_buffers",
    "reverse_gradient",
]
