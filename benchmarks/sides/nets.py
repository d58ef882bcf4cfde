"""The networks, in plain torch, for all sides that take a module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VAE(nn.Module):
    """What both VAEs share: x -> q(z|x) -> z -> logits."""

    encoder: nn.Module
    decoder: nn.Module

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return mu, logvar

    def probabilities(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(z))

    def loss(self, x: Tensor) -> Tensor:
        """-ELBO in nats per sample, the mean over the batch: BCE from logits + KL, in float32."""
        mu, logvar = self.posterior(x)
        mu, logvar = mu.float(), logvar.float()
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        recon = F.binary_cross_entropy_with_logits(self.decoder(z).float(), x, reduction="sum")
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()
        return (recon + kl) / len(x)


class MLPVAE(VAE):
    """784-400-20-400-784."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Unflatten(1, (1, 28, 28)))


class ConvVAE(VAE):
    """Stride-2 convolutions of 32, 64 and 128 channels (28, 14, 7, 4), 32 latents, mirrored."""

    def __init__(self) -> None:
        super().__init__()
        down = {"kernel_size": 3, "stride": 2, "padding": 1}
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, **down), nn.ReLU(), nn.Conv2d(32, 64, **down), nn.ReLU(),
            nn.Conv2d(64, 128, **down), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 64),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(32, 2048), nn.Unflatten(1, (128, 4, 4)), nn.ReLU(),
            nn.ConvTranspose2d(128, 64, **down), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, output_padding=1, **down), nn.ReLU(),
            nn.ConvTranspose2d(32, 1, output_padding=1, **down),
        )  # fmt: skip


def vae(net: str) -> VAE:
    return MLPVAE() if net == "mlp" else ConvVAE()


def tabular() -> nn.Module:
    """PyOD's AutoEncoder: 32-64-32-64-32; linear, batch norm, ReLU and dropout 0.2 in every layer but the last."""
    sizes = [32, 64, 32, 64]
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:]):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(64, 32))
