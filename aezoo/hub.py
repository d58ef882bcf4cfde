"""Models from folders, and from and to the Hugging Face hub: JSON and safetensors, nothing that can run code.

Of a hub repository four files are read or written, and no other: config.json, model.safetensors, checksums.json, README.md.
HF_HUB_OFFLINE=1 is honoured: what was fetched once is read from huggingface_hub's cache.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .base import FORMAT, BaseAE
from .priors import PRIORS
from .registry import MODELS, choice, create_model
from .storage import CHECKSUMS, CONFIG, WEIGHTS, check_weights, read_json, read_tensors, sha256, write_bytes, write_json

CARD = "README.md"
FILES = (CONFIG, WEIGHTS, CHECKSUMS, CARD)
PREFIX = "hf://"
WORD = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
)  # of a name and of a revision: never "..", no leading "-"


def from_pretrained(source: str | Path, device: str | torch.device = "cpu") -> BaseAE:
    """Reads a model that `save_pretrained` or a training run wrote; it is returned in evaluation mode on `device`.

    Args: `source`: a folder with config.json and model.safetensors, or "user/name" on the Hugging Face hub; "hf://user/name" is always
    the hub, and "hf://user/name@revision" a branch, tag or commit there.
    Raises FileNotFoundError if nothing is there, ValueError if a file is damaged (its sha256 is not the one in checksums.json, where
    there is one), of another format or of another model, or if the name is none."""
    folder = Path(source).expanduser()
    if is_hub_name(source) or not folder.is_dir():
        folder = download(str(source))
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no config.json, so it is no saved model; it holds: {_listing(folder)}")
    return load_weights(build(read_json(folder / CONFIG), folder / CONFIG), folder / WEIGHTS).to(device)


def check_config(config: Any, where: str | Path) -> None:
    """Raises ValueError unless `config` is a config.json that this version reads."""
    if not isinstance(config, dict) or not {"format", "model", "args"} <= set(config):
        raise ValueError(f"{where} is no aezoo model: it needs the keys 'format', 'model' and 'args'")
    if config["format"] != FORMAT:
        raise ValueError(f"{where} has format {config['format']!r}; this version of aezoo reads format {FORMAT}")


def build(config: Any, where: str | Path) -> BaseAE:
    """The model that a config.json describes, with fresh weights, in evaluation mode. Raises ValueError naming what is off."""
    check_config(config, where)
    if config["model"] not in MODELS:
        raise ValueError(
            f"{where} describes the model {config['model']!r}, which is not registered; import the module that defines it first"
        )
    try:
        dtype = choice("dtype", config.get("dtype", "float32"), ["float64", "float32", "bfloat16", "float16"])
        model = create_model(config["model"], **config["args"])
        if config.get("prior") is not None:  # one that `fit_prior` gave it
            model.prior = PRIORS.build(config["prior"]).settled()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    model.origin = config.get("origin")
    if not isinstance(model.origin, (dict, type(None))):
        raise ValueError(f"{where}: origin={model.origin!r} must be an object with keys")
    return model.to(getattr(torch, dtype)).eval()


def load_weights(model: BaseAE, path: str | Path) -> BaseAE:
    """Loads a safetensors file into a model of the same architecture; strict, and checked against the checksums.json beside it.
    Returns the model."""
    tensors, metadata = read_tensors(path)
    if metadata.get("model", model.name) != model.name:
        raise ValueError(
            f"{path} holds the weights of a {metadata['model']!r}, but config.json describes a {model.name!r}"
        )
    if wrong := misfits(tensors, model.state_dict()):
        raise ValueError(f"{path} does not fit the {model.name!r} in config.json: {wrong}")
    check_weights(Path(path).parent)
    model.load_state_dict(tensors)
    return model


def misfits(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What keeps `tensors` from being `wanted`, by names and shapes; an empty string if nothing does."""
    wrong = [f"{k} is missing" for k in wanted if k not in tensors]
    wrong += [f"{k} is not in the model" for k in tensors if k not in wanted]
    wrong += [
        f"{k} has shape {tuple(tensors[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted
        if k in tensors and tensors[k].shape != wanted[k].shape
    ]
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more


# ------------------------------------------------------------------------------------------------------------- hub names


class HubName(NamedTuple):
    """A repository on the hub, and which of its versions."""

    repo: str
    revision: str | None


def is_hub_name(source: str | Path) -> bool:
    """Does it say that it is one, as hf://user/name does?"""
    return isinstance(source, str) and source.lower().startswith("hf:")


def hub_name(source: str) -> HubName:
    """ "user/name", "user/name@revision", each with or without hf:// before it. Raises ValueError for anything else, with what is
    probably meant."""
    repo, at, revision = source.removeprefix(PREFIX).partition("@")
    parts = repo.split("/")
    if (
        len(parts) == 2
        and len(repo) <= 96
        and all(_fine(p) and "--" not in p for p in parts)
        and not repo.endswith(".git")
    ):
        if not at:
            return HubName(repo, None)
        if len(revision) <= 200 and all(_fine(p) for p in revision.split("/")):
            return HubName(repo, revision)
        raise ValueError(
            f"{source!r}: {revision!r} is no revision, which is a branch, tag or commit of letters, digits, '.', '_', '-' and '/', "
            f"e.g. '{PREFIX}{repo}@main'"
        )
    raise ValueError(
        f"{source!r} is no name on the hub: write '{PREFIX}user/name' or '{PREFIX}user/name@revision', in letters, digits, '.', '_' and "
        f"'-', each part beginning and ending in a letter or digit, without '..' and '--'.{_meant(source)}"
    )


def _fine(word: str) -> bool:
    return bool(WORD.fullmatch(word)) and ".." not in word


def _meant(source: str) -> str:
    """`" Did you mean 'hf://user/name'?"` for an address, blanks, slashes too many or too few."""
    text = re.sub(
        r"^(hf:|https?:)?/*((www\.)?(huggingface\.co|hf\.co)/)?(models/)?", "", source.strip(), flags=re.IGNORECASE
    )
    text = re.sub(r"/(tree|resolve|blob)/([^/]+)/?.*$", r"@\2", text)
    text = re.sub(r"\.git$", "", re.sub(r"\s+", "-", text.strip("/")))
    repo, _, revision = text.partition("@")
    parts = repo.split("/")
    fine = len(parts) == 2 and all(_fine(p) and "--" not in p for p in parts)
    if not fine or text == source.removeprefix(PREFIX) or (revision and not _fine(revision)):
        return ""
    return f" Did you mean '{PREFIX}{text}'?"


# ------------------------------------------------------------------------------------------------------------ download


def download(source: str) -> Path:
    """The folder in huggingface_hub's cache with the four files of a hub repository, fetched if need be.

    Raises ValueError for a name that is none, FileNotFoundError with both readings of `source` where there is no such thing."""
    if not is_hub_name(source) and (source.startswith((".", "/", "~")) or source.count("/") != 1):
        raise FileNotFoundError(f"no folder {source!r} (and it is no hub name, which is like 'user/name')")
    try:
        repo, revision = hub_name(source)
    except ValueError as error:
        if is_hub_name(source):
            raise
        raise FileNotFoundError(f"no folder {source!r} here, and {error}") from None
    from huggingface_hub import constants, errors, snapshot_download

    here = "" if is_hub_name(source) else f"no folder {source!r} here, and "
    version = f" at revision {revision!r}" if revision else ""
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    except errors.GatedRepoError as error:
        raise PermissionError(f"{here}the hub's {repo!r} is gated: ask for access on its page, {_TOKEN}") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{here}the hub's {repo!r} has no revision {revision or 'main'!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{here}the hub has no model {repo!r}, or it is private: {_TOKEN}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            why = f"HF_HUB_OFFLINE is set, and the cache {constants.HF_HUB_CACHE} holds no whole copy of {repo!r}{version}"
            raise FileNotFoundError(
                f"{here}{why}; unset it, or run 'aezoo pull {repo}' once where there is a network"
            ) from error
        raise FileNotFoundError(f"{here}the hub gave no model {repo!r}{version}: {_first_line(error)}") from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise FileNotFoundError(f"{here}the hub gave no model {repo!r}{version}: {_first_line(error)}") from error


_TOKEN = "then run 'hf auth login' or set HF_TOKEN"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def pull(name: str, out: str | Path | None = None) -> Path:
    """Fetches a model from the hub and checks it; returns its folder, which `from_pretrained` reads.

    Args: `name`: "user/name" or "user/name@revision", with or without hf:// before it. `out`: a new or empty folder to copy it to; by
    default it stays in huggingface_hub's cache.
    Raises ValueError for a wrong name, a folder that holds something, and files that are damaged or no model of aezoo;
    FileNotFoundError if the hub has no such model, or cannot be reached and the cache has none."""
    hub_name(name)
    target = None if out is None else Path(out).expanduser()
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"out={str(out)!r} holds something already; name a new or empty folder")
    folder = download(name if is_hub_name(name) else PREFIX + name)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise ValueError(f"{name!r} holds no {file}, so it is no model of aezoo; it holds: {_listing(folder)}")
    check_config(read_json(folder / CONFIG), f"{name}: {CONFIG}")
    read_tensors(folder / WEIGHTS)
    check_weights(folder)
    if target is None:
        return folder
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as beside:
        whole = Path(beside) / "model"
        whole.mkdir()
        for file in FILES:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, whole / file)
        if target.is_dir():
            target.rmdir()
        os.replace(whole, target)
    return target


# --------------------------------------------------------------------------------------------------------------- upload


def push(
    source: str | Path | BaseAE,
    name: str,
    *,
    license: str | None = None,
    private: bool = False,
    message: str | None = None,
    dry_run: bool = False,
) -> str:
    """Uploads a model to the hub as "user/name", with a model card; returns its address there.

    What is uploaded: config.json, model.safetensors (loaded strictly before), checksums.json and README.md, in one commit. The folder's
    README.md is taken if it has one (`write_card` writes it, and you may edit it), else a card is written for the upload.

    Args:
        source: a run folder, any folder that `save_pretrained` wrote, or a model.
        name: "user/name"; "user/name@branch" for another branch than main.
        license: as the hub spells it ("mit", "apache-2.0", ...); "unknown" by default, which the card says.
        private: of a repository that is made now; one that is there stays as it is.
        message: of the commit.
        dry_run: do everything but connect.

    Who uploads is what 'hf auth login' or HF_TOKEN say. Raises ValueError for a wrong name or licence and a folder that cannot be
    loaded, ConnectionError if the hub refuses or is not reached."""
    from .cards import check_card, model_card

    repo, branch = hub_name(name)
    with tempfile.TemporaryDirectory() as beside:
        folder = Path(beside)
        if isinstance(source, BaseAE):
            model, run = source, None
            source.save_pretrained(folder)
        else:
            run = Path(source).expanduser()
            if is_hub_name(source) or not run.is_dir():
                raise FileNotFoundError(f"no folder {str(source)!r} to push; it takes a run folder or a model")
            model = from_pretrained(run)
            for file in (CONFIG, WEIGHTS):
                shutil.copyfile(run / file, folder / file)
            write_json(folder / CHECKSUMS, {"sha256": {WEIGHTS: sha256(folder / WEIGHTS)}})
        if run is not None and (run / CARD).is_file():
            text = check_card(run / CARD, license)
        else:
            text = model_card(model, run, name=repo, license=license)
        write_bytes(folder / CARD, text.encode())
        address = f"https://huggingface.co/{repo}"
        if not dry_run:
            address = _upload(folder, repo, branch, private, message or f"{model.name} by aezoo")
    return address


def _upload(folder: Path, repo: str, branch: str | None, private: bool, message: str) -> str:
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError(f"HF_HUB_OFFLINE is set, so {repo!r} cannot be pushed; unset it")
    api = HfApi(library_name="aezoo")
    try:
        address = str(api.create_repo(repo, private=private or None, exist_ok=True, repo_type="model"))
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message=message,
            revision=branch,
            repo_type="model",
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        code = getattr(getattr(error, "response", None), "status_code", None)
        hint = f"; you may not write there: {_TOKEN} of a user who may" if code in (401, 403) else ""
        raise ConnectionError(f"the hub did not take {repo!r}: {_first_line(error)}{hint}") from error
    return address


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
