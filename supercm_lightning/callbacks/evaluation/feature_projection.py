"""Draws the features of the evaluation rows, and the centroids among them, in two dimensions."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset, Subset

from supercm_lightning.callbacks.evaluation.feature_figure import feature_figure
from supercm_lightning.callbacks.training.step_averaging import averaged_weights
from supercm_lightning.data import move_batch
from supercm_lightning.nn import ClusteringHead, evaluating
from supercm_lightning.utils.options import SuperCMError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy import ndarray


class FeatureProjection(Callback):
    """Saves a picture of the features in two dimensions at the end of `fit`, and during it if asked.

    Shows the validation rows, or the test rows where there are none or where only `test` ran. Centroids of a clustering
    head are embedded together with the features and drawn as stars in the colour of their class; rows without a label
    are grey. Of data of two domains source rows are discs and target rows crosses, as many of one as of the other where
    there are enough. Pictures go into the run's folder (the logger's, else `default_root_dir`) as `features.png` and
    `features_epoch_0010.png`, and to TensorBoard. If weights are averaged, the averaged model is shown. Only rank zero
    forwards and draws; random states are left as they were.

    Args:
        method: `tsne`, `umap` (needs the extra `umap`) or `pca`.
        max_samples: Most rows to draw, a random choice, >= 2.
        every_n_epochs: Epochs between pictures during `fit`, taken after validation; None: only at its end.
        seed: Of the choice of rows and of the embedding.

    Raises:
        ValueError: If an argument is outside its range.
        ModuleNotFoundError: At set-up, if UMAP is asked for and not installed.
    """

    def __init__(
        self,
        method: Literal["tsne", "umap", "pca"] = "tsne",
        max_samples: int = 2000,
        every_n_epochs: int | None = None,
        seed: int = 0,
    ) -> None:
        if method not in ("tsne", "umap", "pca"):
            raise SuperCMError(f"method={method!r}: choose tsne, umap or pca.")
        if max_samples < 2:
            raise SuperCMError(f"max_samples={max_samples}: must be at least 2.")
        if every_n_epochs is not None and every_n_epochs < 1:
            raise SuperCMError(f"every_n_epochs={every_n_epochs}: must be at least 1, or None.")
        self.method = method
        self.max_samples = max_samples
        self.every_n_epochs = every_n_epochs
        self.seed = seed
        self._folder: Path | None = None
        self._fitted = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the method is installed; notes the run's folder, which all ranks must ask for together."""
        if self.method == "umap" and importlib.util.find_spec("umap") is None:
            raise ModuleNotFoundError(
                "FeatureProjection(method='umap') needs umap-learn: pip install supercm-lightning[umap], "
                "or use method='tsne'."
            )
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws every `every_n_epochs` epochs."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        epoch = trainer.current_epoch + 1
        if self.every_n_epochs and fitting and epoch % self.every_n_epochs == 0:
            self._save(trainer, pl_module, f"features_epoch_{epoch:04d}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the final features."""
        self._fitted = True
        self._save(trainer, pl_module, "features")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the features of the test rows if there was no `fit`."""
        if not self._fitted:
            self._save(trainer, pl_module, "features")

    # --------------------------------------------------------------------------------------------------- drawing
    def _save(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        with averaged_weights(trainer, pl_module):
            if not trainer.is_global_zero:
                return
            with _evaluation_loaders(trainer) as (split, loaders):
                features, labels, loader_of = self._collect(trainer, pl_module, loaders)
            centroids = _seen_centroids(pl_module)
        if len(features) < 2 or not features.isfinite().all():
            rank_zero_warn("FeatureProjection drew nothing: there are fewer than two rows, or features are not finite.")
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        is_domain_adaptation = getattr(data, "is_domain_adaptation", False) and len(loaders) == 2
        title = {"val": "Validation features", "test": "Test features"}[split]
        accuracy = trainer.callback_metrics.get(f"{split}/acc")
        if accuracy is not None:
            domain = {"val": "source ", "test": "target "}[split] if is_domain_adaptation else ""
            title += f", {domain}accuracy {100 * float(accuracy):.1f} %"
        # Accuracy is that of the first loader: of the source in validation, of the target in the test.
        is_target = loader_of == {"val": 1, "test": 0}[split] if is_domain_adaptation else None
        figure = self.draw(features, labels, centroids, getattr(data, "class_names", None), title, is_target)
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self._folder / f"{name}.png", dpi=200, bbox_inches="tight")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("features", figure, trainer.global_step, close=False)

    def _collect(
        self, trainer: Trainer, pl_module: LightningModule, loaders: list[Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features (n, d), labels (n,) and number of the loader (n,) of a random choice of rows, on the host."""
        features, labels, loader_of = [], [], []
        with torch.no_grad(), isolate_rng(), evaluating(pl_module):
            for number, loader in enumerate(loaders):
                for batch in self._thinned(loader, self.max_samples // len(loaders)):
                    batch = move_batch(trainer.precision_plugin.convert_input(batch), trainer, pl_module, number)
                    with trainer.precision_plugin.forward_context():
                        features.append(pl_module.features(batch[0]).float().cpu())  # type: ignore[operator]
                    labels.append(batch[1].cpu())
                    loader_of.append(torch.full_like(labels[-1], number))
        if not features:
            none = torch.empty(0, dtype=torch.int64)
            return torch.empty(0, 2), none, none
        return tuple(torch.cat(rows)[: self.max_samples] for rows in (features, labels, loader_of))  # type: ignore[return-value]

    def _thinned(self, loader: DataLoader[Any], limit: int) -> DataLoader[Any]:
        """A loader of a random choice of rows, so that the others need not be read."""
        if isinstance(loader.dataset, IterableDataset):
            return loader
        stream = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(loader.dataset), generator=stream)[:limit].sort().values.tolist()  # type: ignore[arg-type]
        rows = Subset(loader.dataset, chosen)
        return DataLoader(rows, loader.batch_size or 256, collate_fn=loader.collate_fn, num_workers=loader.num_workers)

    def embed(self, features: Tensor) -> "ndarray[Any, Any]":
        """Maps features (n, d), n >= 2, to the plane, (n, 2)."""
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE

        rows = torch.nn.functional.pad(features, (0, max(0, 2 - features.shape[1]))).numpy()
        if self.method == "pca" or len(rows) < 5:  # too few to have neighbourhoods
            return PCA(2, random_state=self.seed).fit_transform(rows)
        # What t-SNE's and UMAP's authors do first: distances stay, noise and time go.
        rows = PCA(min(50, *rows.shape), random_state=self.seed).fit_transform(rows)
        if self.method == "tsne":
            perplexity = min(30.0, (len(rows) - 1) / 3)
            return TSNE(2, perplexity=perplexity, init="pca", random_state=self.seed).fit_transform(rows)
        from umap import UMAP

        neighbors = min(15, len(rows) - 1)
        return UMAP(n_neighbors=neighbors, random_state=self.seed, n_jobs=1).fit_transform(rows)

    def draw(
        self,
        features: Tensor,
        labels: Tensor,
        centroids: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        title: str = "",
        is_target: Tensor | None = None,
    ) -> "Figure":
        """Draws features, coloured by class, and centroids in one embedding.

        Args:
            features: Features, (n, d), n >= 2, on the host.
            labels: Classes, (n,); below 0 where unknown.
            centroids: Centroids, (K, d), of classes 0 to K - 1; those that are not finite are left out.
            class_names: Names of the classes.
            title: Title.
            is_target: Which rows are of the target domain, (n,) bool; None where there is one domain.

        Returns:
            The figure, tied to no window and no pyplot state.
        """
        centroids = centroids if centroids is not None else features[:0]
        drawn = centroids.isfinite().all(dim=1).nonzero().flatten()
        points = self.embed(torch.cat([features, centroids[drawn]]))
        num_classes = max(int(labels.max()) + 1, len(centroids), len(class_names or ()))
        names = class_names or [str(number) for number in range(num_classes)]
        stars = dict(zip(drawn.tolist(), points[len(features) :], strict=True))
        return feature_figure(points[: len(features)], labels, names, stars, title, is_target)


def _seen_centroids(module: LightningModule) -> Tensor | None:
    """Centroids of the module's head, on the host; not a number for classes that no batch had."""
    head = getattr(module, "head", None)
    if not isinstance(head, ClusteringHead):
        return None
    return head.centroids.float().masked_fill(head.updates[:, None] == 0, float("nan")).cpu()


@contextmanager
def _evaluation_loaders(trainer: Trainer) -> Iterator[tuple[str, list[Any]]]:
    """The split to draw and its loaders."""
    if trainer.testing:
        yield "test", tree_leaves(trainer.test_dataloaders)
        return
    validation = tree_leaves(trainer.val_dataloaders)
    data = trainer.datamodule  # type: ignore[attr-defined]
    if validation or data is None:
        yield "val", validation
        return
    stage, trainer.testing = trainer.state.stage, True  # data modules ask which rows a batch belongs to
    try:
        yield "test", _test_loaders(data)
    finally:
        trainer.state.stage = stage


def _test_loaders(data: LightningDataModule) -> list[Any]:
    try:
        return tree_leaves(data.test_dataloader())
    except Exception as error:  # whatever a user's module raises before `test`: a picture must not cost a finished run
        rank_zero_warn(f"FeatureProjection: there are no validation rows, and no test rows either: {error}")
        return []
