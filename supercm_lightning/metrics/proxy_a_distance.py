"""Distance of two domains by a classifier that tells their features apart."""

import torch
from torch import Tensor

from supercm_lightning.utils.options import SuperCMError

_FOLDS = 5
_MAX_SAMPLES = 2500  # per domain: more cost time and change the second decimal


def proxy_a_distance(source_features: Tensor, target_features: Tensor, seed: int = 0) -> float:
    """Proxy A-distance 2 (1 − 2ε), ε the error of a classifier that tells source from target features.

    A domain with more samples than the other, or than 2,500, is subsampled, so that chance is ε = 1/2. The classifier
    is a logistic regression on standardized features; ε is its error on the held-out folds of a stratified five-fold
    cross-validation.

    Two limits. Domains that a hyperplane separates have the distance 2, however far apart they are: values near 2 do
    not rank. And with few samples, above all fewer than features, the classifier errs more: the distance is then too
    low, with a standard error of sqrt(2 / n) or more for n samples per domain. Compare values of equal n and d.

    Args:
        source_features: Features of the source, (n_s, d), n_s >= 5.
        target_features: Features of the target, (n_t, d), n_t >= 5.
        seed: Seed of the subsample and the folds.

    Returns:
        The distance, in [0, 2]; near 0 for domains of one distribution.

    Raises:
        SuperCMError: If a domain has fewer than five samples, the widths differ, or a feature is not finite.

    Source: Ben-David et al., "Analysis of Representations for Domain Adaptation", NeurIPS 2006.

    Examples:
        >>> features = torch.randn(200, 4)
        >>> proxy_a_distance(features, features + 10)
        2.0
    """
    count = min(len(source_features), len(target_features))
    source, target = (
        subsample(domain, min(count, _MAX_SAMPLES), seed) for domain in (source_features, target_features)
    )
    evidence = held_out_domain_evidence(source, target, seed=seed)
    wrong = torch.cat([evidence[: len(source)] > 0, evidence[len(source) :] <= 0])
    return min(max(2 * (1 - 2 * float(wrong.double().mean())), 0.0), 2.0)


def subsample(samples: Tensor, limit: int, seed: int = 0) -> Tensor:
    """A random choice of at most `limit` samples (n, …), in their order; the same for every tensor of n samples."""
    if len(samples) <= limit:
        return samples
    stream = torch.Generator().manual_seed(seed)
    return samples[torch.randperm(len(samples), generator=stream)[:limit].sort().values.to(samples.device)]


def held_out_domain_evidence(
    source_features: Tensor, target_features: Tensor, inverse_penalty: float = 1.0, seed: int = 0
) -> Tensor:
    """Log p(target | x) − log p(source | x) of every sample, source samples first, (n_s + n_t,) float64 on the host.

    By a logistic regression on standardized features, fitted without the sample, with C = `inverse_penalty`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(len(source_features), len(target_features)) < _FOLDS:
        raise SuperCMError(
            f"A classifier of domains needs at least {_FOLDS} samples of each; there are {len(source_features)} source "
            f"and {len(target_features)} target samples."
        )
    if source_features.shape[1:] != target_features.shape[1:]:
        raise SuperCMError(
            f"Source features have the shape {tuple(source_features.shape[1:])}, target features "
            f"{tuple(target_features.shape[1:])}."
        )
    features = torch.cat([source_features.detach(), target_features.detach()]).double().cpu()
    if not features.isfinite().all():
        raise SuperCMError("Features are NaN or infinite.")
    is_target = torch.arange(len(features)) >= len(source_features)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=1000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    evidence = cross_val_predict(classifier, features.numpy(), is_target.numpy(), cv=folds, method="decision_function")
    return torch.from_numpy(evidence)
