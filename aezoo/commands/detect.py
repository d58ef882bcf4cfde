"""The command that finds what is abnormal: detect."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import recipes
from ..flags import command_parser, data_options, parse, run_file


def command_detect(argv: Sequence[str]) -> None:
    """How abnormal rows or pictures are: aezoo detect RUN DATA [--score recon] [--contamination 0.05] [--out DIR]"""
    from ..hub import from_pretrained
    from ..tasks.detect import SCORES, anomaly_scores
    from ..tasks.limits import check_contamination, score_limit

    parser = command_parser(
        "detect",
        "Scores each row of DATA (high = abnormal) and flags those above a limit that comes from the run's own training data. Writes "
        "scores.csv and histogram.png; for a folder of pictures the error map of each, too.",
    )
    parser.add_argument("run")
    parser.add_argument("data", help="a file (.csv, .npy, ...), a folder of pictures, or a registered name")
    parser.add_argument("--score", default="recon", help=", ".join(SCORES))
    parser.add_argument("--reference", default=None, help="normal data (default: what the run was trained on)")
    parser.add_argument(
        "--contamination",
        default="auto",
        help="auto (2.5 robust deviations above the reference's median), or the fraction of the reference that is flagged, (0, 0.5]",
    )
    parser.add_argument("--smooth", type=float, default=0.0, help="blur of the error maps, in pixels")
    parser.add_argument("--neighbors", type=int, default=5, help="k of latent_knn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", default=None, help="folder for the results, by default RUN/detect")
    argv, options = data_options(argv)
    o = parse(parser, argv)
    limit_by = _number(o.contamination)
    check_contamination(limit_by)
    run_file(o.run, "config.json")
    model = from_pretrained(o.run)
    source, names = _samples(o.data, options, model)
    reference, held, what = _reference(o.run, o.reference, model)
    settings: dict[str, Any] = {"device": o.device, "seed": o.seed, "neighbors": o.neighbors, "progress": True}
    if reference is None and o.score in ("latent_knn", "mahalanobis"):
        raise ValueError(
            f"--score {o.score} compares with normal samples, and the run's data was given in Python; pass --reference"
        )
    scores = anomaly_scores(model, source, o.score, reference, **settings).numpy()
    normal = None
    if held is not None:
        normal = anomaly_scores(model, held, o.score, reference, **settings).numpy()
    limit = score_limit(scores if normal is None else normal, limit_by)
    flags = scores > limit
    out = Path(o.out) if o.out else Path(o.run) / "detect"
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "scores.csv", "w", newline="", encoding="utf-8") as f:
        table = csv.writer(f)
        table.writerow(["row" if names is None else "file", "score", "abnormal"])
        table.writerows(
            (i if names is None else names[i], f"{s:.9g}", int(a)) for i, (s, a) in enumerate(zip(scores, flags))
        )
    draw_histogram(out / "histogram.png", scores, normal, limit, f"{model.name}: {o.score} of {o.data}", o.score)
    print(f"{model.name} of {o.run} on {o.data}, score {o.score} (high = abnormal)")
    print(f"limit {limit:.6g}, from {what if normal is not None else 'the data itself: most of it should be normal'}")
    print(f"{int(flags.sum()):,} of {len(scores):,} abnormal ({100 * flags.mean():.3g} %)")
    worst = scores.argsort()[::-1][:5]
    print("highest: " + ", ".join(f"{'row ' + str(i) if names is None else names[i]} ({scores[i]:.4g})" for i in worst))
    _against_labels(source.labels, scores)
    wrote = [out / "scores.csv", out / "histogram.png"]
    if names is not None and len(model.input_shape) in (2, 3):
        wrote += _maps(model, source, names, scores, out, o)
    print("wrote " + ", ".join(map(str, wrote)))


def _number(text: Any) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _samples(data: str, options: dict[str, Any], model: Any) -> tuple[Any, list[str] | None]:
    """The source, and the pictures' names where it is a folder of them."""
    from ..data import load_data
    from ..data.files import IMAGE_ENDINGS

    shape, folder = model.input_shape, Path(data).expanduser()
    if not folder.is_dir():
        return load_data(data, **options), None
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        return load_data(data, **options), None
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in (1, 3)):
        raise ValueError(f"{data} holds pictures, but {model.name} takes samples of shape {shape}")
    import torch

    from ..data.images import read_image

    if other := sorted(set(options) - {"skip_corrupt"}):
        raise ValueError(
            f"--data.{other[0]}: pictures of a folder are fitted to the model; of the flags only --data.skip_corrupt does something"
        )
    size, channels = (shape[-2], shape[-1]), shape[0] if len(shape) == 3 else 1
    read, bad = {}, []
    for p in files:
        try:
            read[str(p.relative_to(folder))] = read_image(p, size, channels)
        except ValueError:
            bad.append(str(p.relative_to(folder)))
    if bad and not options.get("skip_corrupt"):
        raise ValueError(
            f"{data}: {len(bad)} of {len(files)} pictures cannot be read: {', '.join(bad)}; repair or remove them, or pass "
            "--data.skip_corrupt true"
        )
    if not read:
        raise ValueError(f"{data}: none of {len(files)} pictures can be read")
    if bad:
        print(f"left out, since they cannot be read: {', '.join(bad)}")
    return load_data(torch.stack(list(read.values())).view(-1, *shape)), list(read)


def _reference(run: str, given: str | None, model: Any) -> tuple[Any, Any, str]:
    """(normal samples to compare with, normal samples that the limit comes from, what to call these): what --reference names, or what
    the run was trained on, and what it held out, which it has not learned by heart. None where nothing is known."""
    from ..data import data_for, load_data

    if given is not None:
        source = data_for(model.input_shape, given)
        return source, source, given
    config = recipes.read(run_file(run, "config.yaml"))
    data, train = config.get("data", {}), config.get("train", {})
    if data.get("source") is None:
        return None, None, ""
    try:
        source = load_data(data)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} It is what the run was trained on; pass --reference with normal data"
        ) from None
    if isinstance(train.get("val"), float):
        rest, held = source.split(train["val"], train.get("seed", 0))
        return rest, held, f"what the run held out of {data['source']}"
    return source, source, f"what the run was trained on, {data['source']}"


def _against_labels(labels: Any, scores: Any) -> None:
    """Prints AUROC and average precision where the data has labels 0 (normal) and 1 (abnormal)."""
    if labels is None or labels.dim() != 1 or set(labels.tolist()) != {0, 1}:
        return
    from sklearn.metrics import average_precision_score, roc_auc_score

    y = labels.numpy()
    print(
        f"against its labels (1 = abnormal): AUROC {roc_auc_score(y, scores):.4f}, AUPR {average_precision_score(y, scores):.4f}"
    )


def _maps(model: Any, source: Any, names: list[str], scores: Any, out: Path, o: Any) -> list[Path]:
    """The error map of each picture as a PNG over one scale, and a picture of the most abnormal ones."""
    import torch

    from ..pictures import save_image
    from ..tasks.error_maps import draw_error_maps, error_map

    maps = error_map(model, source, smooth=o.smooth, device=o.device, progress=True)
    folder, top = out / "maps", float(maps.max()) or 1.0
    folder.mkdir(exist_ok=True)
    for target, one in zip(_targets(folder, names), maps):
        target.parent.mkdir(parents=True, exist_ok=True)
        save_image((one / top)[None], target)
    worst = torch.as_tensor(scores).argsort(descending=True)[:8]
    dtype = next(model.parameters()).dtype
    x = torch.cat([b.x for b in source.batches([worst], torch.device("cpu"), dtype)])
    with model.evaluating(), torch.no_grad():
        back = model.reconstruct(x)
    titles = [f"{Path(names[i]).name[:16]}\n{scores[i]:.4g}" for i in worst.tolist()]
    draw_error_maps(out / "worst.png", x, back, maps[worst], titles)
    return [folder, out / "worst.png"]


def _targets(folder: Path, names: list[str]) -> list[Path]:
    """Where each map goes: the picture's name as .png, with its old ending where two would be the same."""
    plain = [folder / Path(n).with_suffix(".png") for n in names]
    return [folder / f"{n}.png" if plain.count(p) > 1 else p for n, p in zip(names, plain)]


def draw_histogram(path: Path, scores: Any, normal: Any, limit: float, title: str, label: str) -> Path:
    """The scores as a histogram beside those of normal samples, and the limit; on a logarithmic axis where they spread over powers of 10."""
    import numpy as np

    from ..pictures import figure, plain_axes

    scores = scores[np.isfinite(scores)]
    normal = None if normal is None else normal[np.isfinite(normal)]
    every = np.concatenate([scores, scores[:0] if normal is None else normal, [limit]])
    low, high = float(every.min()), float(every.max())
    logarithmic = low > 0 and high > 10 * float(np.median(every))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, 61) if logarithmic else np.linspace(low, high, 61)
    fig = figure(8.0, 4.0)
    ax = fig.subplots()
    if normal is not None:
        ax.hist(
            normal,
            edges,
            weights=np.full(len(normal), 100 / len(normal)),
            color="#b9c2d0",
            label=f"reference ({len(normal):,})",
        )
    ax.hist(
        scores, edges, weights=np.full(len(scores), 100 / len(scores)), histtype="step", linewidth=1.6, color="#1f5fbf",
        label=f"this data ({len(scores):,})",
    )  # fmt: skip
    ax.axvline(limit, color="#c0392b", linestyle="--", linewidth=1.3, label=f"limit {limit:.4g}")
    if logarithmic:
        ax.set_xscale("log")
    plain_axes(ax, title, f"score: {label} (high = abnormal)", "% of samples")
    ax.legend(frameon=False, fontsize=9)
    fig.savefig(path, dpi=120)
    return path
