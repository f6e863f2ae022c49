"""The clustering-module loss: soft k-means distortion towards fixed centroids, and the four terms it is made of."""

import torch
from torch import Tensor


def _checked(features: Tensor, assignments: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Brings the inputs to one precision, float32 or wider, and stops gradients to the centroids."""
    if features.ndim != 2 or assignments.shape != (len(features), len(centroids)):
        raise ValueError(
            f"features {tuple(features.shape)}, assignments {tuple(assignments.shape)} and centroids "
            f"{tuple(centroids.shape)} do not fit: they must be (n, d), (n, K) and (K, d)."
        )
    dtype = torch.promote_types(features.dtype, torch.float32)
    return features.to(dtype), assignments.to(dtype), centroids.detach().to(dtype)


def _prior(assignments: Tensor, alpha: float | Tensor) -> Tensor:
    """The Dirichlet prior on the clusters' mean assignment."""
    # The smallest normal number instead of zero keeps the gradient of an empty cluster finite: 0 * inf would be NaN.
    share = assignments.mean(dim=0).clamp_min(torch.finfo(assignments.dtype).tiny)
    alpha = alpha.to(share) if isinstance(alpha, Tensor) else alpha
    return ((1 - alpha) * share.log()).sum()


def clustering_loss_terms(
    features: Tensor, assignments: Tensor, centroids: Tensor, alpha: float | Tensor = 1.0
) -> dict[str, Tensor]:
    """The four terms of the clustering-module loss, for logging; their sum is `clustering_loss`.

    With reconstructions x̄ = γ μ, over n samples, d features and K clusters:

        reconstruction   Σ_i ‖x_i − x̄_i‖² / (n d)
        sparsity         Σ_ik γ_ik (1 − γ_ik) ‖μ_k‖² / (n d)
        merging         −Σ_i Σ_{j≠l} γ_ij γ_il μ_j·μ_l / (n d)
        prior            Σ_k (1 − α_k) log mean_i γ_ik

    Computed in float32 whatever autocast says (float64 stays float64).

    Args:
        features: Features x, (n, d).
        assignments: Cluster probabilities γ, (n, K), rows summing to one.
        centroids: Centroids μ, (K, d); no gradient reaches them.
        alpha: Dirichlet concentration, > 0, one for all clusters or a tensor (K,). Above one favours clusters of equal
            size; exactly one switches the prior off.

    Returns:
        Scalars under `reconstruction`, `sparsity`, `merging` and `prior`.

    Raises:
        ValueError: If the shapes do not fit each other.

    Source: Boubekki et al., "Joint optimization of an autoencoder for clustering and embedding", Machine Learning 2021.

    Examples:
        >>> x, assignments = torch.ones(2, 3), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> sorted(clustering_loss_terms(x, assignments, torch.ones(2, 3)))[:2] == ["merging", "prior"]
        True
    """
    with torch.autocast(features.device.type, enabled=False):
        x, gamma, mu = _checked(features, assignments, centroids)
        reconstructions = gamma @ mu
        squared_norms = mu.square().sum(dim=1)
        # |x̄|² is the double sum over j and l; taking out its diagonal leaves j ≠ l.
        off_diagonal = reconstructions.square().sum() - (gamma.square() @ squared_norms).sum()
        return {
            "reconstruction": (x - reconstructions).square().sum() / x.numel(),
            "sparsity": ((gamma * (1 - gamma)) @ squared_norms).sum() / x.numel(),
            "merging": -off_diagonal / x.numel(),
            "prior": _prior(gamma, alpha),
        }


def clustering_loss(features: Tensor, assignments: Tensor, centroids: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
    """The clustering-module loss Σ_ik γ_ik ‖x_i − μ_k‖² / (n d), plus the prior.

    The distortion equals reconstruction + sparsity + merging of `clustering_loss_terms`, gradients included. Given the
    assignments, features are pulled to their reconstruction; given the features, assignments harden on the nearest
    centroid. Computed in float32 whatever autocast says (float64 stays float64).

    Args:
        features: Features x, (n, d).
        assignments: Cluster probabilities γ, (n, K), rows summing to one.
        centroids: Centroids μ, (K, d); no gradient reaches them.
        alpha: Dirichlet concentration, > 0, one for all clusters or a tensor (K,); exactly one switches the prior off.

    Returns:
        A scalar.

    Raises:
        ValueError: If the shapes do not fit each other.

    Examples:
        >>> x, assignments = torch.ones(2, 3), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> clustering_loss(x, assignments, torch.ones(2, 3)).item()
        0.0
    """
    with torch.autocast(features.device.type, enabled=False):
        x, gamma, mu = _checked(features, assignments, centroids)
        # |x|² stands outside the sum over k, so that the three-term form is matched even where a row of γ does not sum
        # to one, as in a gradient with respect to γ itself.
        to_centroids = gamma * (mu.square().sum(dim=1) - 2 * (x @ mu.T))
        distortion = (x.square().sum() + to_centroids.sum()) / x.numel()
        has_prior = isinstance(alpha, Tensor) or alpha != 1
        return distortion + _prior(gamma, alpha) if has_prior else distortion
