"""Accuracy of k-means on the samples on which a clustering is tested."""

from collections.abc import Sized
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from supercm_lightning.callbacks.evaluation.sample_table import SampleTable
from supercm_lightning.contracts import ClassModel
from supercm_lightning.metrics import ClusteringAccuracy
from supercm_lightning.utils.options import SuperCMError, check_range

_MAX_INPUT_MB = 512


class KMeansBaseline(Callback):
    """Logs beside every test `test/kmeans_acc` and `test/kmeans_input_acc`, the accuracy of k-means.

    The first is that of k-means on the normalized features of the model, the second on the inputs (pixels) without
    augmentation; each is the best of ten starts by the inertia, labels play no part. A test with fewer samples than
    clusters is left out, with a warning.

    Memory: the processes together keep at most `max_samples` samples on the host, a random choice from larger sets:
    features in float32, and inputs in the precision of the run. Inputs that would exceed 512 MiB are not kept, and
    k-means on them is left out with a warning. The first process gathers these samples and clusters them.

    Args:
        max_samples: Most samples to cluster and to score, >= 1. Of a loader without length the first ones are taken.

    Raises:
        SuperCMError: If an option is outside its range or, at set-up, the module has no `num_classes`.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[KMeansBaseline(max_samples=2000)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, max_samples: int = 10_000) -> None:
        check_range(1, max_samples=max_samples)
        self.max_samples = max_samples
        self._table = SampleTable()
        self._seen = 0
        self._chosen = torch.zeros(0, dtype=torch.bool)
        self._keeps_inputs: bool | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the number of clusters is known."""
        if not isinstance(pl_module, ClassModel):
            raise SuperCMError(
                f"KMeansBaseline: {type(pl_module).__name__} has no num_classes. Give it one, or remove the callback."
            )

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Chooses the samples to keep."""
        self._table, self._seen, self._keeps_inputs = SampleTable(), 0, None
        loader = tree_leaves(trainer.test_dataloaders)[0]
        dataset = loader.dataset if isinstance(loader, DataLoader) else loader
        size = len(dataset) if isinstance(dataset, Sized) else self.max_samples
        order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        self._chosen = torch.zeros(size, dtype=torch.bool).index_fill_(0, order[: self.max_samples], True)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps features, inputs and labels of the chosen samples of the first loader."""
        if dataloader_idx != 0:
            return
        x, labels = batch[0], batch[1]
        if self._keeps_inputs is None:
            self._keeps_inputs = self._fits(x)
        # Samplers of several processes shard a set in turn; what comes beyond its size are repeated samples.
        place = trainer.global_rank + trainer.world_size * torch.arange(self._seen, self._seen + len(x))
        self._seen += len(x)
        keep = (place < len(self._chosen)) & self._chosen[place % len(self._chosen)]
        index = batch[2].cpu() if len(batch) > 2 else place
        columns = {"features": F.normalize(outputs["features"].float(), dim=1), "labels": labels}
        if self._keeps_inputs:
            columns["inputs"] = x.flatten(1)
        self._table.add(index[keep], **{name: value[keep.to(value.device)] for name, value in columns.items()})

    def _fits(self, x: Tensor) -> bool:
        """Whether the inputs of the chosen samples are small enough."""
        size = int(self._chosen.sum()) * x[0].numel() * x.element_size() / 2**20
        if size > _MAX_INPUT_MB:
            rank_zero_warn(
                f"KMeansBaseline: the inputs would take {size:.0f} MiB, and k-means on them is left out. Lower "
                "max_samples to have it."
            )
        return size <= _MAX_INPUT_MB

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clusters them on the first process and logs the accuracies."""
        assert isinstance(pl_module, ClassModel)
        columns = self._table.gather()
        scores = trainer.strategy.broadcast(self._scores(columns, pl_module.num_classes) if columns else {})
        pl_module.log_dict(scores)

    def _scores(self, columns: dict[str, Tensor], k: int) -> dict[str, float]:
        from sklearn.cluster import KMeans

        labels = columns["labels"]
        if len(labels) < k:
            rank_zero_warn(f"KMeansBaseline: {len(labels)} samples, fewer than the {k} clusters; k-means is left out.")
            return {}
        scores = {}
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        for name, column in (("kmeans_acc", "features"), ("kmeans_input_acc", "inputs")):
            if column in columns:
                samples = columns[column].float()
                means = KMeans(k, n_init=10, random_state=0).fit(samples[order].numpy())
                accuracy = ClusteringAccuracy(k, sync_on_compute=False)  # the first process has all samples
                accuracy.update(torch.from_numpy(means.predict(samples.numpy())).long(), labels)
                scores[f"test/{name}"] = float(accuracy.compute())
        return scores
