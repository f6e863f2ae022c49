"""Which samples are pseudo-labeled: the probability to cover every class, sampling without repetition, prototypes."""

from fractions import Fraction
from math import comb

import torch
import torch.nn.functional as F
from torch import Tensor

from supercm_lightning.utils.options import SuperCMError


def class_coverage(n: int, k: int, n_l: int) -> float:
    """Probability that `n_l` samples of `n` in `k` equal classes, drawn without repetition, contain every class.

    1 − Σ_{i=1..k} (−1)^{i−1} C(k, i) C(n − i n/k, n_l) / C(n, n_l), in exact arithmetic, as the terms alternate and
    their differences vanish in floating point. Where k does not divide n, class sizes differ by at most one sample.

    Args:
        n: Number of samples.
        k: Number of classes, at least 1.
        n_l: Number of samples drawn, from 0 to n.

    Returns:
        The probability, in [0, 1].

    Raises:
        SuperCMError: If an argument is outside its range.

    Source: Duan et al., "An Adaptor for Triggering Semi-Supervised Learning to Out-of-Box Serve Deep Image Clustering",
        IEEE TIP 2025.

    Examples:
        >>> round(class_coverage(n=50_000, k=10, n_l=40), 3)
        0.858
    """
    if k < 1 or not 0 <= n_l <= n:
        raise SuperCMError(f"class_coverage(n={n}, k={k}, n_l={n_l}): k must be positive and n_l from 0 to n.")
    size, larger = divmod(n, k)
    covering = sum(
        (-1) ** (i + j) * comb(larger, i) * comb(k - larger, j) * comb(n - i * (size + 1) - j * size, n_l)
        for i in range(larger + 1)
        for j in range(k - larger + 1)
    )
    return float(Fraction(covering, comb(n, n_l)))


def random_sample(unused: Tensor, n_l: int, generator: torch.Generator) -> Tensor:
    """Samples without repetition: every sample is drawn once before any is drawn again.

    The samples left at the end of a pass are drawn together with the first ones of the next pass.

    Args:
        unused: Samples not yet drawn in this pass, (n,) bool, on the host; updated in place.
        n_l: Number of samples to draw, at most n.
        generator: Source of randomness, on the host.

    Returns:
        Positions of the samples, (n_l,) int64.

    Examples:
        >>> unused, stream = torch.ones(6, dtype=torch.bool), torch.Generator().manual_seed(0)
        >>> sorted(random_sample(unused, 4, stream).tolist() + random_sample(unused, 2, stream).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    order = torch.randperm(len(unused), generator=generator)
    left = unused[order]
    index = torch.cat([order[left], order[~left]])[:n_l]
    if int(left.sum()) < n_l:
        unused.fill_(True)
        unused[index[int(left.sum()) :]] = False
    else:
        unused[index] = False
    return index


def prototype_sample(features: Tensor, k: int, n_l: int, unused: Tensor, generator: torch.Generator) -> Tensor:
    """Samples prototypes and their neighbors.

    k-means on the normalized features gives k centers. The unused candidate nearest to a center is its prototype; the
    unused candidates nearest to the prototype follow, until the center has n_l / k samples (one more for the first
    centers where k does not divide n_l). No candidate is drawn twice.

    Args:
        features: Features of the candidates, (m, d).
        k: Number of clusters.
        n_l: Number of samples to draw, at least k.
        unused: Candidates that may be drawn, (m,) bool, at least `n_l` of them.
        generator: Source of randomness, on the host.

    Returns:
        Positions among the candidates, (n_l,) int64, on the host, grouped by center.

    Raises:
        SuperCMError: If there are fewer candidates than samples to draw, or fewer samples than clusters.

    Source: Duan et al., IEEE TIP 2025 (the sampler "PS"); the paper does not say how the centers are found.

    Examples:
        >>> features = torch.eye(3).repeat_interleave(4, dim=0) + 0.01 * torch.rand(12, 3)
        >>> unused = torch.ones(12, dtype=torch.bool)
        >>> index = prototype_sample(features, k=3, n_l=6, unused=unused, generator=torch.Generator().manual_seed(0))
        >>> (index // 4).bincount()  # samples of each group
        tensor([2, 2, 2])
    """
    from sklearn.cluster import KMeans

    if not k <= n_l <= int(unused.sum()):
        raise SuperCMError(f"prototype_sample: {int(unused.sum())} candidates for n_l={n_l} samples of k={k} clusters.")
    candidates = F.normalize(features.detach().cpu().float(), dim=1)
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    means = KMeans(k, n_init=1, max_iter=10, random_state=seed).fit(candidates.numpy()).cluster_centers_
    from_means = torch.cdist(torch.from_numpy(means).float(), candidates)
    between = torch.cdist(candidates, candidates)
    taken = ~unused.cpu()
    drawn = []
    for center in range(k):
        prototype = from_means[center].masked_fill(taken, torch.inf).argmin()
        count = n_l // k + (center < n_l % k)
        nearest = between[prototype].masked_fill(taken, torch.inf).scatter(0, prototype, -1).argsort()[:count]
        taken[nearest] = True
        drawn.append(nearest)
    return torch.cat(drawn)
