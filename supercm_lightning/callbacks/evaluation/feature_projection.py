"""Draws features and centroids in two dimensions."""

import importlib.util
from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset, Subset

from supercm_lightning.callbacks.evaluation.feature_figure import feature_figure
from supercm_lightning.callbacks.training.step_averaging import averaged_weights
from supercm_lightning.contracts import CentroidModel, FeatureModel, ViewData
from supercm_lightning.data import move_batch
from supercm_lightning.nn import evaluating
from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.options import SuperCMError, check_choice, check_range
from supercm_lightning.utils.trainer import datamodule_of, is_dry_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy import ndarray


class FeatureProjection(Callback):
    """Saves a picture of the features in two dimensions at the end of `fit`, and optionally during it.

    Shows the validation samples; of a data module of this package without these the test samples, or without both the
    training samples. After `test` without `fit`, the test samples. Samples without a known label, such as the unlabeled
    training samples, are gray. Centroids of the module are embedded together with the features and drawn as stars in
    the color of their class. In domain adaptation source samples are discs and target samples crosses, equally many if
    there are enough.

    Pictures go into the run's folder (the logger's, else `default_root_dir`) as `features.png` and
    `features_epoch_0010.png`, and to TensorBoard. If weights are averaged, the averaged model is shown. Only rank zero
    forwards and draws; random states are restored.

    Args:
        method: `tsne`, `umap` (needs the extra `umap`) or `pca`.
        max_samples: Most samples to draw, a random choice, >= 2.
        every_n_epochs: Epochs between pictures during `fit`, taken after validation, >= 1; None: only at its end.
        seed: Seed of the choice of samples and of the embedding.

    Raises:
        SuperCMError: If an argument is outside its range or, at set-up, the module has no method `features`.
        ModuleNotFoundError: At set-up, if UMAP is requested and not installed.

    Examples:
        >>> projection = FeatureProjection(method="pca")
        >>> figure = projection.draw(torch.rand(20, 8), torch.arange(20) % 2, class_names=("cat", "dog"))
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['cat', 'dog']
    """

    def __init__(
        self,
        method: Literal["tsne", "umap", "pca"] = "tsne",
        max_samples: int = 2000,
        every_n_epochs: int | None = None,
        seed: int = 0,
    ) -> None:
        check_choice(method=(method, ("tsne", "umap", "pca")))
        check_range(2, max_samples=max_samples)
        check_range(1, every_n_epochs=every_n_epochs)
        self.method = method
        self.max_samples = max_samples
        self.every_n_epochs = every_n_epochs
        self.seed = seed
        self._folder = Path()
        self._drawn = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks module and method; determines the run's folder, for which all ranks must ask together."""
        if not isinstance(pl_module, FeatureModel):
            raise SuperCMError(
                f"FeatureProjection: {type(pl_module).__name__} has no method features(x). Add it, or remove the "
                "callback."
            )
        if self.method == "umap" and importlib.util.find_spec("umap") is None:
            raise ModuleNotFoundError(
                "FeatureProjection(method='umap') needs umap-learn: pip install supercm-lightning[umap], "
                "or use method='tsne'."
            )
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        if stage == "fit":
            self._drawn = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws every `every_n_epochs` epochs."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        epoch = trainer.current_epoch + 1
        if self.every_n_epochs and fitting and epoch % self.every_n_epochs == 0:
            self._save(trainer, pl_module, f"features_epoch_{epoch:04d}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the final features."""
        self._drawn = self._save(trainer, pl_module, "features")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the features of the test samples if no `fit` has drawn features."""
        if not self._drawn:
            self._save(trainer, pl_module, "features")

    # --------------------------------------------------------------------------------------------------- drawing
    def _save(self, trainer: Trainer, pl_module: LightningModule, name: str) -> bool:
        """Draws the features into a file; whether there were any to draw."""
        if is_dry_run(trainer):
            return False
        with averaged_weights(trainer, pl_module):
            if not trainer.is_global_zero:
                return True
            with torch.no_grad(), isolate_rng(), evaluating(pl_module):
                split, *found = self._collect(trainer, pl_module)
            centroids = pl_module.seen_centroids().cpu() if isinstance(pl_module, CentroidModel) else None
        if not found or len(found[0]) < 2 or not found[0].isfinite().all():
            rank_zero_warn(
                "FeatureProjection drew nothing: there are fewer than two samples, or features are not finite."
            )
            return False
        data = datamodule_of(trainer)
        names = data.class_names if isinstance(data, ViewData) else None
        features, labels, is_target = found
        title = {"val": "Validation features", "test": "Test features"}.get(split, "Training features")
        accuracy = trainer.callback_metrics.get(f"{split}/acc")
        if accuracy is not None:
            # That of the first loader, which in domain adaptation is of the source in validation, else of the target.
            domain = {"val": "source ", "test": "target "}[split] if is_target is not None else ""
            title += f", {domain}accuracy {100 * float(accuracy):.1f} %"
        figure = self.draw(features, labels, centroids, names, title, is_target)
        write_atomically(
            self._folder / f"{name}.png",
            lambda stream: figure.savefig(stream, format="png", dpi=200, bbox_inches="tight"),
        )
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("features", figure, trainer.global_step, close=False)
        return True

    def _collect(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Any, ...]:
        """A split, features of a random choice of its samples, their labels, and which are of the target, on the host.

        Evaluation samples, or else training samples; where there are none, the name of the split alone.
        """
        data = datamodule_of(trainer)
        is_adaptation = isinstance(data, ViewData) and data.is_domain_adaptation
        loaders = tree_leaves((trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders) or [])
        batches: list[Iterator[tuple[Tensor, Tensor]]]
        if loaders:
            split, target = ("test", 0) if trainer.testing else ("val", 1)
            limit = self.max_samples // len(loaders)
            batches = [self._read(trainer, pl_module, loader, k, limit) for k, loader in enumerate(loaders)]
        elif isinstance(data, ViewData):
            splits = (
                ["test"] if data.has_test else [s for s in ("labeled", "unlabeled") if len(data.samples.get(s, ()))]
            )
            split, target = splits[0], 1
            batches = [self._views(data, one, self.max_samples // len(splits)) for one in splits]
        else:
            return ("none",)
        assert isinstance(pl_module, FeatureModel)
        features, labels, group = [], [], []
        for number, samples in enumerate(batches):
            for x, y in samples:
                with trainer.precision_plugin.forward_context():
                    features.append(pl_module.features(x).float().cpu())
                labels.append(y.cpu())
                group.append(torch.full_like(labels[-1], number))
        if not features:
            return (split,)
        is_target = torch.cat(group)[: self.max_samples] == target if is_adaptation and len(batches) == 2 else None
        return split, torch.cat(features)[: self.max_samples], torch.cat(labels)[: self.max_samples], is_target

    def _read(
        self, trainer: Trainer, pl_module: LightningModule, loader: DataLoader[Any], number: int, limit: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of a random choice of a loader's samples; the others are not read."""
        dataset = loader.dataset
        if not isinstance(dataset, IterableDataset):
            assert isinstance(dataset, Sized)
            chosen = Subset(dataset, self._choose(len(dataset), limit).tolist())
            options: dict[str, Any] = {"collate_fn": loader.collate_fn, "num_workers": loader.num_workers}
            loader = DataLoader(chosen, loader.batch_size or 256, **options)
        for batch in loader:
            x, y, *_ = move_batch(trainer.precision_plugin.convert_input(batch), trainer, pl_module, number)
            yield x, y

    def _views(self, data: ViewData, split: str, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of a random choice of a split's samples, without augmentation."""
        samples = data.samples[split]
        for position in self._choose(len(samples), limit).split(256):
            (x,) = data.views_of(split, position, ("clean",), "projection")
            unknown = torch.full_like(position, -1)
            yield x, unknown if split == "unlabeled" else samples.labels[position]

    def _choose(self, count: int, limit: int) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[:limit].sort().values

    def embed(self, features: Tensor) -> "ndarray[Any, Any]":
        """Maps features (n, d), n >= 2, to the plane, (n, 2)."""
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE

        samples = torch.nn.functional.pad(features, (0, max(0, 2 - features.shape[1]))).numpy()
        if self.method == "pca" or len(samples) < 5:  # too few to have neighborhoods
            return PCA(2, random_state=self.seed).fit_transform(samples)
        # What t-SNE's and UMAP's authors do first: distances stay, noise and time go.
        samples = PCA(min(50, *samples.shape), random_state=self.seed).fit_transform(samples)
        if self.method == "tsne":
            perplexity = min(30.0, (len(samples) - 1) / 3)
            return TSNE(2, perplexity=perplexity, init="pca", random_state=self.seed).fit_transform(samples)
        from umap import UMAP

        neighbors = min(15, len(samples) - 1)
        return UMAP(n_neighbors=neighbors, random_state=self.seed, n_jobs=1).fit_transform(samples)

    def draw(
        self,
        features: Tensor,
        labels: Tensor,
        centroids: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        title: str = "",
        is_target: Tensor | None = None,
    ) -> "Figure":
        """Draws features, colored by class, and centroids in one embedding.

        Args:
            features: Features, (n, d), n >= 2, on the host.
            labels: Classes, (n,); below 0 where unknown.
            centroids: Centroids, (K, d), of classes 0 to K - 1; those that are not finite are left out.
            class_names: Names of the classes.
            title: Title.
            is_target: Which samples are of the target domain, (n,) bool; None where there is one domain.

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
