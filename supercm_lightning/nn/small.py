"""Small networks, for small images, for frozen features and for quick runs without an accelerator."""

import math
from itertools import pairwise

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet


class SmallCNN(nn.Module):
    """Three convolutions and a linear layer for images (C, H, W) of 8x8 to 32x32, quick on a CPU.

    The image is halved two times, and a third time if it is larger than 16x16: 8x8 ends at 2x2, 28x28 and 32x32 at 4x4.
    The flattened positions, not their average, enter the linear layer: where strokes lie tells digits apart.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_features: int = 128) -> None:
        super().__init__()
        channels, *size = input_shape
        stride = 2 if max(size) > 16 else 1
        positions = math.prod(math.ceil(side / (4 * stride)) for side in size)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 5, stride, padding=2, bias=False),
            nn.BatchNorm2d(16),
            nn.LeakyReLU(0.1, inplace=True),
            # Pooling before the norm leaves it a quarter of the work.
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.BatchNorm2d(32),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Flatten(),
            nn.Linear(64 * positions, num_features, bias=False),
            nn.BatchNorm1d(num_features),
            nn.ReLU(inplace=True),
        )
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, num_features) of images (n, C, H, W)."""
        return self.layers(x)


class ResNet18(ResNet):
    """ResNet-18 for images of about 32x32: a 3x3 stem of stride 1 and no max-pooling, so that detail survives.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with the stem that CIFAR images need.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        self.fc = nn.Identity()
        self.num_features = 512


class MLP(nn.Module):
    """One or two linear layers with batch norm and ReLU, for frozen features and tables.

    Args:
        in_features: Width of the input.
        hidden_features: Width of the hidden layer; None: there is none.
        num_features: Width of the output.
        dropout: Probability that an input of a layer, or a feature of the output, is set to zero.
    """

    def __init__(
        self, in_features: int, hidden_features: int | None = 256, num_features: int = 128, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = (
            (in_features, num_features) if hidden_features is None else (in_features, hidden_features, num_features)
        )
        dropped = [nn.Dropout(dropout)] if dropout else []
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [*dropped, nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, *dropped)
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, num_features) of inputs (n, in_features)."""
        return self.layers(x)


class Identity(nn.Identity):
    """Passes frozen features on as they are, so that the head is all there is to train."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.num_features = in_features
