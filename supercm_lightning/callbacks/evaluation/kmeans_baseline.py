"""What k-means reaches where a clustering is tested."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from supercm_lightning.metrics import ClusteringAccuracy
from supercm_lightning.utils.collectives import all_gather_samples


class KMeansBaseline(Callback):
    """Logs beside every test `test/kmeans_acc` and `test/kmeans_input_acc`, the accuracy of k-means.

    The first on the normalised features of the model: what its heads add to them. The second on the inputs (pixels)
    without augmentation: what any learning adds. The best of ten starts by the inertia, labels play no part. A test of
    fewer rows than clusters goes without, with a warning.

    Args:
        max_rows: Rows on which the means are found, at most; all rows are assigned.
    """

    def __init__(self, max_rows: int = 10_000) -> None:
        self.max_rows = max_rows
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets an earlier test."""
        self._rows = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps features, inputs and labels of the test rows."""
        if dataloader_idx == 0:
            features = F.normalize(outputs["features"].float(), dim=1)
            self._rows.append((features.cpu(), batch[0].float().flatten(1).cpu(), batch[1].cpu()))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clusters them and logs the accuracies."""
        from sklearn.cluster import KMeans

        features, inputs, labels = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        self._rows = []
        labels = all_gather_samples(labels.to(pl_module.device)).cpu()
        k: int = pl_module.num_classes  # type: ignore[assignment]
        if (count := min(len(labels), self.max_rows)) < k:
            rank_zero_warn(f"KMeansBaseline: {count} rows are fewer than the {k} clusters; k-means is left out.")
            return
        for name, rows in (("kmeans_acc", features), ("kmeans_input_acc", inputs)):
            every = all_gather_samples(rows.to(pl_module.device)).cpu().numpy()
            accuracy = ClusteringAccuracy(k)
            chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[: self.max_rows].numpy()
            means = KMeans(k, n_init=10, random_state=0).fit(every[chosen])
            accuracy.update(torch.from_numpy(means.predict(every)).long(), labels)
            pl_module.log(f"test/{name}", accuracy.compute())
