"""Data sets by name. `fashion-mini` lies in the package; the others are read in torchvision's layout, or downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..registry import Registry
from . import sequences, sprites, tables
from .datasets import DatasetSource
from .sources import Source, TensorSource

DATASETS: Registry[Callable[..., Source]] = Registry("data set")

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def data_root(root: str | None) -> Path:
    """Where data sets lie: `root`, else AEZOO_DATA, else ~/.cache/aezoo."""
    return Path(root or os.environ.get("AEZOO_DATA") or "~/.cache/aezoo").expanduser()


@DATASETS.register("fashion-mini")
def fashion_mini(split: str, size: Any, binarize: str, root: Any, workers: Any) -> Source:
    """10,000 of Fashion-MNIST's 60,000 training images (28x28 grey, ten classes in equal parts), 9,000 to train and 1,000 to test."""
    import numpy as np

    with np.load(Path(__file__).with_name("fashion_mini.npz"), allow_pickle=False) as f:
        x, y = torch.from_numpy(f[f"x_{split}"]), torch.from_numpy(f[f"y_{split}"]).long()
    return _tensor_source("fashion-mini", x[:, None], y, size, binarize, FASHION)


@DATASETS.register("digits")
def digits(split: str, size: Any, binarize: str, root: Any, workers: Any) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: every sixth is for testing."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    test = torch.arange(len(x)) % 6 == 5
    keep = test if split == "test" else ~test
    x = torch.from_numpy(x).float().div(16).mul(255).round().to(torch.uint8).view(-1, 1, 8, 8)
    return _tensor_source(
        "digits", x[keep], torch.from_numpy(y)[keep].long(), size, binarize, [str(i) for i in range(10)]
    )


@DATASETS.register("digit-halves")
def digit_halves(split: str, size: Any, binarize: str, root: Any, workers: Any) -> Source:
    """The digits as pairs (2, 4, 8): the upper half of each, and the lower one, for models that predict the one from the other."""
    if size is not None:
        raise ValueError(f"size={size!r} does not apply to the data set digit-halves, whose samples are pairs")
    whole: Any = digits(split, None, "none", root, workers)
    return _tensor_source("digit-halves", whole.x.view(-1, 2, 4, 8), whole.labels, None, binarize, whole.class_names)


def _tensor_source(name: str, x: Any, y: Any, size: Any, binarize: str, classes: Any) -> TensorSource:
    if size is not None:
        resized = torch.nn.functional.interpolate(x.float(), size, mode="bilinear", antialias=True, align_corners=False)
        x = resized.round().clamp(0, 255).to(torch.uint8)
    source = TensorSource(x, y, binarize=binarize, description=name)
    source.class_names = classes
    return source


def _torchvision(name: str, make: Callable[[Any, str, bool], Any], root: Any, split: str) -> Any:
    """The torchvision data set, from disk or downloaded. `make(torchvision.datasets, split, download)` builds it."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(f"data set {name!r} is read by torchvision, which does not import here: {error}") from None
    place = data_root(root)
    try:
        return make(datasets, split, False)
    except RuntimeError as missing:
        try:
            place.mkdir(parents=True, exist_ok=True)
            return make(datasets, split, True)
        except Exception as error:
            raise FileNotFoundError(
                f"data set {name!r} is not under {place} ({str(missing).splitlines()[0]}) and cannot be downloaded "
                f"({type(error).__name__}); put its files there in torchvision's layout, or name their place: root= or AEZOO_DATA"
            ) from None


def _grey(name: str, cls: str, doc: str, classes: Any = None, **options: Any) -> None:
    """Registers one of torchvision's MNIST-like sets."""

    def load(split: str, size: Any, binarize: str, root: Any, workers: Any) -> Source:
        place = str(data_root(root))

        def make(d: Any, split: str, download: bool) -> Any:
            return getattr(d, cls)(place, train=split == "train", download=download, **options)

        data = _torchvision(name, make, root, split)
        x = data.data.transpose(1, 2) if cls == "EMNIST" else data.data  # EMNIST's files hold the images transposed
        return _tensor_source(name, x[:, None].contiguous(), data.targets, size, binarize, classes or data.classes)

    load.__doc__, load.__name__, load.__qualname__ = doc, f"load_{name}", f"load_{name}"
    DATASETS.register(name)(load)


_grey("mnist", "MNIST", "60,000 + 10,000 handwritten digits, 28x28 grey.", [str(i) for i in range(10)])
_grey("fashion_mnist", "FashionMNIST", "60,000 + 10,000 pictures of clothes, 28x28 grey.", FASHION)
_grey("kmnist", "KMNIST", "60,000 + 10,000 handwritten Hiragana, 28x28 grey.")
_grey(
    "emnist",
    "EMNIST",
    "112,800 + 18,800 handwritten letters and digits (balanced split), 28x28 grey.",
    split="balanced",
)


@DATASETS.register("cifar10")
def cifar10(split: str, size: Any, binarize: str, root: Any, workers: Any) -> Source:
    """50,000 + 10,000 photographs, 32x32 colour."""
    place = str(data_root(root))
    data = _torchvision("cifar10", lambda d, s, load: d.CIFAR10(place, train=s == "train", download=load), root, split)
    x = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return _tensor_source("cifar10", x, torch.tensor(data.targets), size, binarize, CIFAR10)


@DATASETS.register("svhn")
def svhn(split: str, size: Any, binarize: str, root: Any, workers: Any) -> Source:
    """73,257 + 26,032 house numbers, 32x32 colour."""
    place = str(data_root(root) / "SVHN")
    data = _torchvision("svhn", lambda d, s, load: d.SVHN(place, split=s, download=load), root, split)
    return _tensor_source(
        "svhn", torch.from_numpy(data.data), torch.from_numpy(data.labels).long(), size, binarize, None
    )


@DATASETS.register("stl10")
def stl10(split: str, size: Any, binarize: str, root: Any, workers: Any) -> Source:
    """5,000 + 8,000 labelled photographs, 96x96 colour."""
    place = str(data_root(root))
    data = _torchvision("stl10", lambda d, s, load: d.STL10(place, split=s, download=load), root, split)
    return _tensor_source(
        "stl10", torch.from_numpy(data.data), torch.from_numpy(data.labels).long(), size, binarize, data.classes
    )


@DATASETS.register("celeba")
def celeba(split: str, size: Any, binarize: str, root: Any, workers: Any) -> Source:
    """162,770 + 19,962 faces, 178x218 colour; cropped to the central 148x148 and resized to `size`, 64 by default."""
    place = str(data_root(root))
    edge = size or (64, 64)

    def make(d: Any, s: str, load: bool) -> Any:
        from torchvision import transforms as t

        steps = t.Compose([t.CenterCrop(148), t.Resize(edge), t.PILToTensor()])
        return d.CelebA(place, split=s, target_type=[], transform=steps, download=load)

    data = _torchvision("celeba", make, root, split)
    return DatasetSource(
        _First(data),
        workers=os.cpu_count() or 1 if workers is None else workers,
        binarize=binarize,
        description="celeba",
    )


class _First(torch.utils.data.Dataset):
    """Only the image of a data set's (image, target)."""

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        return self.data[i][0]


def _numbers(name: str, doc: str, make: Callable[[str], tuple[Any, Any, Sequence[str]]]) -> None:
    """Registers a set of series or rows, which is made by its split."""

    def load(split: str, size: Any, binarize: str, root: Any, workers: Any) -> Source:
        if size is not None:
            raise ValueError(f"size={size!r} does not apply to the data set {name}, which holds no images")
        x, y, classes = make(split)
        return _tensor_source(name, x, y, None, binarize, classes)

    load.__doc__, load.__name__, load.__qualname__ = doc, f"load_{name}", f"load_{name}"
    DATASETS.register(name)(load)


_numbers(
    "waves",
    "2,000 + 500 made-up series of 64 steps in two channels: sines, saws and chirps with noise.",
    lambda split: (*sequences.waves(split), sequences.WAVES),
)
_numbers(
    "waves-ragged",
    "The waves, each with a length of its own from 24 to 64 steps, padded with NaN.",
    lambda split: (*sequences.waves(split, ragged=True), sequences.WAVES),
)
_numbers(
    "wine", "scikit-learn's 178 wines: 13 measurements, three cultivars; every fifth row is for testing.", tables.wine
)
_numbers(
    "breast-cancer",
    "scikit-learn's 569 tumours: 30 measurements, malignant or benign; every fifth row is for testing.",
    tables.breast_cancer,
)
_numbers(
    "wine-mixed",
    "The wines with three columns cut into classes (columns={0: 3, 4: 4, 9: 5}) and 5 % of the entries missing (NaN).",
    tables.wine_mixed,
)


def _sprites(name: str, doc: str, train: int | None, test: int | None) -> None:
    """Registers a part of the grid of sprites, with the factors as labels (N, 5)."""

    def load(split: str, size: Any, binarize: str, root: Any, workers: Any) -> Source:
        side = 32 if size is None else size[0]
        if size is not None and size[0] != size[1]:
            raise ValueError(f"size={size!r} does not apply to the data set {name}, whose pictures are square")
        x, y = sprites.sprites(split, test if split == "test" else train, side)
        source = _tensor_source(name, x, y, None, binarize, sprites.SHAPES)
        source.factor_names = sprites.FACTORS
        return source

    load.__doc__, load.__name__, load.__qualname__ = doc, f"load_{name}", f"load_{name}"
    DATASETS.register(name)(load)


_sprites(
    "sprites",
    "10,000 + 2,000 pictures of a square, ellipse or heart of known scale, orientation and place (labels (N, 5)), 32x32 grey.",
    10_000,
    2_000,
)
_sprites("sprites-full", "All 40,000 + 6,080 sprites, each combination of the five factors once.", None, None)
