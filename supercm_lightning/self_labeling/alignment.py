"""Assignment of labels to samples by optimal transport."""

from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from supercm_lightning.utils.options import SuperCMError, check_choice


def align_labels(
    cost: Tensor, solver: Literal["exact", "sinkhorn"] = "exact", eps: float = 0.05, iterations: int = 100
) -> Tensor:
    """Gives each of n samples one of n labels, each label once, at the least total cost.

    With uniform marginals an optimal transport plan between n samples and n labels is a permutation. `exact` finds it;
    `sinkhorn` computes the entropy-regularized plan in the log domain and rounds it to the permutation with the largest
    total plan. The two agree as `eps` goes to zero.

    Args:
        cost: Cost of giving sample i the label j, (n, n), finite, without gradient.
        solver: `exact` or `sinkhorn`.
        eps: For `sinkhorn`: weight of the entropy as a fraction of the range of the costs, > 0.
        iterations: For `sinkhorn`: number of iterations.

    Returns:
        Label of each sample, (n,) int64, a permutation of 0 … n − 1, on the device of `cost`.

    Raises:
        SuperCMError: If the cost is not square, or the solver is unknown.

    Source: Cuturi, "Sinkhorn Distances", NeurIPS 2013; used for labels by Duan et al., IEEE TIP 2025.

    Examples:
        >>> align_labels(torch.tensor([[0.1, 0.0], [0.9, 0.2]]))
        tensor([0, 1])
    """
    if cost.ndim != 2 or len(cost) != cost.shape[1]:
        raise SuperCMError(f"cost of shape {tuple(cost.shape)}: there must be as many labels as samples.")
    check_choice(solver=(solver, ("exact", "sinkhorn")))
    objective = cost.detach().cpu().double()
    if solver == "sinkhorn":
        objective = -_sinkhorn(objective, eps, iterations)
    _, label = linear_sum_assignment(objective.numpy())
    return torch.from_numpy(label).to(cost.device)


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
