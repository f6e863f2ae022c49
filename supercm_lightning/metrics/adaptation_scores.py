"""Scores of an adapted classifier that need no target label; the higher, the better.

None of them is safe alone. A classifier that predicts one class for every sample is the best by `negative_entropy` and
`soft_neighborhood_density`; a certain one with permuted classes is the best by all scores of the target alone. Read
them beside the accuracy on held-out source samples.
"""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from supercm_lightning.metrics.proxy_a_distance import held_out_domain_evidence, subsample


def negative_entropy(logits: Tensor) -> float:
    """Certainty of the predictions: −H = (1/n) Σ_i Σ_k p_ik log p_ik, in [−log K, 0].

    Args:
        logits: Logits of the target samples, (n, K).

    Examples:
        >>> round(negative_entropy(torch.zeros(5, 2)), 4)
        -0.6931
    """
    log_p = logits.double().log_softmax(dim=1)
    return float((log_p.exp() * log_p).sum(dim=1).mean())


def diversity(logits: Tensor) -> float:
    """Evenness of the predicted classes: H(mean_i p_i), in [0, log K].

    Args:
        logits: Logits of the target samples, (n, K).

    Examples:
        >>> round(diversity(100 * torch.eye(2)), 4)
        0.6931
    """
    log_frequency = logits.double().log_softmax(dim=1).logsumexp(dim=0) - math.log(len(logits))
    return float(-(log_frequency.exp() * log_frequency).sum())


def information_maximization(logits: Tensor) -> float:
    """Diversity plus negative entropy, in [0, log K]: the mutual information of sample and predicted class.

    Args:
        logits: Logits of the target samples, (n, K).

    Source: Krause et al., "Discriminative Clustering by Regularized Information Maximization", NeurIPS 2010.

    Examples:
        >>> round(information_maximization(100 * torch.eye(2)), 4)
        0.6931
    """
    return diversity(logits) + negative_entropy(logits)


def batch_nuclear_norm_score(logits: Tensor) -> float:
    """Certainty and diversity: ‖P‖_* / n of the class probabilities P, in (0, sqrt(min(n, K) / n)].

    The bound depends on n: compare values of the same samples only.

    Args:
        logits: Logits of the target samples, (n, K).

    Source: Cui et al., "Towards Discriminability and Diversity: Batch Nuclear-norm Maximization", CVPR 2020; as a
    score: Musgrave et al., "Three New Validators and a Large-Scale Benchmark Ranking for Unsupervised Domain
    Adaptation", 2022.

    Examples:
        >>> round(batch_nuclear_norm_score(100 * torch.eye(2)), 4)
        1.0
    """
    p = logits.double().softmax(dim=1)
    return float(torch.linalg.svdvals(p).sum() / len(p))


def soft_neighborhood_density(logits: Tensor, temperature: float = 0.05, max_samples: int = 5000) -> float:
    """Mean entropy of each sample's softmax over its similarities to the other samples, in [0, log(n − 1)].

    Similarity is the cosine of the class probabilities, divided by `temperature`. High where samples have many
    neighbors with similar predictions, also if all predictions are alike, which is its failure.

    Args:
        logits: Logits of the target samples, (n, K), n >= 2.
        temperature: τ, > 0.
        max_samples: Most samples to compare with one another, a random choice.

    Source: Saito et al., "Tune It the Right Way: Unsupervised Validation of Domain Adaptation via Soft Neighborhood
    Density", ICCV 2021.

    Examples:
        >>> round(soft_neighborhood_density(torch.zeros(5, 3)), 4)  # log 4
        1.3863
    """
    directions = F.normalize(subsample(logits, max_samples).float().softmax(dim=1))
    total = 0.0
    for first, chunk in zip(range(0, len(directions), 1000), directions.split(1000), strict=True):
        similarities = chunk @ directions.T / temperature
        similarities.diagonal(first).fill_(float("-inf"))
        log_q = similarities.log_softmax(dim=1)
        total -= float(torch.special.xlogy(log_q.exp(), log_q.exp()).sum())
    return total / len(directions)


def class_ami(features: Tensor, logits: Tensor, seed: int = 0, max_samples: int = 5000) -> float:
    """Adjusted mutual information of predicted classes and k-means clusters of the features.

    At most 1, near 0 by chance, and 0 for a classifier that predicts one class only.

    Args:
        features: Features of the target samples, (n, d).
        logits: Logits of the same samples, (n, K).
        seed: Seed of k-means and of the choice of samples.
        max_samples: Most samples to cluster, a random choice.

    Raises:
        ValueError: If features are not finite.

    Source: Musgrave et al., "Three New Validators and a Large-Scale Benchmark Ranking for Unsupervised Domain
    Adaptation", 2022.

    Examples:
        >>> classes = torch.arange(20) % 2
        >>> class_ami(10.0 * classes[:, None], torch.eye(2)[classes])
        1.0
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_mutual_info_score

    samples = subsample(features, max_samples, seed).detach().float().cpu().numpy()
    predicted = subsample(logits, max_samples, seed).argmax(dim=1).cpu().numpy()
    if (predicted == predicted[0]).all():
        return 0.0  # scikit-learn calls two clusterings with one cluster each a perfect match
    kmeans = KMeans(min(logits.shape[1], len(samples)), n_init=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct samples than classes
        clusters = kmeans.fit_predict(samples)
    return float(adjusted_mutual_info_score(predicted, clusters))


def deep_embedded_validation(
    losses: Tensor, source_features: Tensor, target_features: Tensor, seed: int = 0, max_samples: int = 1000
) -> float:
    """Minus the risk on the target, estimated from held-out source samples weighted by the density ratio.

    With weights w_i = p_target(x_i) / p_source(x_i) and a control variate of the same mean 1:

        risk = mean(w l) + η mean(w) − η,   η = −cov(w l, w) / var(w).

    The density ratio comes from a cross-fitted logistic regression of the domain on standardized features: no sample is
    weighted by a classifier that was fitted on it. Of four penalties the one with the smallest held-out log-loss is
    taken, because an overconfident classifier gives one sample all the weight and an estimate that is wrong by orders
    of magnitude. Where domains hardly overlap, the estimate says little.

    Args:
        losses: Loss of each held-out source sample, (n_s,), >= 0, for instance its cross-entropy.
        source_features: Features of the same samples, (n_s, d), n_s >= 5.
        target_features: Features of the target samples, (n_t, d), n_t >= 5.
        seed: Seed of the folds and of the choice of samples.
        max_samples: Most samples of each domain, a random choice.

    Raises:
        SuperCMError: If a domain has fewer than five samples, the widths differ, or a feature is not finite.

    Source: You et al., "Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation", ICML 2019.

    Examples:
        >>> losses, features = torch.full((50,), 0.5), torch.randn(80, 4)
        >>> round(deep_embedded_validation(losses, features[:50], features[50:]), 4)
        -0.5
    """
    losses, source, target = (subsample(part, max_samples, seed) for part in (losses, source_features, target_features))
    fits = [held_out_domain_evidence(source, target, penalty, seed) for penalty in (1e-4, 1e-3, 1e-2, 1e-1)]
    is_target = (torch.arange(len(source) + len(target)) >= len(source)).double()
    evidence = min(fits, key=lambda fit: float(F.binary_cross_entropy_with_logits(fit, is_target)))
    weights = evidence[: len(source)].exp() * len(source) / len(target)
    weighted = weights * losses.detach().double().cpu()
    centered = weights - weights.mean()
    eta = -(weighted * centered).mean() / centered.square().mean().clamp_min(torch.finfo(torch.float64).tiny)
    return -float(weighted.mean() + eta * weights.mean() - eta)
