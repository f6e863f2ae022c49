"""Cross-entropy on the labeled samples: the baseline of every comparison."""

from typing import Any

from supercm_lightning.methods.base import Method


class Supervised(Method):
    """Cross-entropy on the labeled samples alone.

    Args:
        use_unlabeled: Also forward the unlabeled samples, without a loss on them: a baseline with the batch norm
            statistics and the cost per step of the semi-supervised methods.
        **kwargs: Options of `Method`.

    Examples:
        >>> Supervised(num_classes=3, input_shape=(8,), backbone="mlp").views
        ()
    """

    views: tuple[str, ...] = ()

    def __init__(self, use_unlabeled: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if use_unlabeled and not self.views:
            self.views = ("weak",)
