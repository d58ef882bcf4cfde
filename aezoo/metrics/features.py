"""What pictures are compared by: pixels, Inception, a small classifier of clothes, or any function of one's own.

Legend: N pictures, K features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import positive
from ..randomness import forked_rng, set_seed
from ..registry import choice

NAMES = ("pixels", "fashion", "inception")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation that torchvision's weights expect
EPOCHS, BATCH = 4, 100  # of the classifier of clothes


class Features:
    """A function from data (N, *shape) to features (N, K), with a `name` and a `description` for reports.

    Called in parts of `batch_size`, without gradients, the module in evaluation mode and afterwards as it was. Modules of ours
    follow the data to its device; one of the user's own stays where it is. Raises ValueError for what comes out without a row for each sample."""

    def __init__(self, name: str, description: str, function: Callable[[Tensor], Any], follows: bool = False):
        self.name, self.description, self.function, self.follows = name, description, function, follows

    def __repr__(self) -> str:
        return f"<features: {self.description}>"

    @torch.no_grad()
    def __call__(self, x: Tensor, batch_size: int = 256) -> Tensor:
        module = self.function if isinstance(self.function, nn.Module) else None
        training = module.training if module is not None else False
        if module is not None:
            if self.follows:
                module.to(x.device)
            module.eval()
        try:
            found = [self._rows(part) for part in x.split(positive("batch_size", batch_size))]
        finally:
            if module is not None:
                module.train(training)
        return torch.cat(found)

    def _rows(self, x: Tensor) -> Tensor:
        out = self.function(x)
        if not isinstance(out, Tensor) or out.dim() < 2 or len(out) != len(x):
            what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"features {self.name!r} of {len(x)} samples must be a tensor ({len(x)}, K); got {what}")
        return out.flatten(1)


def feature_extractor(source: str | Callable[[Tensor], Any] = "pixels") -> Features:
    """The features that samples are compared by.

    source:
        "pixels": the data itself, flattened.
        "fashion": the last hidden layer (64 numbers) of a small classifier that is trained on fashion-mini when it is first asked for, in some
            seconds on the CPU, the same each time, and stays in memory. Pictures in [0, 1], made grey and 28x28.
        "inception": the 2,048 pooled features of torchvision's Inception v3, if its weights are on this disk; nothing is ever
            downloaded. Pictures in [0, 1], grey or colour, resized to 299x299. Published FIDs have other weights and another resizing.
        any function or module of (N, *shape) -> (N, K), or with more axes, which are flattened.

    Raises ValueError for another name, FileNotFoundError where Inception's weights are missing, ImportError where torchvision is."""
    if isinstance(source, Features):
        return source
    if not isinstance(source, str):
        if not callable(source):
            raise TypeError(f"features must be a function, a module or one of {', '.join(NAMES)}; got {source!r}")
        name = getattr(source, "__name__", type(source).__name__)
        return Features(name, f"{name}, given in Python", source)
    choice("features", source, NAMES)
    if source == "pixels":
        return Features("pixels", "pixels", lambda x: x.flatten(1))
    if source == "fashion":
        module, accuracy = _fashion()
        return Features(
            "fashion",
            f"small classifier trained on fashion-mini ({accuracy:.1%} of its test images right), not comparable with published FID",
            module,
            follows=True,
        )
    return Features(
        "inception",
        "Inception v3 of torchvision, other weights than those of published FID and not comparable with it",
        _inception(),
        follows=True,
    )


def pictures(x: Tensor, channels: int, size: int) -> Tensor:
    """Pictures (N, C, H, W) or (N, H, W) in [0, 1] with 1 or 3 channels and of size x size: grey is the mean, or repeated.

    Raises ValueError for what is no picture of one or three channels, and for values outside [0, 1]."""
    x = x[:, None] if x.dim() == 3 else x
    if x.dim() != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
        raise ValueError(
            f"these features are of pictures (N, 1 or 3, height, width) in [0, 1]; got {x.dtype} of shape {tuple(x.shape)}"
        )
    low, high = (float(v) for v in x.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"these features are of pictures in [0, 1]; the values lie in [{low:g}, {high:g}]")
    x = x.float()
    if x.shape[1] != channels:
        x = x.mean(1, keepdim=True) if channels == 1 else x.expand(-1, 3, -1, -1)
    if x.shape[2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return x


class _FashionFeatures(nn.Module):
    """(N, C, H, W) -> (N, 64); `head` makes the logits of the ten classes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(1),
            nn.Linear(32 * 49, 64),
            nn.GELU(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(pictures(x, 1, 28))


@cache
def _fashion() -> tuple[_FashionFeatures, float]:
    """The classifier, trained on the CPU from a seed of its own, and its accuracy on the test images."""
    from ..data import load_data

    cpu = torch.device("cpu")
    train, test = (load_data("fashion-mini", split=s).peek(10**6, cpu) for s in ("train", "test"))
    with forked_rng(cpu), torch.enable_grad():
        set_seed(0, cpu)
        module = _FashionFeatures().train()
        steps = EPOCHS * (len(train.x) // BATCH)
        optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        assert train.y is not None and test.y is not None
        for _ in range(EPOCHS):
            for index in torch.randperm(len(train.x)).split(BATCH):
                loss = F.cross_entropy(module.head(module(train.x[index])), train.y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    module.eval().requires_grad_(False)
    with torch.no_grad():
        accuracy = float((module.head(module(test.x)).argmax(1) == test.y).double().mean())
    return module, accuracy


class _InceptionFeatures(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        x = pictures(x, 3, 299)
        mean, deviation = (x.new_tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
        return self.network((x - mean) / deviation)


def inception_file() -> Path:
    """Where torchvision keeps the weights of Inception v3: the environment's TORCH_HOME, else ~/.cache/torch."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "inception_v3_google-0cc3c7bd.pth"


@cache
def _inception() -> _InceptionFeatures:
    try:
        from torchvision.models import inception_v3
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise ImportError(
            f"features 'inception' need the package torchvision, which does not load here ({type(error).__name__}: {error}); "
            "take 'fashion', 'pixels' or a function of your own"
        ) from error
    path = inception_file()
    if not path.is_file():
        raise FileNotFoundError(
            f"features 'inception' need torchvision's weights at {path}, which are not there, and nothing is downloaded unasked; "
            f"fetch https://download.pytorch.org/models/{path.name} to that place, or take 'fashion', 'pixels' or a function of your own"
        )
    network = inception_v3(weights=None, init_weights=False, transform_input=True)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.fc = nn.Identity()
    return _InceptionFeatures(network.eval().requires_grad_(False)).eval()
