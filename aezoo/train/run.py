"""The run folder: what a run leaves behind, and what it needs to go on.

config.yaml                     what was asked for: model, data, train
metrics.jsonl                   one row per epoch
config.json, model.safetensors  the best weights by validation loss (the last ones without validation)
last/                           the last weights, and state.safetensors, from which the run goes on
pictures/                       reconstructions, samples, curves, latent map
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..storage import read_tensors, write_bytes, write_json, write_tensors

STATE = 1  # format of last/state.safetensors


class RunFolder:
    """Raises ValueError, before any training, if the folder cannot be written or holds another run."""

    def __init__(self, path: str | Path, resume: bool):
        self.path = Path(path).expanduser()
        self.last = self.path / "last"
        self.state_file = self.last / "state.safetensors"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"cannot write to out={str(path)!r}: {error.strerror or error}; choose another folder"
            ) from None
        if not self.has_state and any((self.path / name).exists() for name in ("config.json", "model.safetensors")):
            raise ValueError(
                f"out={str(path)!r} holds a saved model, which the run would overwrite; choose another folder"
            )
        if self.has_state and not resume:
            step = self.read_state()[0]["step"]
            raise ValueError(
                f"out={str(path)!r} already holds a run (at step {step}); pass resume=True (aezoo train --resume {path}) to go on with it, or choose another folder"
            )

    @property
    def has_state(self) -> bool:
        return self.state_file.is_file()

    def write_config(self, config: dict[str, Any]) -> None:
        import yaml

        write_bytes(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """The whole history: used once at the start, so that rows after the resumed step disappear."""
        write_bytes(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def append(self, row: dict[str, Any]) -> None:
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")

    def save_model(self, config: dict[str, Any], tensors: dict[str, Tensor], folder: Path | None = None) -> None:
        folder = folder or self.path
        folder.mkdir(exist_ok=True)
        write_json(folder / "config.json", config)
        write_tensors(folder / "model.safetensors", tensors, {"model": config["model"]})

    def save_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """One file, written whole or not at all: tensors, and the rest as JSON in its header."""
        self.last.mkdir(exist_ok=True)
        write_tensors(self.state_file, tensors, {"state": json.dumps({"format": STATE, **state})})

    def read_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Raises ValueError if the state is damaged or of another format."""
        tensors, metadata = read_tensors(self.state_file)
        state = json.loads(metadata.get("state", "{}"))
        if state.get("format") != STATE:
            raise ValueError(f"{self.state_file} has format {state.get('format')!r}; this version reads {STATE}")
        return state, tensors
