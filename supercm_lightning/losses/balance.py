"""Cross-entropy for classes of unequal size."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def balanced_cross_entropy(
    logits: Tensor, labels: Tensor, weight: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Cross-entropy of shifted logits, each sample times the weight of its class, mean over the samples.

    Args:
        logits: Class logits, (n, K).
        labels: Labels, (n,), int64.
        weight: Weight of each class, (K,), >= 0; None: 1.
        shift: What is added to the logit of each class, (K,); None: 0.

    Returns:
        A scalar.

    Examples:
        >>> balanced_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), weight=torch.tensor([1.0, 3.0]))
        tensor(1.3863)
    """
    logits = logits if shift is None else logits + shift
    if weight is None:
        return F.cross_entropy(logits, labels)
    return (F.cross_entropy(logits, labels, reduction="none") * weight[labels]).mean()


def class_balance(
    counts: Tensor, class_weight: Literal["balanced"] | Sequence[float] | None, logit_adjustment: float
) -> tuple[Tensor | None, Tensor | None]:
    """The weight and the shift of each class, (K,) each, for `balanced_cross_entropy`.

    Args:
        counts: Number of labeled samples of each class, (K,), >= 1.
        class_weight: `balanced`, n / (K n_k) as in scikit-learn, or the weights; None: none.
        logit_adjustment: Factor τ on the logarithm of the fraction of each class, the shift; 0: none.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 10.

    Examples:
        >>> class_balance(torch.tensor([6, 2]), "balanced", 1.0)
        (tensor([0.6667, 2.0000]), tensor([-0.2877, -1.3863]))
    """
    weight = None if class_weight is None else counts.sum() / (len(counts) * counts)
    if class_weight not in (None, "balanced"):
        weight = torch.tensor(class_weight)
    return weight, logit_adjustment * (counts / counts.sum()).log() if logit_adjustment else None
