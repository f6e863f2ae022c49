"""SDAT: a flat minimum of the task loss, found by sharpness-aware minimization, helps adversarial adaptation."""

from typing import Any

import torch
from torch import Tensor

from supercm_lightning.contracts import Batch
from supercm_lightning.methods.cdan import CDAN
from supercm_lightning.utils.collectives import mean_over_ranks
from supercm_lightning.utils.options import check_positive


class SDAT(CDAN):
    """CDAN whose losses are taken at the weights w + ε, where the source's cross-entropy is sharpest around w.

    Rangwani et al., "A Closer Look at Smoothness in Domain Adversarial Training", ICML 2022. ε = ρ g / ‖g‖ with g the
    gradient of the cross-entropy at w (Foret et al., "Sharpness-Aware Minimization", ICLR 2021, eq. 2): the task loss
    is smoothed, the domain loss is not. State and batch norm statistics are those of the forward at w. A step costs
    two forwards and backwards.

    Args:
        sdat_rho: Radius ρ, > 0.
        **kwargs: Options of `CDAN` and of `Method`.

    Raises:
        SuperCMError: If the radius is not positive.

    Examples:
        >>> SDAT(num_classes=3, input_shape=(8,), backbone="mlp", sdat_rho=0.05).hparams.sdat_rho
        0.05
    """

    def __init__(self, sdat_rho: float = 0.02, **kwargs: Any) -> None:
        check_positive(sdat_rho=sdat_rho)
        super().__init__(**kwargs)
        self._origin: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Moves the weights to w + ε, and takes the losses there."""
        self._ascend(self.supervised_loss(self.observed_step(batch)))
        return super().training_step(batch, batch_idx)

    def _ascend(self, loss: Tensor) -> None:
        parameters = [p for p in self.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = [(p, mean_over_ranks(g)) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        norm = torch.stack([torch.linalg.vector_norm(g) for _, g in pairs]).norm().clamp_min(1e-12)
        with torch.no_grad():
            self._origin = [(p, p.clone()) for p, _ in pairs]
            for p, g in pairs:
                p.add_(self.hparams.sdat_rho / norm * g)

    def on_after_backward(self) -> None:
        """Moves the weights back to w, where the gradient of w + ε is applied."""
        with torch.no_grad():
            for p, value in self._origin:
                p.copy_(value)
        self._origin = []
