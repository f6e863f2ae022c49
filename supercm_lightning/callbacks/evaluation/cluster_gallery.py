"""Pictures of what a model takes for each class or cluster."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor

from supercm_lightning.callbacks.evaluation.contact_sheet import Picture, contact_sheet, sample_images
from supercm_lightning.callbacks.evaluation.prediction_writer import has_clusters
from supercm_lightning.callbacks.evaluation.sample_table import SampleTable
from supercm_lightning.callbacks.training.step_averaging import averaged_weights
from supercm_lightning.data import ViewDataModule
from supercm_lightning.metrics import ClusteringAccuracy
from supercm_lightning.nn import evaluating
from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.lightning_private import datamodule_of_call
from supercm_lightning.utils.options import check_range
from supercm_lightning.utils.text import printable
from supercm_lightning.utils.trainer import datamodule_of, is_dry_run

_SIZE, _MAX_CLASSES, _MAX_SAMPLES = 64, 30, 2000


class ClusterGallery(Callback):
    """Writes `gallery.png` with the surest, the most doubtful and the mistaken images of each class or cluster.

    Every test draws the test samples, `predict` the predicted ones (`predict_gallery.png`), and `fit` of a method
    without labels the clusters of 2,000 training samples. A band of the picture is one predicted class; mistaken
    images, where labels are known, have a red frame, and the most confident ones stand at the right as "predicted /
    true". Clusters are matched with the classes so that the most samples agree.

    Images are those of the data module, or the files that it names; only those that are shown are read. Without images,
    as for features without files, nothing is drawn. The first process draws.

    Args:
        columns: Images of a group, >= 1.
        root: Folder from which names of files count, for features; None: that in which their images were found.

    Raises:
        SuperCMError: If `columns` is below 1.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ClusterGallery(columns=8)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, columns: int = 5, root: str | Path | None = None) -> None:
        check_range(1, columns=columns)
        self.columns, self.root = columns, root
        self._folder, self._table = Path(), SampleTable()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Determines the run's folder, for which all ranks must ask together."""
        self._folder, self._table = Path(trainer.log_dir or trainer.default_root_dir), SampleTable()

    # ---------------------------------------------------------------------------------------------------- samples
    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps what was predicted of a batch of the first loader."""
        if dataloader_idx == 0 and len(batch) > 2 and isinstance(outputs, dict) and "logits" in outputs:
            self._keep(outputs["logits"].float().softmax(dim=1), batch[2], batch[1])

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Likewise; labels are not looked at."""
        if dataloader_idx == 0 and outputs["index"] is not None:
            self._keep(outputs["probabilities"], outputs["index"])

    def _keep(self, probabilities: Tensor, index: Tensor, labels: Tensor | None = None) -> None:
        confidence, predicted = probabilities.max(dim=1)
        label = labels if labels is not None else torch.full_like(predicted, -1)
        self._table.add(index, confidence=confidence, predicted=predicted, label=label)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the predictions of all ranks and draws them."""
        self._draw(trainer, pl_module, "test", "gallery.png")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise."""
        data = datamodule_of(trainer)
        if isinstance(data, ViewDataModule):
            self._draw(trainer, pl_module, data.predict_on, "predict_gallery.png")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws clusters of training samples, by averaged weights where there are such."""
        data = datamodule_of(trainer)
        if not isinstance(data, ViewDataModule) or not has_clusters(pl_module) or is_dry_run(trainer):
            return
        self._table = SampleTable()
        with averaged_weights(trainer, pl_module):
            first = torch.zeros(1, dtype=torch.int64)
            if trainer.is_global_zero and sample_images(data, "unlabeled", first, _SIZE, self.root):
                order = torch.randperm(data.num_unlabeled, generator=torch.Generator().manual_seed(0))
                with torch.no_grad(), isolate_rng(), evaluating(pl_module):
                    for position in order[:_MAX_SAMPLES].sort().values.split(min(256, data.eval_batch_size)):
                        (x,) = data.views_of("unlabeled", position, ("clean",), "gallery")
                        with trainer.precision_plugin.forward_context():
                            self._keep(pl_module(x).float().softmax(dim=1), position)
        self._draw(trainer, pl_module, "unlabeled", "gallery.png")

    # ---------------------------------------------------------------------------------------------------- drawing
    def _draw(self, trainer: Trainer, pl_module: LightningModule, split: str, name: str) -> None:
        table, data = self._table.gather(), datamodule_of_call(trainer)
        if not table or not isinstance(data, ViewDataModule) or is_dry_run(trainer):
            return
        if not sample_images(data, split, table["index"][:1], _SIZE, self.root):
            rank_zero_info(f"No {name}: the samples have no images that are known; ClusterGallery(root=…) says where.")
            return
        is_known, clusters = bool((table["label"] >= 0).any()), has_clusters(pl_module)
        table["meant"] = table["predicted"]
        if clusters and is_known:
            score = ClusteringAccuracy(data.num_classes, sync_on_compute=False)
            score.update(table["predicted"], table["label"])
            table["meant"] = score.mapping[table["predicted"]]
        table["wrong"] = (table["label"] >= 0) & (table["meant"] != table["label"])
        counts = table["predicted"].bincount(minlength=data.num_classes)
        shown = counts.argsort(descending=True, stable=True)[:_MAX_CLASSES].sort().values.tolist()
        bands = []
        for number in shown:
            title = f"cluster {number}" if clusters else _name(data, number)
            title += f": {int(counts[number]):,} samples"
            if is_known:
                title += f", {int(table['wrong'][table['predicted'] == number].sum()):,} mistaken"
            bands.append((title, self._groups(data, split, table, number)))
        headings = ["surest", "most doubtful", *(["mistaken: predicted / true"] if is_known else [])]
        sheet = contact_sheet(headings, bands, self.columns, _SIZE)
        write_atomically(self._folder / name, lambda stream: sheet.save(stream, format="png"))
        if trainer.predicting:
            rank_zero_info(f"Pictures of them: {printable(str(self._folder / name))}")

    def _groups(
        self, data: ViewDataModule, split: str, table: dict[str, Tensor], number: int
    ) -> tuple[list[Picture], ...]:
        """The surest, the most doubtful and the mistaken images of a class."""
        members = (table["predicted"] == number).nonzero().flatten()
        members = members[table["confidence"][members].argsort(descending=True, stable=True)]
        surest, others, mistaken = members[: self.columns], members[self.columns :], members[table["wrong"][members]]
        groups = surest, others.flip(0)[: self.columns], mistaken[: self.columns]
        chosen = table["index"][torch.cat(groups)]
        blank = [Image.new("RGB", (_SIZE, _SIZE), "gray")] * len(chosen)  # for files that are gone
        images = iter(sample_images(data, split, chosen, _SIZE, self.root) or blank)

        def picture(row: int, says_names: bool) -> Picture:
            lines: tuple[str, ...] = (f"{100 * float(table['confidence'][row]):.0f} %",)
            if says_names:
                meant, label = (_name(data, int(table[column][row])) for column in ("meant", "label"))
                lines = (*lines, f"{meant} / {label}")
            return Picture(next(images), lines, bool(table["wrong"][row]))

        return tuple([picture(row, group is groups[2]) for row in group.tolist()] for group in groups)


def _name(data: ViewDataModule, number: int) -> str:
    if number < 0:
        return "none"  # a cluster that no class was left for
    return data.class_names[number] if data.class_names else str(number)
