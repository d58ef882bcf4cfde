"""What the page of `aezoo play` does: from places of sliders to pictures, from pictures to places of sliders. `play_page` shows it.

Everything here works without a browser and without Gradio. Pictures go in and out as (H, W, 3) arrays of bytes; codes are kept as
lists of numbers, so that each visitor's are their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .base import BaseAE
from .data.sources import Source
from .directions import Directions, directions, no_code, unit
from .index_prior import IndexPrior
from .noise import at_level, corrupted_by, input_noise, noise_levels
from .pictures import as_images, figure, is_image, one_label, plain_axes, to_unit
from .randomness import forked_rng

PEEKED = 512  # samples that the ways through the latent space are found in
SIDE = 336  # pixels that a picture has at least
STOPS = 9  # pictures of an interpolation


class Shown(NamedTuple):
    """What a picture becomes."""

    input: Any
    """As the model sees it, (H, W, 3)."""
    output: Any
    """Its reconstruction, (H, W, 3)."""
    code: list[float]
    """Its code, in a row."""
    places: list[float]
    """Where the sliders stand for it."""
    error: float
    """Mean squared error per entry that is there."""


class Session:
    """A model, held-out samples if there are any, and the ways that the sliders go.

    Args: `model`; `source`: data that the ways are found in and that examples come from, or None; `most`: sliders, at most."""

    def __init__(self, model: BaseAE, source: Source | None = None, most: int = 8):
        self.model, self.source = model.eval(), source
        self.like = next(model.parameters())
        self.images = is_image(model.input_shape) and model.input_shape[0] in (1, 3) and len(model.input_shape) == 3
        self.noise = input_noise(model)
        self.why_no_code = no_code(model)
        classes = getattr(model, "num_classes", None)
        self.classes = int(classes) if classes and model.takes_condition and not hasattr(model, "class_critic") else 0
        self.x: Tensor | None = None
        self.labels: Tensor | None = None
        if source is not None:
            batch = source.reshaped(model.input_shape).peek(PEEKED, self.like.device, self.like.dtype)
            self.x, self.labels = batch.x, one_label(batch.y, len(batch.x))
        with torch.no_grad():
            self.z = None if self.x is None else self._codes(self.x)
            self.ways: Directions = unit(model, most) if self.z is None else directions(model, self.z, most)

    def _codes(self, x: Tensor) -> Tensor:
        return torch.cat(
            [self.model.encode(part, **self._told(self._labels(i, len(part)))) for i, part in self._parts(x)]
        )

    @staticmethod
    def _parts(x: Tensor) -> list[tuple[int, Tensor]]:
        return [(i * 128, part) for i, part in enumerate(x.split(128))]

    def _labels(self, start: int, n: int) -> Tensor | None:
        return None if self.labels is None else self.labels[start : start + n]

    def _told(self, labels: Tensor | None) -> dict[str, Any]:
        return {"condition": labels} if self.classes and labels is not None else {}

    def _label(self, label: int | None, n: int = 1) -> dict[str, Any]:
        """One label for all, as the model is told it."""
        if not self.classes or label is None:
            return {}
        return {"condition": torch.full((n,), int(label), device=self.like.device)}

    # -------------------------------------------------------------------------------------------------------- the code

    @property
    def ends(self) -> list[tuple[float, float, float]]:
        """(lowest, highest, step) of each slider, in round numbers outside the ends of its way."""
        found = []
        for low, high in zip(self.ways.low.tolist(), self.ways.high.tolist()):
            step = 10.0 ** (math.floor(math.log10(high - low)) - 2)
            found.append(
                tuple(float(f"{v:.6g}") for v in (math.floor(low / step) * step, math.ceil(high / step) * step, step))
            )
        return found  # type: ignore[return-value]

    @property
    def start(self) -> list[float]:
        """The code that the page begins with: the sample nearest to the mean of the codes, else the origin."""
        if self.z is None:
            return [0.0] * torch.Size(self.model.latent_shape).numel()
        far = (self.z.flatten(1) - self.ways.centre).square().sum(1)
        return self.z[int(far.argmin())].flatten().tolist()

    def _code(self, code: Sequence[float]) -> Tensor:
        """(1, *latent_shape)"""
        return torch.tensor(list(code), dtype=self.like.dtype, device=self.like.device).view(
            1, *self.model.latent_shape
        )

    def places(self, code: Sequence[float]) -> list[float]:
        """Where the sliders stand for a code, within their ends."""
        where = self.ways.coordinates(self._code(code))[0]
        return torch.minimum(torch.maximum(where, self.ways.low), self.ways.high).tolist()

    @torch.no_grad()
    def moved(self, places: Sequence[float], code: Sequence[float], label: int | None = None) -> Any:
        """The picture at these places of the sliders; what of the code lies across them is that of `code`."""
        where = torch.tensor([list(places)], dtype=self.like.dtype, device=self.like.device)
        return self.picture(self.model.decode(self.ways.moved(self._code(code), where), **self._label(label))[0])

    @torch.no_grad()
    def decoded(self, code: Sequence[float], label: int | None = None) -> Any:
        """The picture of a code."""
        return self.picture(self.model.decode(self._code(code), **self._label(label))[0])

    @torch.no_grad()
    def drawn(self, seed: int) -> list[float]:
        """A code from the model's prior. Raises ValueError if it has none."""
        model: Any = self.model
        if model.prior is None:
            raise ValueError(f"{model.name} has no prior; aezoo fit-prior gives it one")
        with forked_rng(self.like.device):
            torch.manual_seed(seed)
            if isinstance(model.prior, IndexPrior):
                return model.codes(model.prior.sample(1, model.index_shape, self.like)).flatten().tolist()
            return model.prior.sample(1, model.latent_shape, self.like).flatten().tolist()

    # -------------------------------------------------------------------------------------------------------- pictures

    def read(self, picture: Any) -> Tensor:
        """A picture (PIL image, or array of bytes (H, W), (H, W, 3 or 4)) as a sample (1, *input_shape), resized to cover and cropped.

        Raises ValueError for a model that takes no pictures, or without a picture."""
        import numpy as np
        from PIL import Image, ImageOps

        if not self.images:
            raise ValueError(
                f"{self.model.name} takes samples of shape {self.model.input_shape}, which are no pictures"
            )
        if picture is None:
            raise ValueError("there is no picture; drop one into the field, or choose a sample")
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
        if "A" in image.getbands():
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        channels, height, width = self.model.input_shape
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).view(height, width, channels).permute(2, 0, 1)
        x = pixels[None].to(self.like) / 255
        low, high = self._span()
        return low + x * (high - low)

    def _span(self) -> tuple[float, float]:
        """What black and white are in the data."""
        if self.x is None:
            return 0.0, 1.0
        low, high = float(self.x.min()), float(self.x.max())
        return (low, high) if low < 0 or high > 1 else (0.0, 1.0)

    def sample(self, number: int) -> tuple[Tensor, int | None]:
        """A held-out sample (1, *input_shape), counted from 0, and its label. Raises ValueError if there is none."""
        if self.x is None:
            raise ValueError("there is no data; start with --data SOURCE")
        i = int(number) % len(self.x)
        known = self.labels is not None and not self.labels.is_floating_point()
        return self.x[i : i + 1], int(self.labels[i]) if known else None  # type: ignore[index]

    @property
    def other(self) -> int:
        """The number of the first sample of another label than the first sample's, else 1."""
        differ = [] if self.labels is None else (self.labels != self.labels[0]).nonzero().flatten().tolist()
        return int(differ[0]) if differ else 1

    @torch.no_grad()
    def shown(self, x: Tensor, label: int | None = None) -> Shown:
        """What the model makes of a sample (1, *input_shape)."""
        z = self.model.encode(x, **self._label(label))
        y = self.model.reconstruct(x, **self._label(label))
        code = z.flatten().tolist()
        places = [] if self.why_no_code else self.places(code)
        return Shown(self.picture(x[0], x), self.picture(y[0], x), code, places, float((y - x).square().nanmean()))

    @torch.no_grad()
    def between(
        self, a: Tensor, b: Tensor, share: float, labels: tuple[int | None, int | None] = (None, None)
    ) -> tuple[Any, Any]:
        """(the picture at `share` of the way from a to b, all stops in a row), straight through the latent space."""
        za, zb = (self.model.encode(x, **self._label(label)) for x, label in zip((a, b), labels))
        t = torch.tensor([share, *torch.linspace(0, 1, STOPS).tolist()], dtype=za.dtype, device=za.device)
        t = t.view(-1, *[1] * (za.dim() - 1))
        out = self.model.decode((1 - t) * za + t * zb, **self._label(labels[0], STOPS + 1))
        like = torch.cat([a, b])
        return self.picture(out[0], like), self.row(out[1:], like)

    @property
    def levels(self) -> list[float]:
        """Levels of noise that make sense for a denoiser, from little to much; none for other models."""
        return [] if self.noise is None else noise_levels(self.noise)

    @torch.no_grad()
    def denoised(
        self, x: Tensor, level: float, seed: int = 0, label: int | None = None
    ) -> tuple[Any, Any, float, float]:
        """(noisy input, output, error before, error after) at a level of the noise that the model was trained against.

        Raises ValueError for a model that was trained against none."""
        if self.noise is None:
            raise ValueError(f"{self.model.name} was trained without noise on its input")
        with forked_rng(self.like.device), corrupted_by(self.model, at_level(self.noise, level)):
            torch.manual_seed(seed)
            noisy = self.model.corrupt(x)
        y = self.model.reconstruct(noisy, **self._label(label))
        before, after = (float((v - x).square().nanmean()) for v in (noisy, y))
        return self.picture(noisy[0], x), self.picture(y[0], x), before, after

    def picture(self, x: Tensor, like: Tensor | None = None) -> Any:
        """One sample (*shape) as (H, W, 3) bytes: an image magnified by a whole factor, or a drawn curve."""
        if not is_image(x.shape):
            return self._plot([x])
        like = x[None] if like is None else like
        image = to_unit(as_images(x[None]), as_images(self.x if self.x is not None else like))[0]
        factor = max(1, -(-SIDE // max(image.shape[1:])))
        image = image.expand(3, -1, -1).repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        return (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()

    def row(self, x: Tensor, like: Tensor) -> Any:
        """Samples (n, *shape) beside each other, or over each other where they are curves."""
        import numpy as np

        if not is_image(x.shape[1:]):
            return self._plot(list(x))
        pictures = [self.picture(v, like) for v in x]
        gap = np.full((pictures[0].shape[0], 8, 3), 255, dtype=np.uint8)
        return np.concatenate([part for p in pictures for part in (p, gap)][:-1], 1)

    def _plot(self, samples: Sequence[Tensor]) -> Any:
        """Curves, the last one the strongest, as (H, W, 3) bytes."""
        import numpy as np

        fig = figure(6.4, 3.4)
        ax = fig.add_subplot()
        for i, sample in enumerate(samples):
            line = sample.detach().float().cpu()
            line = line if line.dim() < 2 or line.shape[0] > line.shape[1] else line.T
            strength = (i + 1) / len(samples)
            colours = ("#1b6ca8", "#d1495b", "#4f9d6b")
            for c, values in enumerate((line[:, None] if line.dim() == 1 else line.flatten(1)).T[:3]):
                ax.plot(
                    values.numpy(),
                    color=colours[c],
                    alpha=0.2 + 0.8 * strength,
                    linewidth=1.6,
                    marker="o" if len(values) == 1 else None,
                )
        plain_axes(ax, x="feature" if samples[0].dim() == 1 else "step")
        fig.canvas.draw()
        return np.asarray(fig.canvas.buffer_rgba())[..., :3].copy()
