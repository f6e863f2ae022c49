"""Losses between a labeled source domain and an unlabeled target domain."""

import torch
import torch.nn.functional as F
from torch import Tensor


def domain_adversarial_loss(
    source_logits: Tensor,
    target_logits: Tensor,
    source_weight: Tensor | None = None,
    target_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of a domain discriminator, ½ [mean over source of −log σ(D) + mean over target of −log(1 − σ(D))].

    Each domain counts one half, whatever its number of samples. From logits, so that it is safe in low precision.

    Args:
        source_logits: Discriminator logits of the source samples, (n,) or (n, 1); large means source.
        target_logits: Likewise of the target samples, (m,) or (m, 1).
        source_weight: Non-negative weight of each source sample, (n,), relative to each other; None: equal weights.
        target_weight: Likewise of the target samples, (m,).

    Returns:
        A scalar.

    Source: Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016; weights as in Long et al.,
    "Conditional Adversarial Domain Adaptation", NeurIPS 2018.

    Examples:
        >>> round(domain_adversarial_loss(torch.zeros(3, 1), torch.zeros(5, 1)).item(), 4)
        0.6931
    """
    source = _weighted_mean(F.softplus(-source_logits.float().flatten()), source_weight)
    target = _weighted_mean(F.softplus(target_logits.float().flatten()), target_weight)
    return (source + target) / 2


def _weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.mean() if weight is None else (values * weight).sum() / weight.sum()


def certainty_weight(logits: Tensor) -> Tensor:
    """1 + exp(−H) of each sample (n, K), H the entropy of its class probabilities; in [1 + 1/K, 2], without gradient.

    Source: Long et al., "Conditional Adversarial Domain Adaptation", NeurIPS 2018 (CDAN+E); Jin et al., "Minimum Class
    Confusion for Versatile Domain Adaptation", ECCV 2020.

    Examples:
        >>> certainty_weight(torch.zeros(2, 3)).tolist()[0] < certainty_weight(9 * torch.eye(3)).tolist()[0]
        True
    """
    log_p = logits.detach().float().log_softmax(dim=1)
    return 1 + (log_p.exp() * log_p).sum(dim=1).exp()


def minimum_class_confusion(logits: Tensor, temperature: float = 2.5) -> Tensor:
    """Share of the class confusion that lies off the diagonal, mean over classes.

    With p = softmax(logits / T) and w_i proportional to 1 + exp(−H(p_i)), of mean 1, the confusion of classes j and k
    is Σ_i w_i p_ij p_ik; every row of that matrix is divided by its sum.

    Args:
        logits: Class logits of target samples, (n, K).
        temperature: T > 0.

    Returns:
        A scalar in [0, 1).

    Source: Jin et al., "Minimum Class Confusion for Versatile Domain Adaptation", ECCV 2020.

    Examples:
        >>> minimum_class_confusion(50 * torch.eye(3)).item() < 1e-6
        True
    """
    with torch.autocast(logits.device.type, enabled=False):
        scaled = logits.float() / temperature
        p = scaled.softmax(dim=1)
        weight = certainty_weight(scaled)
        confusion = (p * (weight / weight.mean())[:, None]).T @ p
        # A class may underflow in every sample.
        return 1 - (confusion.diagonal() / confusion.sum(dim=1).clamp_min(1e-30)).mean()


def batch_nuclear_norm(logits: Tensor) -> Tensor:
    """−‖P‖_* / n, the negative sum of the singular values of the class probabilities over the number of samples.

    Its minimum asks for confident samples of many classes. The normalization is the paper's. Computed in float32,
    because a singular value decomposition needs it.

    Args:
        logits: Class logits of target samples, (n, K).

    Returns:
        A scalar in [−√(min(n, K) / n), 0).

    Source: Cui et al., "Towards Discriminability and Diversity: Batch Nuclear-norm Maximization under Label
    Insufficient Situations", CVPR 2020.

    Examples:
        >>> round(batch_nuclear_norm(50 * torch.eye(3)).item(), 4)
        -1.0
    """
    with torch.autocast(logits.device.type, enabled=False):
        p = logits.float().softmax(dim=1)
        return -torch.linalg.svdvals(p).sum() / len(p)


def fast_batch_nuclear_norm(logits: Tensor) -> Tensor:
    """−Σ of the min(n, K) largest column norms of the class probabilities, over n: BNM without the decomposition.

    Equal to `batch_nuclear_norm` where every sample is certain of one class.

    Args:
        logits: Class logits of target samples, (n, K).

    Returns:
        A scalar in [−√(min(n, K) / n), 0).

    Source: Cui et al., "Fast Batch Nuclear-norm Maximization and Minimization for Robust Domain Adaptation", 2021.

    Examples:
        >>> round(fast_batch_nuclear_norm(50 * torch.eye(3)).item(), 4)
        -1.0
    """
    p = logits.float().softmax(dim=1)
    norms = torch.linalg.vector_norm(p, dim=0)
    return -norms.topk(min(p.shape)).values.sum() / len(p)
