"""`aezoo train --from MODEL`: training that begins with the weights of a trained model, adapted to the data where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..flags import train_config
from .find import data_of


def started(argv: Sequence[str]) -> tuple[Any, Any, dict[str, Any], str] | None:
    """(model, source, settings of the training, name of the run) if `--from` is among the arguments; else None.

    Data and settings are those of recipe and flags; of the model only `--model.latent_dim` may be another than the trained one's.
    Raises ValueError for other keywords of the model, and with `--resume`, which goes on with a run and its own weights."""
    from ..hub import from_pretrained

    rest, path = list(argv), None
    for i, item in enumerate(rest):
        if item == "--from" or item.startswith("--from="):
            path = item.partition("=")[2] or (rest[i + 1] if i + 1 < len(rest) else "")
            del rest[i : i + (1 if "=" in item else 2)]
            break
    if path is None:
        return None
    if not path or path.startswith("--"):
        raise ValueError("--from needs a model: a run folder, a folder with config.json, or hf://user/name")
    given = [a.partition("=")[0] for a in rest if a.startswith(("--model", "--resume"))]
    for flag in given:
        if flag == "--resume":
            raise ValueError("--resume goes on with a run and its weights; leave --from out")
        if flag != "--model.latent_dim":
            raise ValueError(
                f"{flag}: with --from the model is the trained one; only --model.latent_dim can be another"
            )
    if (not rest or rest[0].startswith("--")) and not any(a.partition("=")[0] == "--data" for a in rest):
        raise ValueError(
            "--from needs to know what to train on: --data SOURCE, or a recipe, as in aezoo train digits --from RUN"
        )
    model = from_pretrained(path)
    config, name, _ = train_config([*rest, "--model", model.name])
    source = data_of(config)
    latents = config["model"]["latent_dim"] if given else getattr(model, "latent_dim", None)
    if source.shape != model.input_shape or latents != getattr(model, "latent_dim", None):
        model = model.adapt(input_shape=source.shape, latent_dim=latents if given else None)
    return model, source, config["train"], name
