"""Wide residual networks in the variant of the semi-supervised literature."""

from collections.abc import Callable

from torch import Tensor, nn

from supercm_lightning.utils.options import SuperCMError

_Norm = Callable[[int], nn.Module]


class _Block(nn.Module):
    """A pre-activation residual block; `norm` makes batch norm and activation for a number of channels."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, activate_before_residual: bool, norm: _Norm
    ) -> None:
        super().__init__()
        self.activate_before_residual = activate_before_residual
        self.activation = norm(in_channels)
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            norm(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation(x)
        return self.shortcut(activated if self.activate_before_residual else x) + self.residual(activated)


class WideResNet(nn.Module):
    """A wide residual network that maps images to the globally averaged features of its last group.

    As in the semi-supervised benchmarks: LeakyReLU(0.1), convolutions without bias and with Kaiming-normal (fan-out)
    weights; only the first block activates before its branches part.

    Args:
        depth: Number of layers, 6 · blocks per group + 4.
        width: Factor on the widths 16, 32, 64 of the three groups; `num_features` is 64 · width.
        in_channels: Channels of the images, of any size from 4x4.
        batch_norm_momentum: Fraction of a batch in the running statistics. The published SuperCM has PyTorch's 0.1,
            FixMatch and its relatives 0.001.
        batch_norm_eps: Added to the variance; likewise 1e-5 and 0.001.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016; Oliver et al., "Realistic Evaluation of Deep
    Semi-Supervised Learning Algorithms", NeurIPS 2018.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 2,
        in_channels: int = 3,
        batch_norm_momentum: float = 0.1,
        batch_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise SuperCMError(f"depth={depth}: a wide ResNet has 6 · blocks + 4 layers, such as 10, 16 or 28.")

        def norm(channels: int) -> nn.Sequential:
            batch_norm = nn.BatchNorm2d(channels, batch_norm_eps, batch_norm_momentum)
            return nn.Sequential(batch_norm, nn.LeakyReLU(0.1, inplace=True))

        channels = 16
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)]
        for group, base in enumerate((16, 32, 64)):
            for block in range((depth - 4) // 6):
                stride = 2 if group > 0 and block == 0 else 1
                layers.append(_Block(channels, base * width, stride, group == block == 0, norm))
                channels = base * width
        self.num_features = channels
        self.layers = nn.Sequential(*layers, norm(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, num_features) of images (n, in_channels, H, W)."""
        return self.layers(x)
