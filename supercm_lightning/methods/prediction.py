"""Prediction by a model alone: from a checkpoint and files, without the data that it was trained on."""

import os
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image
from torch import Tensor
from typing_extensions import Self

from supercm_lightning.data.preparation import Preparation
from supercm_lightning.data.sources.images import REMEDY, UnreadableImage, read_image
from supercm_lightning.methods.pretrained import push_to_hub, save_pretrained
from supercm_lightning.nn.extractor import FrozenExtractor
from supercm_lightning.utils.checkpoints import check_classes, checkpoint_of, read_checkpoint
from supercm_lightning.utils.options import SuperCMError, check_range


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one sample.

    Attributes:
        file: File of the sample, or its place among those that were given.
        classes: Names of the classes, or their numbers where they have no names; the most probable first.
        confidences: Their probabilities.
        probabilities: Probability of every class, (K,) float32, in the order of the model's outputs.
    """

    file: str
    classes: tuple[str | int, ...]
    confidences: tuple[float, ...]
    probabilities: Tensor


class Predicting(LightningModule):
    """The part of a method that predicts images and features, as a checkpoint says that they are prepared.

    Attributes:
        preparation: How samples become inputs; known once a checkpoint was loaded.
    """

    input_shape: tuple[int, ...]
    preparation: Preparation | None = None
    card = ""

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Loads a model that `save_pretrained` wrote, from its folder or from the Hub, `hf://OWNER/NAME`."""
        return cls.load(path)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a loaded model into a folder of plain files: safetensors, JSON and a card of the run.

        Raises:
            SuperCMError: If the model was not loaded from a checkpoint, or an option is no plain value.
        """
        return save_pretrained(self, folder)

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Uploads a loaded model to the Hugging Face Hub as `OWNER/NAME` (extra `hub`); gives its address."""
        with TemporaryDirectory() as folder:
            return push_to_hub(save_pretrained(self, folder), name, private)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Loads a trained model for evaluation.

        Args:
            path: A checkpoint, the folder of a run, whose best checkpoint is taken, else the newest, or what
                `from_pretrained` takes.

        Raises:
            MissingFileError: If there is no checkpoint.
            SuperCMError: If it cannot be read, or is one of another method.
        """
        model = load_model(path, cls)
        if not isinstance(model, cls):
            raise SuperCMError(
                f"{path}: a checkpoint of {type(model).__name__}. Load it by {type(model).__name__}.load."
            )
        return model

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what the checkpoint says of classes and samples."""
        state = next((v for v in checkpoint.values() if isinstance(v, dict) and "preprocessing" in v), {})
        # Not a submodule: it has no weights, and no place in a checkpoint.
        vars(self)["preparation"] = Preparation(state, self.input_shape)

    def predict_images(
        self,
        images: Iterable[str | Path | Image.Image | np.ndarray],
        top_k: int = 1,
        batch_size: int = 64,
        weights: str | Path | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
    ) -> list[Prediction]:
        """Predicts images: prepared as in the training, upright as their EXIF orientation says.

        Args:
            images: Files, images of Pillow, or arrays (H, W) or (H, W, C) in bytes. Large files of JPEG are decoded at
                a fraction of their size, as in the training; decoded images give pixels that differ by some levels.
            top_k: Number of classes in each prediction, the most probable ones.
            batch_size: Images per forward.
            weights: For a model that reads features: file of weights of the network that gave them.
            on_bad_image: For a file that cannot be read: `error`, or `skip`, which leaves it out and names it.

        Raises:
            SuperCMError: If the model was not loaded from a checkpoint that says how images are read, or one cannot be.
        """
        images, found = list(images), list[Prediction]()
        names = [str(one) if isinstance(one, str | Path) else str(place) for place, one in enumerate(images)]
        read = self._images(weights)
        for start in range(0, len(images), batch_size):
            samples: dict[int, Tensor] = {}
            for place, one in enumerate(images[start : start + batch_size], start):
                try:
                    samples[place] = read(one)
                except UnreadableImage as error:
                    if on_bad_image == "error":
                        raise
                    rank_zero_warn(f"left out: {str(error).removesuffix(REMEDY)}")
            if samples:
                found += self._predict(torch.stack([*samples.values()]), [names[place] for place in samples], top_k)
        return found

    def predict_features(
        self, features: np.ndarray | Tensor, top_k: int = 1, batch_size: int = 8192, files: Sequence[str] | None = None
    ) -> list[Prediction]:
        """Predicts features (n, d), standardized as in the training.

        Args:
            features: The features, as they are in their file.
            top_k: Number of classes in each prediction.
            batch_size: Samples per forward.
            files: Name of each sample; None: its place.

        Raises:
            SuperCMError: If they are not of the shape that the model reads.
        """
        if tuple(features.shape[1:]) != self.input_shape:
            raise SuperCMError(
                f"features of shape {tuple(features.shape[1:])}, but the model reads {self.input_shape}."
            )
        rows, names = torch.as_tensor(features), files or [str(place) for place in range(len(features))]
        found: list[Prediction] = []
        for start in range(0, len(rows), batch_size):
            chosen = slice(start, start + batch_size)
            found += self._predict(rows[chosen].float(), names[chosen], top_k)
        return found

    def prepared(self) -> Preparation:
        """How samples become inputs; an error where no checkpoint said it."""
        if self.preparation is None:
            raise SuperCMError("The model was not loaded from a checkpoint: use load(path of a checkpoint or run).")
        return self.preparation

    def _images(self, weights: str | Path | None) -> Any:
        """What turns an image into a sample of the model: pixels, or features of them."""
        prepared = self.prepared()
        known = prepared.extractor
        if weights is None or "backbone" not in known:
            return prepared.read
        size = int(known["image_size"]) if "image_size" in known else None
        network = FrozenExtractor(known["backbone"], False, Path(weights), image_size=size)
        if known.get("weights", network.weights) != network.weights:
            raise SuperCMError(
                f"weights={weights}: hash {network.weights}, the model was trained on {known['weights']}."
            )

        def extract(image: str | Path) -> Tensor:
            return network(read_image(image, 3, None, at_most=network.resized)[None])[0]

        return extract

    @torch.inference_mode()
    def _predict(self, samples: Tensor, names: Sequence[str], top_k: int) -> list[Prediction]:
        prepared, training = self.prepared(), self.training
        self.eval()
        probabilities = self(prepared(samples).to(self.device)).float().softmax(1).cpu()
        self.train(training)
        check_range(1, probabilities.shape[1], top_k=top_k)
        confidences, places = probabilities.topk(top_k)
        classes: Sequence[Any] = prepared.class_names or range(probabilities.shape[1])
        return [
            Prediction(name, tuple(classes[place] for place in best), tuple(values), row)
            for name, best, values, row in zip(names, places.tolist(), confidences.tolist(), probabilities, strict=True)
        ]


def load_model(path: str | Path, kind: str | type[Predicting] | None = None) -> Any:
    """Loads the model of a checkpoint for evaluation, on the CPU.

    Args:
        path: A checkpoint, or the folder of a run.
        kind: Class of the model, or its name or path; that of the checkpoint may be one of its subclasses. None: the
            class that the checkpoint names, if it is of this package or was imported.

    Raises:
        MissingFileError: If there is no checkpoint.
        SuperCMError: If it cannot be read, or its class is unknown.
    """
    file = checkpoint_of(path)
    options = read_checkpoint(file).get("hyper_parameters", {})
    given = _class(kind) if isinstance(kind, str) else kind  # which imports it
    check_classes(file, options)
    saved = options.get("_class_path")
    if saved is None and given is None:
        raise SuperCMError(f"model: {file} does not name its class; give it, such as --model SuperCM.")
    named = _class(saved) if saved is not None and not isinstance(kind, str) else given
    # All weights are in the file; published ones would be fetched only to be overwritten.
    local: dict[str, Any] = {}
    if (options.get("backbone_options") or {}).get("pretrained"):
        local["backbone_options"] = options["backbone_options"] | {"pretrained": False}
    assert named is not None
    model = named.load_from_checkpoint(file, map_location="cpu", **local).eval()
    card = file.parent / "card.md"
    vars(model)["card"] = card.read_text(encoding="utf-8") if card.is_file() else ""
    return model


def _class(name: str) -> type[Predicting]:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = pkgutil.resolve_name(name if "." in name else f"supercm_lightning.methods.{name}")
    except (ImportError, AttributeError, ValueError) as error:
        raise SuperCMError(f"model={name}: {error}. Give a method of this package or the path of a class.") from error
    if not (isinstance(found, type) and issubclass(found, Predicting)):
        raise SuperCMError(f"model={name}: not a method. Give a subclass of Method, such as SuperCM.")
    return found
