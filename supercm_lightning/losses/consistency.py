"""Losses on unlabeled samples: pseudo-labels, consistency, virtual adversarial training, fairness."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def pseudo_label_loss(
    logits: Tensor, targets_logits: Tensor, threshold: float | Tensor = 0.0, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy to the most probable class of the targets, on samples whose probability reaches the threshold.

    Mean over all samples; those below the threshold count zero. No gradient reaches the targets.

    Args:
        logits: Logits that learn, (n, K).
        targets_logits: Logits the labels come from, (n, K).
        threshold: Smallest confidence, in [0, 1], one for all samples or one each, (n,).
        weight: Weight of each sample, (n,), >= 0; None: 1.

    Returns:
        A scalar.

    Source: Lee, "Pseudo-Label", ICML workshop 2013; Sohn et al., "FixMatch", NeurIPS 2020, eq. 4.

    Examples:
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 0.1]])
        >>> pseudo_label_loss(logits, logits, threshold=0.95).item() < 0.01
        True
    """
    confidence, label = targets_logits.detach().float().softmax(dim=1).max(dim=1)
    each = F.cross_entropy(logits.float(), label, reduction="none") * (confidence >= threshold)
    return (each if weight is None else each * weight).mean()


def consistency_loss(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Squared distance of the class probabilities, mean over samples and classes; no gradient reaches the targets.

    Args:
        logits: Logits that learn, (n, K).
        target_logits: Logits of the same samples by another view or a teacher, (n, K).

    Returns:
        A scalar in [0, 2 / K].

    Source: Laine and Aila, "Temporal Ensembling", ICLR 2017; Tarvainen and Valpola, "Mean teachers", NeurIPS 2017.

    Examples:
        >>> logits = torch.zeros(3, 4)
        >>> consistency_loss(logits, logits).item()
        0.0
    """
    return F.mse_loss(logits.float().softmax(dim=1), target_logits.detach().float().softmax(dim=1))


def balanced_consistency_loss(logits: Tensor, target_logits: Tensor, mean_probability: Tensor) -> Tensor:
    """Cross-entropy to soft targets that are balanced over the classes and sharpened.

    q = N(softmax(target) / p̃), target N(q²), with N the division by the sum over classes: distribution alignment to
    equal shares, then a temperature of 1/2. No threshold, so that it works where no class is confident yet.

    Args:
        logits: Logits that learn, (n, K).
        target_logits: Logits the targets come from, (n, K); no gradient reaches them.
        mean_probability: p̃, running mean of the class probabilities, (K,), > 0.

    Returns:
        A scalar.

    Source: Berthelot et al., "ReMixMatch", ICLR 2020, sections 3.1 and 3.2.2.

    Examples:
        >>> logits = torch.zeros(3, 4)
        >>> round(balanced_consistency_loss(logits, logits, torch.full((4,), 0.25)).item(), 4)
        1.3863
    """
    log_q = target_logits.detach().float().log_softmax(dim=1) - mean_probability.log()
    return F.cross_entropy(logits.float(), (2 * log_q).softmax(dim=1))


def virtual_adversarial_loss(
    model: Callable[[Tensor], Tensor], x: Tensor, logits: Tensor, eps: float, xi: float = 1e-2, iterations: int = 1
) -> Tensor:
    """KL(p(x) ‖ p(x + r)) at the perturbation r of norm `eps` that changes the prediction most.

    r is found by power iteration from a random direction, in float32 with autocast off: in lower precision the small
    step `xi` would be rounded away. No gradient reaches p(x) nor r.

    Args:
        model: Maps inputs (n, …) to logits (n, K).
        x: Inputs, (n, …).
        logits: Logits of `x` by the same model, (n, K).
        eps: L2 norm of the perturbation of each sample, > 0.
        xi: Norm of the step of the power iteration; 0.01 is far above float32's rounding of inputs of size one.
        iterations: Number of power iterations.

    Returns:
        A scalar, the mean over samples.

    Source: Miyato et al., "Virtual Adversarial Training", TPAMI 2019, eq. 5 and algorithm 1.

    Examples:
        >>> x, model = torch.rand(3, 4), torch.nn.Linear(4, 2)
        >>> virtual_adversarial_loss(model, x, model(x), eps=1.0).item() > 0
        True
    """
    target = logits.detach().float().softmax(dim=1)
    direction = _unit(torch.randn_like(x, dtype=torch.float32))
    with torch.autocast(x.device.type, enabled=False):
        centre = target
        if logits.dtype in (torch.bfloat16, torch.float16):
            # Their rounding moves the prediction as far as the small step does.
            with torch.no_grad():
                centre = model(x).float().softmax(dim=1)
        for _ in range(iterations):
            direction.requires_grad_()
            moved = model((x.float() + xi * direction).to(x.dtype)).float().log_softmax(dim=1)
            divergence = F.kl_div(moved, centre, reduction="batchmean")
            direction = _unit(torch.autograd.grad(divergence, direction)[0])
    moved = model((x.float() + eps * direction).to(x.dtype)).float().log_softmax(dim=1)
    return F.kl_div(moved, target, reduction="batchmean")


def _unit(rows: Tensor) -> Tensor:
    # Dividing by the largest entry first keeps the squares of tiny gradients from vanishing.
    flat = rows.flatten(1)
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    return F.normalize(flat, dim=1).view_as(rows)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the class probabilities in nats, mean over samples (n, K).

    Examples:
        >>> round(entropy(torch.zeros(3, 4)).item(), 4)
        1.3863
    """
    log_p = logits.float().log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


def fairness_loss(logits: Tensor, mask: Tensor, mean_probability: Tensor, label_share: Tensor) -> Tensor:
    """FreeMatch's self-adaptive fairness: the negative cross-entropy of two normalised class distributions.

    Σ_k a_k log b_k with a = SumNorm(p̃ / h̃) of the running statistics and b = SumNorm(p̄ / h̄) of the confident samples
    of this batch, h̄ their predicted labels' histogram; classes absent from a histogram drop out. Minimising it spreads
    the predictions over the classes.

    Args:
        logits: Logits of the strong view, (n, K).
        mask: Confident samples, (n,) bool.
        mean_probability: p̃, running mean of the class probabilities, (K,).
        label_share: h̃, running share of the predicted labels, (K,).

    Returns:
        A scalar, at most zero; zero if no sample is confident.

    Source: Wang et al., "FreeMatch", ICLR 2023, eq. 11.

    Examples:
        >>> uniform = torch.full((2,), 0.5)
        >>> fairness_loss(torch.eye(2), torch.tensor([True, True]), uniform, uniform).item() < 0
        True
    """
    p = logits.float().softmax(dim=1)
    chosen = mask.to(p.dtype)[:, None]
    count = chosen.sum().clamp_min(1)
    mean = (p * chosen).sum(dim=0) / count
    classes = torch.arange(p.shape[1], device=p.device)
    share = ((p.argmax(dim=1, keepdim=True) == classes) * chosen).sum(dim=0) / count
    running = _sum_normalized(mean_probability / label_share.clamp_min(1e-12), label_share > 0)
    batch = _sum_normalized(mean / share.clamp_min(1e-12), share > 0)
    return torch.where(mask.any(), (running * (batch + 1e-12).log()).sum(), 0.0)


def _sum_normalized(ratio: Tensor, present: Tensor) -> Tensor:
    ratio = ratio * present
    return ratio / ratio.sum().clamp_min(1e-12)
