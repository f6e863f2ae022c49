"""Assignment of labels to samples by optimal transport."""

from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from supercm_lightning.utils.options import SuperCMError, check_choice

MAX_USES = 3
"""Most samples of a set that may have one label."""


def align_labels(
    cost: Tensor,
    solver: Literal["exact", "sinkhorn"] = "exact",
    eps: float = 0.05,
    iterations: int = 100,
    reuse: float | None = None,
) -> Tensor:
    """Gives each of n samples one of n labels at the least total cost, each label once unless `reuse` allows more.

    With uniform marginals an optimal transport plan between n samples and n labels is a permutation. `exact` finds it;
    `sinkhorn` computes the entropy-regularized plan in the log domain and rounds it to the permutation with the largest
    total plan. The two agree as `eps` goes to zero.

    Labels that all have to occur once make classes equal: where a set holds two samples of a rare class, the second one
    gets the label of another class. With `reuse` transport is unbalanced: the m-th use of a label costs (m − 1) · reuse
    more, at most `MAX_USES` uses, and other labels stay unused.

    Args:
        cost: Cost of giving sample i the label j, (n, n), finite, without gradient.
        solver: `exact` or `sinkhorn`.
        eps: For `sinkhorn`: weight of the entropy as a fraction of the range of the costs, > 0.
        iterations: For `sinkhorn`: number of iterations.
        reuse: For `exact`: additional cost of each further use of a label, in the unit of the costs, >= 0; None: each
            label is used once.

    Returns:
        Label of each sample, (n,) int64 in [0, n), a permutation without `reuse`, on the device of `cost`.

    Raises:
        SuperCMError: If the cost is not square, the solver is unknown, or `sinkhorn` is to reuse labels.

    Source: Cuturi, "Sinkhorn Distances", NeurIPS 2013; used for labels by Duan et al., IEEE TIP 2025.

    Examples:
        >>> align_labels(torch.tensor([[0.1, 0.0], [0.9, 0.2]]))
        tensor([0, 1])
        >>> align_labels(torch.tensor([[0.1, 0.0], [0.9, 0.2]]), reuse=0.05)  # 0.0 + 0.2 + 0.05 < 0.1 + 0.2
        tensor([1, 1])
    """
    if cost.ndim != 2 or len(cost) != cost.shape[1]:
        raise SuperCMError(f"cost of shape {tuple(cost.shape)}: there must be as many labels as samples.")
    check_choice(solver=(solver, ("exact", "sinkhorn")))
    if solver == "sinkhorn" and reuse is not None:
        raise SuperCMError(
            f"asd_reuse={reuse}: sinkhorn uses each label once. Choose asd_solver=exact, or asd_reuse=null."
        )
    objective = cost.detach().cpu().double()
    if reuse is not None:
        objective = torch.cat([objective + uses * reuse for uses in range(min(MAX_USES, len(cost)))], dim=1)
    if solver == "sinkhorn":
        objective = -_sinkhorn(objective, eps, iterations)
    _, label = linear_sum_assignment(objective.numpy())
    return torch.from_numpy(label % len(cost)).to(cost.device)


def _sinkhorn(cost: Tensor, eps: float, iterations: int) -> Tensor:
    """Entropic plan (n, n) whose rows and columns sum to one."""
    above = cost - cost.amin()
    kernel = -above / (eps * above.amax()).clamp_min(torch.finfo(cost.dtype).tiny)
    of_rows = torch.zeros_like(cost[:, :1])
    of_columns = torch.zeros_like(cost[:1])
    for _ in range(iterations):
        of_rows = -(kernel + of_columns).logsumexp(dim=1, keepdim=True)
        of_columns = -(kernel + of_rows).logsumexp(dim=0, keepdim=True)
    return (kernel + of_rows + of_columns).exp()
