"""Compression: a trained model as a codec, lossy by its rounded code or lossless by bits back.

    codec = aezoo.Codec.fit(model, data)            # steps and integer tables, frozen
    small = codec.compress(x)                       # bytes, with header and checksums
    x_hat = codec.decompress(small)
    codec.save("runs/x");  aezoo.Codec.load("runs/x")

Needs the package constriction: pip install "aezoo[compress]".
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import BaseAE, number, positive
from ..data import data_for
from ..randomness import forked_rng
from ..storage import read_json, read_tensors, write_json, write_tensors
from . import aez, exact
from .ans import Stack, checksum, coder, opened
from .bits_back import BitsBack, check_lossless, levels_of, prior_edges
from .codec_files import check_own, check_tensors, digest_of, model_hash
from .latent_tables import (
    choose_steps,
    codes_of,
    decoded,
    groups_of,
    indexed,
    make_tables,
    pop_codes,
    push_codes,
    rounded,
)
from .mosaic import channels_of, cut, for_size, joined, tile_size
from .samples import checked, restored, tensor_of

FORMAT = 1  # of codec.json
BATCH = 256
AT_ONCE = 2**15  # data values that a lossless codec holds the tables of: about 25 MB; more is not faster


class Codec:
    """A model with what is frozen about it for coding; made by `fit` or `load`.

    Lossy: the code of `encode` is rounded to a step for each latent (or channel), or is an index already, and is written by integer tables
    of frequencies counted at `fit`; `decompress` gives `decode` of it. The integers that come out are the same on every machine and
    number of threads; what a decoder of floating point makes of them may differ in the last digits (1e-6).
    Lossless: see `bits_back`; what comes out are the bits that went in, or a ValueError.

    Attributes: model; lossless; steps (G,), or None for indices; lows (G,) and tables of each group (`latent_tables`)."""

    def __init__(self, model: BaseAE, tensors: dict[str, Tensor], settings: dict[str, Any]):
        coder()
        self.model, self.tensors, self.settings = model, tensors, settings
        self.lossless = bool(settings["lossless"])
        self._bits_back: tuple[bytes, BitsBack] | None = None
        if not self.lossless:
            self.steps = tensors["steps"].numpy() if "steps" in tensors else None
            self.lows = tensors["lows"].numpy()
            ends = tensors["ends"].tolist()
            counts = tensors["counts"].numpy().astype(np.int64)
            self.tables = [counts[a:b] for a, b in zip([0, *ends], ends)]

    # ------------------------------------------------------------------------------------------------------------- fit

    @classmethod
    def fit(
        cls,
        model: BaseAE,
        data: Any,
        *,
        lossless: bool = False,
        extra: float = 0.05,
        step: float | None = None,
        samples: int = 10_000,
        progress: bool = True,
    ) -> Codec:
        """A codec for `model`, with tables of what it makes of `data` (anything that `load_data` takes; the training data).

        Args:
            lossless: bits back instead of rounded codes, for VAEs with a Gaussian posterior and the likelihood "bernoulli" (binary data) or
                "logistic_mixture" (8-bit data). Nothing is counted then: the tables come from the model.
            extra: by which fraction rounding may raise the mean squared error of reconstructions; more is smaller and worse. Not for
                models with a codebook, whose code is integers.
            step: one step for all latents, in units of the code, instead of what `extra` leads to.
            samples: most samples of `data` that are looked at.
            progress: a bar, if it takes more than two seconds.

        The global RNG and the model's mode are left as they were.
        Raises ValueError or TypeError for data, models or values that do not fit; ImportError without constriction."""
        coder()
        if not isinstance(model, BaseAE):
            raise TypeError(f"model must be a BaseAE, e.g. from aezoo.create_model; got {type(model).__name__}")
        number("extra", extra, "a number above 0", lambda v: 0 < v < math.inf)
        positive("samples", samples)
        if step is not None:
            number("step", step, "a number above 0", lambda v: 0 < v < math.inf)
        like = next(model.parameters())
        source = data_for(model.input_shape, data)
        model.likelihood.check(*source.check(model.likelihood.support))
        plan = list(torch.arange(min(samples, len(source))).split(BATCH))
        settings = {
            "format": FORMAT,
            "lossless": lossless,
            "model": model_hash(model).hex(),
            "data": source.description,
        }
        with forked_rng(like.device), model.evaluating(), torch.no_grad():
            batches = source.batches(plan, like.device, like.dtype)
            if lossless:
                some = next(iter(batches)).x
                check_lossless(model, some)
                checked(model, some, True)  # of the values that the likelihood counts?
                return cls(model, {**exact.make_tables(), "edges": prior_edges()}, settings)
            bar = _bar("codes", sum(map(len, plan)), progress)
            parts, first = [], None
            with bar:
                for batch in batches:
                    first = batch.x if first is None else first
                    parts.append(codes_of(model, batch.x))
                    bar.update(len(batch.x))
            assert first is not None
            z, groups = torch.cat(parts), groups_of(model)
            steps = None
            if not indexed(model):
                rounded(z, np.ones(int(groups.max()) + 1), groups)  # finite?
                steps = (
                    choose_steps(model, first, extra, progress)
                    if step is None
                    else np.full(int(groups.max()) + 1, float(step))
                )
        lows, tables = make_tables(rounded(z, steps, groups), groups)
        tensors = {
            "lows": torch.from_numpy(lows),
            "counts": torch.from_numpy(np.concatenate(tables).astype(np.int32)),
            "ends": torch.tensor([len(t) for t in tables]).cumsum(0),
        }
        if steps is not None:
            tensors["steps"] = torch.from_numpy(steps)
            settings |= {"extra": extra if step is None else None, "step": step}
        return cls(model, tensors, settings)

    # --------------------------------------------------------------------------------------------------- save and load

    def save(self, directory: str | Path) -> Path:
        """Writes codec.json and codec.safetensors (codec-lossless.* if it is) into a folder, a run's for instance; returns it."""
        directory = Path(directory).expanduser()
        directory.mkdir(parents=True, exist_ok=True)
        stem = _stem(self.lossless)
        write_tensors(directory / f"{stem}.safetensors", self.tensors)
        write_json(directory / f"{stem}.json", {**self.settings, "tables": self.hash.hex()})
        return directory

    @classmethod
    def load(cls, directory: str | Path, model: BaseAE | None = None, lossless: bool = False) -> Codec:
        """The codec that `save` wrote. `model`: by default the one that is saved in the same folder.

        Raises FileNotFoundError where there is none, ValueError for damaged files or a codec of another model's."""
        directory, stem = Path(directory).expanduser(), _stem(lossless)
        path = directory / f"{stem}.json"
        if not path.is_file():
            other = " (there is one of the other kind)" if (directory / f"{_stem(not lossless)}.json").is_file() else ""
            raise FileNotFoundError(
                f"{directory} holds no {path.name}{other}; aezoo.Codec.fit(...).save(...) writes it"
            )
        settings = read_json(path)
        if not isinstance(settings, dict) or settings.get("format") != FORMAT:
            got = settings.get("format") if isinstance(settings, dict) else type(settings).__name__
            raise ValueError(f"{path} has format {got!r}; this version of aezoo reads format {FORMAT}")
        if model is None:
            from ..hub import from_pretrained

            model = from_pretrained(directory)
        if settings.get("model") != model_hash(model).hex():
            raise ValueError(
                f"{path} was fitted to other weights than this {model.name}'s; fit it again: aezoo.Codec.fit"
            )
        tensors, _ = read_tensors(directory / f"{stem}.safetensors")
        sums = settings.pop("tables", None)
        check_tensors(tensors, settings, model, path)
        codec = cls(model, tensors, settings)
        if sums != codec.hash.hex():
            raise ValueError(
                f"{path} is damaged: the tables in {stem}.safetensors are not those that it was saved with"
            )
        return codec

    @property
    def hash(self) -> bytes:
        """sha256 of all that coding depends on beside the weights."""
        return digest_of(self.tensors, {"format": FORMAT, "version": aez.VERSION, "lossless": self.lossless})

    # ---------------------------------------------------------------------------------------------------------- coding

    def compress(self, x: Any, *, together: int = 64, progress: bool = True) -> bytes:
        """Samples x (N, *input_shape), a tensor or array, as bytes: what an .aez file holds.

        8-bit integers stand for [0, 1], as everywhere, and a lossless codec gives them back as such. `together`: samples that a lossless
        codec codes side by side, fewer where they are large. Raises TypeError or ValueError for what the model does not take:
        shapes, NaN, values out of range or, lossless, between the 256 (or 2) values."""
        x, as_bytes = checked(self.model, x, self.lossless)
        return self._write(x, as_bytes, None, positive("together", together), progress)

    def compress_picture(self, x: Any, *, together: int = 64, progress: bool = True) -> bytes:
        """One picture x (C, H, W) of any size, as bytes. A lossy model that is convolutional throughout takes it whole (up to 2 megapixels),
        others in tiles of their input's size, filled up at the edge."""
        channels = channels_of(self.model.input_shape)
        if channels is None:
            raise ValueError(
                f"{self.model.name} takes samples of shape {self.model.input_shape}, which are no pictures of 1 or 3 channels"
            )
        x = tensor_of(x)
        if x.dim() != 3 or x.shape[0] != channels or 0 in x.shape:
            raise ValueError(f"the picture has shape {tuple(x.shape)}; this model takes ({channels}, height, width)")
        height, width = x.shape[1:]
        size = (self.model.input_shape[-2], self.model.input_shape[-1])
        size = size if self.lossless else tile_size(self.model, height, width)
        tiles, sized = cut(x, size), self._sized(size)
        tiles, as_bytes = checked(sized, tiles.view(len(tiles), *sized.input_shape), self.lossless)
        return self._write(tiles, as_bytes, (height, width), positive("together", together), progress)

    def decompress(self, data: bytes, *, progress: bool = True, what: str = "these bytes") -> Tensor:
        """What `compress` was given, (N, *input_shape), or its picture (C, H, W): exactly if lossless, else as the model decodes it.

        `what` names the data in errors. Raises ValueError for foreign, truncated and damaged bytes, another format version, model or codec."""
        c = aez.read(data, what)
        check_own(c, self, what)
        try:
            x = self._read(c, progress)
        except (ValueError, OverflowError, IndexError) as error:
            raise ValueError(f"{what}: damaged, or computed otherwise than here: {error}") from None
        if c.picture is None:
            return x
        channels = channels_of(self.model.input_shape) or 1
        return joined(x.reshape(len(x), channels, *c.shape[-2:]), *c.picture)

    # ------------------------------------------------------------------------------------------------------- internals

    def _sized(self, size: tuple[int, ...]) -> BaseAE:
        """The model for tiles of this (height, width)."""
        found = for_size(self.model, (size[0], size[1]))
        if found is None:
            raise ValueError(f"{self.model.name} does not decode pictures of {size[0]}x{size[1]}")
        return found

    def _write(
        self, x: Tensor, as_bytes: bool, picture: tuple[int, int] | None, together: int, progress: bool
    ) -> bytes:
        shape, used, decoded_sum = tuple(x.shape[1:]), 0, 0
        bar = _bar("compress", len(x), progress)
        with bar:
            if self.lossless:
                together = min(together, max(1, AT_ONCE // math.prod(shape)))
                integers = x.cpu().numpy()
                payload, used = self._lossless().encode(integers, together, bar)
                decoded_sum = checksum(integers.astype("<i4").tobytes())
            else:
                model = self._sized(shape[-2:]) if picture else self.model
                groups, stack, parts = groups_of(model), Stack(), []
                device = next(model.parameters()).device
                with model.evaluating():
                    for part in x.split(BATCH):
                        parts.append(rounded(codes_of(model, part.to(device)), self.steps, groups))
                        bar.update(len(part))
                push_codes(stack, np.concatenate(parts), groups, self.lows, self.tables)
                payload, together = stack.payload()[0], 0
        names = model_hash(self.model), self.hash
        return aez.write(
            aez.Container(self.lossless, as_bytes, *names, len(x), shape, picture, used, together, decoded_sum, payload)
        )

    def _read(self, c: aez.Container, progress: bool) -> Tensor:
        bar = _bar("decompress", c.samples, progress)
        stack = opened(c.payload, self.lossless, c.used)
        with bar:
            if self.lossless:
                integers = self._lossless().decode(stack, c.samples, c.together, bar)
                if checksum(integers.astype("<i4").tobytes()) != c.decoded:
                    raise ValueError("the CRC-32 of what was decoded is not that of what was coded")
                dtype = torch.uint8 if c.bytes_in else next(self.model.parameters()).dtype
                levels = levels_of(self.model.likelihood)
                return restored(torch.from_numpy(integers), levels, c.bytes_in, dtype)
            model = self._sized(c.shape[-2:]) if c.picture else self.model
            q = pop_codes(stack, c.samples, groups_of(model), self.lows, self.tables)
            if not stack.is_fresh():
                raise ValueError("there are more bits than symbols")
            out = []
            with model.evaluating():
                for begin in range(0, c.samples, BATCH):
                    out.append(decoded(model, q[begin : begin + BATCH], self.steps).cpu())
                    bar.update(len(out[-1]))
            return torch.cat(out)

    def _lossless(self) -> BitsBack:
        weights = model_hash(self.model)
        if self._bits_back is None or self._bits_back[0] != weights:  # they may have been trained since
            self._bits_back = weights, BitsBack(self.model, {k: v.double() for k, v in self.tensors.items()})
        return self._bits_back[1]


def _stem(lossless: bool) -> str:
    return "codec-lossless" if lossless else "codec"


def _bar(what: str, total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=" samples", unit_scale=True, delay=2, leave=False, disable=not progress)
