"""Which rows get a pseudo-label: the chance to cover every class, a walk without repetition, prototypes."""

from fractions import Fraction
from math import comb

import torch
import torch.nn.functional as F
from torch import Tensor

from supercm_lightning.utils.options import SuperCMError


def class_coverage(n: int, k: int, n_l: int) -> float:
    """Probability that `n_l` rows drawn without repetition from `n` rows in `k` equal classes hold every class.

    1 − Σ_{i=1..k} (−1)^{i−1} C(k, i) C(n − i n/k, n_l) / C(n, n_l), in exact arithmetic: the terms alternate, and their
    differences vanish in floats. Where k does not divide n, classes differ by one row at most.

    Args:
        n: Number of rows.
        k: Number of classes, at least 1.
        n_l: Number of rows drawn, from 0 to n.

    Returns:
        The probability, in [0, 1].

    Raises:
        ValueError: If an argument is outside its range.

    Source: Duan et al., "An Adaptor for Triggering Semi-Supervised Learning to Out-of-Box Serve Deep Image Clustering",
        IEEE TIP 2025.
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
    """Next rows of a walk that visits every row once before any is visited again.

    Rows left over at the end of a pass are drawn before the first ones of the next.

    Args:
        unused: Rows not yet visited in this pass, (n,) bool, on the host; updated in place.
        n_l: Number of rows, at most n.
        generator: Source of randomness, on the host.

    Returns:
        Row numbers, (n_l,) int64.
    """
    order = torch.randperm(len(unused), generator=generator)
    left = unused[order]
    rows = torch.cat([order[left], order[~left]])[:n_l]
    if int(left.sum()) < n_l:
        unused.fill_(True)
        unused[rows[int(left.sum()) :]] = False
    else:
        unused[rows] = False
    return rows


def prototype_sample(features: Tensor, k: int, n_l: int, unused: Tensor, generator: torch.Generator) -> Tensor:
    """Prototypes with their neighbours: the rows nearest to each of k centres.

    k-means on the normalised features gives the centres. For each, the nearest unused row is its prototype, and the
    rows nearest to the prototype follow, until the centre has its n_l / k rows (one more for the first ones where k
    does not divide n_l). No row is drawn twice.

    Args:
        features: Features of the candidates, (m, d).
        k: Number of clusters.
        n_l: Number of rows to draw, at least k.
        unused: Candidates that may be drawn, (m,) bool, at least `n_l` of them.
        generator: Source of randomness, on the host.

    Returns:
        Numbers of the drawn candidates, (n_l,) int64, on the host, those of one centre side by side.

    Raises:
        ValueError: If there are fewer candidates than rows to draw, or fewer rows than clusters.

    Source: Duan et al., IEEE TIP 2025 (the sampler "PS"); the paper leaves the centres open.
    """
    from sklearn.cluster import KMeans

    if not k <= n_l <= int(unused.sum()):
        raise SuperCMError(f"prototype_sample: {int(unused.sum())} candidates for n_l={n_l} rows of k={k} clusters.")
    rows = F.normalize(features.detach().cpu().float(), dim=1)
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    means = KMeans(k, n_init=1, max_iter=10, random_state=seed).fit(rows.numpy()).cluster_centers_
    from_means = torch.cdist(torch.from_numpy(means).float(), rows)
    between = torch.cdist(rows, rows)
    taken = ~unused.cpu()
    drawn = []
    for number in range(k):
        prototype = from_means[number].masked_fill(taken, torch.inf).argmin()
        share = n_l // k + (number < n_l % k)
        nearest = between[prototype].masked_fill(taken, torch.inf).scatter(0, prototype, -1).argsort()[:share]
        taken[nearest] = True
        drawn.append(nearest)
    return torch.cat(drawn)
