"""Networks that judge, for adversarial terms, and how two sides with opposite aims share one loss.

There is one optimiser and one backward pass. Each side's term must reach that side's weights alone:
- the critic's own term takes everything else detached: `critic(z.detach())`;
- a term that is to move the others sees the critic with its weights held: `held(critic, z)`.
Their sum then gives every weight the gradient of its own side's aim, as two optimisers that step at the same time would (Adam
keeps moments per weight). Rates of their own go by `BaseAE.rates`. Critics have no batch norm: its moments would tell the one
batch from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def held(module: nn.Module, *inputs: Any) -> Any:
    """`module(*inputs)` with gradients to the inputs and none to the module's own weights."""
    weights = {name: p.detach() for name, p in module.named_parameters()}
    return torch.func.functional_call(module, weights, inputs)


def mlp_critic(inputs: int, outputs: int = 1, widths: Sequence[int] = (256, 256)) -> nn.Sequential:
    """Judges codes: (B, inputs) -> (B, outputs) logits, leaky ReLU (0.2) between linear layers."""
    sizes = [inputs, *widths]
    layers: list[nn.Module] = []
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


class DataCritic(nn.Module):
    """Judges data of any shape: (B, *input_shape) -> logits (B, 1), and features of its last hidden layer.

    Samples with axes (rank 2 to 4) go through stride-2 convolutions with `widths` channels and the mean over the last map;
    vectors through linear layers of `widths` units."""

    def __init__(self, input_shape: Sequence[int], widths: Sequence[int] = (32, 64, 128)):
        super().__init__()
        channels, *size = input_shape
        layers: list[nn.Module] = []
        for a, b in zip([channels, *widths], widths):
            layer = _CONV[len(size) - 1](a, b, 3, stride=2, padding=1) if size else nn.Linear(a, b)
            layers += [layer, nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 1)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer's map, (B, C, ...) or (B, C)."""
        out: Tensor = self.body(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        return self.head(h.flatten(2).mean(2) if h.dim() > 2 else h)
