"""How well a classifier tells two domains apart by their features."""

import torch
from torch import Tensor

_FOLDS = 5
_MAX_ROWS = 2500  # per domain: more cost time and change the second decimal


def proxy_a_distance(source_features: Tensor, target_features: Tensor, seed: int = 0) -> float:
    """Proxy A-distance 2 (1 − 2ε), ε the error of a classifier that tells source from target features.

    A domain with more rows than the other, or than 2,500, is subsampled, so that chance is ε = 1/2 whatever the sizes.
    The classifier is a logistic regression on standardised features; ε is counted on held-out rows of a stratified
    five-fold cross-validation.

    Two limits. Domains that a hyperplane separates read 2, however far apart they are: values near 2 do not rank. And
    few rows, above all fewer than features, make the classifier err more: the distance then reads low, with a standard
    error of sqrt(2 / n) or more for n rows a domain. Compare values of equal n and d.

    Args:
        source_features: Features of the source, (n_s, d), n_s >= 5.
        target_features: Features of the target, (n_t, d), n_t >= 5.
        seed: Of the subsample and the folds.

    Returns:
        The distance, in [0, 2]; near 0 for domains of one distribution.

    Raises:
        ValueError: If a domain has fewer than five rows, the widths differ, or a feature is not finite.

    Source: Ben-David et al., "Analysis of Representations for Domain Adaptation", NeurIPS 2006.
    """
    count = min(len(source_features), len(target_features))
    source, target = (subsample(rows, min(count, _MAX_ROWS), seed) for rows in (source_features, target_features))
    evidence = held_out_domain_evidence(source, target, seed=seed)
    wrong = torch.cat([evidence[: len(source)] > 0, evidence[len(source) :] <= 0])
    return min(max(2 * (1 - 2 * float(wrong.double().mean())), 0.0), 2.0)


def subsample(rows: Tensor, limit: int, seed: int = 0) -> Tensor:
    """At most `limit` of the rows (n, …), a random choice in their order, the same for every tensor of n rows."""
    if len(rows) <= limit:
        return rows
    stream = torch.Generator().manual_seed(seed)
    return rows[torch.randperm(len(rows), generator=stream)[:limit].sort().values.to(rows.device)]


def held_out_domain_evidence(
    source_features: Tensor, target_features: Tensor, inverse_penalty: float = 1.0, seed: int = 0
) -> Tensor:
    """Log-odds of the target for every row, by a logistic regression that has not seen the row.

    Args:
        source_features: Features of the source, (n_s, d), n_s >= 5.
        target_features: Features of the target, (n_t, d), n_t >= 5.
        inverse_penalty: C of the regression on standardised features, > 0.
        seed: Of the folds.

    Returns:
        log p(target | row) − log p(source | row), source rows first, (n_s + n_t,) float64 on the host.

    Raises:
        ValueError: If a domain has fewer than five rows, the widths differ, or a feature is not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(len(source_features), len(target_features)) < _FOLDS:
        raise ValueError(
            f"A classifier of domains needs at least {_FOLDS} rows of each; there are {len(source_features)} source "
            f"and {len(target_features)} target rows."
        )
    if source_features.shape[1:] != target_features.shape[1:]:
        raise ValueError(
            f"Source features have the shape {tuple(source_features.shape[1:])}, target features "
            f"{tuple(target_features.shape[1:])}."
        )
    features = torch.cat([source_features.detach(), target_features.detach()]).double().cpu()
    if not features.isfinite().all():
        raise ValueError("Features are NaN or infinite.")
    is_target = torch.arange(len(features)) >= len(source_features)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=1000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    evidence = cross_val_predict(classifier, features.numpy(), is_target.numpy(), cv=folds, method="decision_function")
    return torch.from_numpy(evidence)
