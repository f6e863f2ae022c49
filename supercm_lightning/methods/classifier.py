"""The network of every method, and its evaluation."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.data import AttributeDict
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import Self

from supercm_lightning.contracts import Backbone
from supercm_lightning.data import ViewDataModule
from supercm_lightning.methods.prediction import Predicting
from supercm_lightning.nn import build_backbone, check_weights, freeze_stages, initialize_head, load_backbone_weights
from supercm_lightning.utils.checkpoints import (
    AtomicCheckpointIO,
    check_classes,
    is_pretrained,
    local_file,
    read_checkpoint,
)
from supercm_lightning.utils.lightning_private import trainer_of
from supercm_lightning.utils.options import SuperCMError, check_choice, check_positive, check_range
from supercm_lightning.utils.trainer import datamodule_of


class Classifier(Predicting):
    """A backbone, an optional bottleneck and a linear head, with accuracy, prediction and weights to start from.

    Args:
        num_classes: Number of classes K; the command line takes it from the data.
        input_shape: Shape of one input, (C, H, W) for images or (d,) for features; likewise.
        backbone: Name understood by `supercm_lightning.nn.build_backbone` (`small_cnn`, `fast_cnn`, `wrn_28_2`,
            `wrn_28_8`, `resnet18_32`, `mlp`, `identity`, or any timm model), or a module with an attribute
            `num_features`.
        backbone_options: Keyword arguments for the backbone's constructor, such as `{"pretrained": True}` for timm.
        backbone_checkpoint: File with weights to start from: a checkpoint of this library, a state dict of the
            backbone, or a file of timm (also `.safetensors`).
        freeze: Part of the backbone that does not learn: `none`, `all`, or N for all but the last N stages.
        bottleneck: Width of a linear layer with batch norm and ReLU between backbone and head, the default of domain
            adaptation with pretrained backbones (256); None: the head reads the backbone's features.
        head_init: Initialization of the linear head: `default` (PyTorch's) or `xavier` (Xavier-normal weights and zero
            bias, as the published SuperCM code does for every method).
        channels_last: Keep images and convolutions in channels-last memory order.
        compile: Compile the backbone with `torch.compile`.

    Raises:
        SuperCMError: If an option is outside its range.
    """

    if TYPE_CHECKING:
        hparams: AttributeDict

    needs_labeled = True
    backbone: nn.Module
    bottleneck: nn.Module
    head: nn.Module
    num_features: int

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        backbone: str | nn.Module = "small_cnn",
        backbone_options: dict[str, Any] | None = None,
        backbone_checkpoint: str | None = None,
        freeze: Literal["none", "all"] | int = "none",
        bottleneck: int | None = None,
        head_init: Literal["default", "xavier"] = "default",
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        # A module cannot be stored in a checkpoint that loads safely; a name can.
        self.save_hyperparameters(ignore=["backbone"] if isinstance(backbone, nn.Module) else [])
        check_range(2, num_classes=num_classes)
        check_positive(bottleneck=bottleneck)
        check_choice(head_init=(head_init, ("default", "xavier")))
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        if isinstance(backbone, str):
            backbone = build_backbone(backbone, self.input_shape, **(backbone_options or {}))
        if not isinstance(backbone, Backbone):
            raise SuperCMError(f"backbone: {type(backbone).__name__} needs num_features, the width of its output.")
        width = int(backbone.num_features)
        self.backbone = backbone
        self.bottleneck = nn.Identity() if bottleneck is None else _bottleneck(width, bottleneck)
        self.num_features = bottleneck or width
        self.head = self.build_head(self.num_features)
        self._frozen = freeze_stages(self.backbone, freeze)
        self._compiled = False
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        self.val_scores, self.test_scores = nn.ModuleDict(self.build_scores()), nn.ModuleDict(self.build_scores())
        self.eval_losses = nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in ("val", "test")})
        self.train()

    def build_head(self, in_features: int) -> nn.Module:
        """The classifier on top of the features; called once, when the options are in `self.hparams`."""
        return initialize_head(nn.Linear(in_features, self.num_classes), self.hparams.head_init)

    def build_scores(self) -> dict[str, Metric]:
        """Metrics of predicted and known classes, by name; called for validation and for test."""
        return {"acc": MulticlassAccuracy(self.num_classes, average="micro")}

    def setup(self, stage: str) -> None:
        """Loads the weights to start from, unless a checkpoint has them all, and compiles the backbone."""
        file = self.hparams.backbone_checkpoint
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # which runs the code of files from the web
            self.trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if stage == "fit" and file is not None and self.trainer.ckpt_path is None:
            load_backbone_weights(self.backbone, Path(file))
        if self.hparams.compile and not self._compiled:
            self.backbone.compile()
            self._compiled = True

    def train(self, mode: bool = True) -> "Classifier":
        """Sets the training mode; frozen parts of the backbone stay in evaluation mode, their statistics with it."""
        super().train(mode)
        for part in self._frozen if mode else ():
            part.eval()
        return self

    # -------------------------------------------------------------------------------------------- checkpoints
    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Loads a model, as Lightning does; nothing but tensors and plain values is read from the file.

        Raises:
            SuperCMError: If the file is a URL, damaged, or names a class that was not imported before.
        """
        content = read_checkpoint(checkpoint_path)
        check_classes(checkpoint_path, content.get("hyper_parameters"))
        source: Any = local_file(checkpoint_path) if not is_pretrained(checkpoint_path) else BytesIO()
        if isinstance(source, BytesIO):  # Lightning reads files of torch alone
            torch.save(content, source)
            source.seek(0)
        return super().load_from_checkpoint(source, *args, **{"weights_only": True} | kwargs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks the weights of a checkpoint.

        Raises:
            SuperCMError: If they are not those of this network, or one is NaN or infinite; the message names it.
        """
        super().on_load_checkpoint(checkpoint)
        check_weights(checkpoint["state_dict"], self.state_dict())
        data = datamodule_of(trainer_of(self))
        if isinstance(data, ViewDataModule) and type(data).__qualname__ not in checkpoint:  # then Lightning asks it
            state = next((v for v in checkpoint.values() if isinstance(v, dict) and "measured" in v), None)
            if state is not None and data.restore_preparation(state):
                data.read_again()

    # ------------------------------------------------------------------------------------------------ forward
    def features(self, x: Tensor) -> Tensor:
        """Features (n, d) of inputs (n, *input_shape)."""
        if self.hparams.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.bottleneck(self.backbone(x))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (n, K) of inputs (n, *input_shape)."""
        return self.head(self.features(x))

    # ---------------------------------------------------------------------------------------------- evaluation
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Accuracy and cross-entropy on the first loader as `val/acc` and `val/loss`.

        Returns:
            `features` (n, d) and `logits` (n, K) of the samples, for callbacks; further loaders exist for these alone.
        """
        return self._evaluate(batch, "val", self.val_scores, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Accuracy and cross-entropy on the first loader as `test/acc` and `test/loss`; returns as in validation."""
        return self._evaluate(batch, "test", self.test_scores, dataloader_idx)

    def _evaluate(self, batch: Any, stage: str, scores: nn.ModuleDict, dataloader_idx: int) -> dict[str, Tensor]:
        x, y = batch[0], batch[1]
        features = self.features(x)
        logits = self.head(features).float()
        if dataloader_idx == 0:
            options: dict[str, Any] = {"batch_size": len(y), "on_epoch": True, "add_dataloader_idx": False}
            if self.needs_labeled:  # without labels the outputs are clusters, not the classes
                # Lightning's own mean over processes cuts the mean number of samples off to an integer.
                loss = cast(Metric, self.eval_losses[stage])
                loss.update(F.cross_entropy(logits, y, reduction="none"))
                self.log(f"{stage}/loss", loss, on_step=False, **options)
            for name, score in scores.items():
                cast(Metric, score).update(logits.argmax(dim=1), y)
                self.log(f"{stage}/{name}", cast(Metric, score), prog_bar=name == "acc", on_step=False, **options)
        return {"features": features, "logits": logits}

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Class probabilities (n, K) and, where the loader gives it, the index (n,) of each sample."""
        x, *others = batch if isinstance(batch, (tuple, list)) else (batch,)
        return {"probabilities": self(x).float().softmax(dim=1), "index": others[1] if len(others) > 1 else None}


def _bottleneck(in_features: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
