"""Scores of an adapted classifier that need no target label; the higher, the better.

None of them is safe alone. A classifier that puts every row into one class is best of all by `negative_entropy` and
`soft_neighborhood_density`; one that is certain and has its classes permuted, by all scores of the target alone. Read
them beside the accuracy on held-out source rows.
"""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from supercm_lightning.metrics.proxy_a_distance import held_out_domain_evidence, subsample


def negative_entropy(logits: Tensor) -> float:
    """−H = (1/n) Σ_i Σ_k p_ik log p_ik, in [−log K, 0]: how certain the predictions are.

    Args:
        logits: Logits of the target rows, (n, K).
    """
    log_p = logits.double().log_softmax(dim=1)
    return float((log_p.exp() * log_p).sum(dim=1).mean())


def diversity(logits: Tensor) -> float:
    """H(mean_i p_i) in [0, log K]: how evenly the predictions spread over the classes.

    Args:
        logits: Logits of the target rows, (n, K).
    """
    log_share = logits.double().log_softmax(dim=1).logsumexp(dim=0) - math.log(len(logits))
    return float(-(log_share.exp() * log_share).sum())


def information_maximization(logits: Tensor) -> float:
    """Diversity plus negative entropy, in [0, log K]: the mutual information of row and predicted class.

    Args:
        logits: Logits of the target rows, (n, K).

    Source: Krause et al., "Discriminative Clustering by Regularized Information Maximization", NeurIPS 2010.
    """
    return diversity(logits) + negative_entropy(logits)


def batch_nuclear_norm_score(logits: Tensor) -> float:
    """‖P‖_* / n of the class probabilities P, in (0, sqrt(min(n, K) / n)]: certain and diverse at once.

    The bound depends on n: compare values of one set of rows only.

    Args:
        logits: Logits of the target rows, (n, K).

    Source: Cui et al., "Towards Discriminability and Diversity: Batch Nuclear-norm Maximization", CVPR 2020; as a
    score: Musgrave et al., "Three New Validators and a Large-Scale Benchmark Ranking for Unsupervised Domain
    Adaptation", 2022.
    """
    p = logits.double().softmax(dim=1)
    return float(torch.linalg.svdvals(p).sum() / len(p))


def soft_neighborhood_density(logits: Tensor, temperature: float = 0.05, max_samples: int = 5000) -> float:
    """Mean entropy of each row's softmax over its similarities to the other rows, in [0, log(n − 1)].

    Similarity is the cosine of the class probabilities, divided by `temperature`. High where rows have many neighbours
    with like predictions: also if all predictions are alike, which is its failure.

    Args:
        logits: Logits of the target rows, (n, K), n >= 2.
        temperature: τ, > 0.
        max_samples: Most rows to compare with one another, a random choice.

    Source: Saito et al., "Tune It the Right Way: Unsupervised Validation of Domain Adaptation via Soft Neighborhood
    Density", ICCV 2021.
    """
    directions = F.normalize(subsample(logits, max_samples).float().softmax(dim=1))
    total = 0.0
    for first, rows in zip(range(0, len(directions), 1000), directions.split(1000), strict=True):
        similarities = rows @ directions.T / temperature
        similarities.diagonal(first).fill_(float("-inf"))
        log_q = similarities.log_softmax(dim=1)
        total -= float(torch.special.xlogy(log_q.exp(), log_q.exp()).sum())
    return total / len(directions)


def class_ami(features: Tensor, logits: Tensor, seed: int = 0, max_samples: int = 5000) -> float:
    """Adjusted mutual information of predicted classes and k-means clusters of the features.

    At most 1, near 0 by chance, and 0 for a classifier that predicts one class only.

    Args:
        features: Features of the target rows, (n, d).
        logits: Logits of the same rows, (n, K).
        seed: Of k-means and of the choice of rows.
        max_samples: Most rows to cluster, a random choice.

    Raises:
        ValueError: If features are not finite.

    Source: Musgrave et al., "Three New Validators and a Large-Scale Benchmark Ranking for Unsupervised Domain
    Adaptation", 2022.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_mutual_info_score

    rows = subsample(features, max_samples, seed).detach().float().cpu().numpy()
    predicted = subsample(logits, max_samples, seed).argmax(dim=1).cpu().numpy()
    if (predicted == predicted[0]).all():
        return 0.0  # scikit-learn calls two clusterings with one cluster each a perfect match
    kmeans = KMeans(min(logits.shape[1], len(rows)), n_init=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than classes: a finding, no fault
        clusters = kmeans.fit_predict(rows)
    return float(adjusted_mutual_info_score(predicted, clusters))


def deep_embedded_validation(
    losses: Tensor, source_features: Tensor, target_features: Tensor, seed: int = 0, max_samples: int = 1000
) -> float:
    """Minus the risk on the target, estimated from held-out source rows weighted by how much they look like the target.

    With weights w_i = p_target(x_i) / p_source(x_i) and a control variate of the same mean 1:

        risk = mean(w l) + η mean(w) − η,   η = −cov(w l, w) / var(w).

    The density ratio comes from a logistic regression of the domain on standardised features, cross-fitted: no row is
    weighted by a classifier that has seen it. Of four penalties the one with the smallest held-out log-loss is taken: a
    classifier that is surer than it should be gives one row all the weight, and the estimate can be off by orders of
    magnitude. Where domains hardly overlap, the estimate means little all the same.

    Args:
        losses: Loss of each held-out source row, (n_s,), >= 0, for instance its cross-entropy.
        source_features: Features of the same rows, (n_s, d), n_s >= 5.
        target_features: Features of the target rows, (n_t, d), n_t >= 5.
        seed: Of the folds and of the choice of rows.
        max_samples: Most rows of each domain to take, a random choice.

    Raises:
        ValueError: If a domain has fewer than five rows, the widths differ, or a feature is not finite.

    Source: You et al., "Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation", ICML 2019.
    """
    losses, source, target = (subsample(rows, max_samples, seed) for rows in (losses, source_features, target_features))
    fits = [held_out_domain_evidence(source, target, penalty, seed) for penalty in (1e-4, 1e-3, 1e-2, 1e-1)]
    is_target = (torch.arange(len(source) + len(target)) >= len(source)).double()
    evidence = min(fits, key=lambda fit: float(F.binary_cross_entropy_with_logits(fit, is_target)))
    weights = evidence[: len(source)].exp() * len(source) / len(target)
    weighted = weights * losses.detach().double().cpu()
    centered = weights - weights.mean()
    eta = -(weighted * centered).mean() / centered.square().mean().clamp_min(torch.finfo(torch.float64).tiny)
    return -float(weighted.mean() + eta * weights.mean() - eta)
