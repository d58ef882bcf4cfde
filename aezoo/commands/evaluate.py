"""The command that says how good a run is: evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import recipes
from ..flags import command_parser, data_options, parse, run_file


def command_evaluate(argv: Sequence[str]) -> None:
    """How good a run is, on held-out data: aezoo evaluate RUN [--data SOURCE --data.KEY VALUE] [--metrics "ssim,active_units"] [--log_prob 5000]"""
    from ..evaluation import evaluate, table
    from ..hub import from_pretrained
    from ..metrics import described
    from ..runs import held_out, other_data, training_split
    from ..storage import sha256, write_json

    parser = command_parser(
        "evaluate",
        "Evaluates a run's best weights: on the test split of its data, or on what it held out. Prints one table and writes it to "
        "RUN/evaluation.json.",
    )
    parser.add_argument("run", nargs="?", default=None)
    parser.add_argument("--list", action="store_true", help="say what metrics there are")
    parser.add_argument("--data", default=None, help="another source than the run's own")
    parser.add_argument(
        "--metrics",
        default=None,
        help="names or patterns with commas between, as in 'ssim,active_units' (default: what fits and is cheap)",
    )
    parser.add_argument(
        "--log_prob", type=int, default=0, help="importance samples for the log-likelihood (0: leave it out)"
    )
    parser.add_argument(
        "--samples", type=int, default=None, help="draws from the prior to compare with (default: one for each sample)"
    )
    parser.add_argument(
        "--features", default="pixels", help="what samples are compared by: pixels, fashion or inception"
    )
    parser.add_argument("--batch_size", type=int, default=512, help="samples taken at once, 512 at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    argv, options = data_options(argv)
    o = parse(parser, argv)
    if o.list:
        print(described())
        return
    if o.run is None:
        raise ValueError(
            "evaluate needs the folder of a run: aezoo evaluate runs/NAME (aezoo evaluate --list: what there is)"
        )
    run_file(o.run, "config.json")
    model = from_pretrained(o.run)
    if o.data is not None:
        source, what = other_data(model, o.data, options)
    else:
        source, what = held_out(recipes.read(run_file(o.run, "config.yaml")))
    metrics = evaluate(
        model, source, metrics=o.metrics, batch_size=o.batch_size, seed=o.seed, device=o.device, log_prob=o.log_prob,
        samples=o.samples, features=o.features, train=training_split(recipes.read(run_file(o.run, "config.yaml"))) if o.data is None else None,
    )  # fmt: skip
    print(f"{model.name} of {o.run} on {what} ({model.units} for its terms; ± standard error)")
    print(table(metrics))
    weights = sha256(run_file(o.run, "model.safetensors"))  # a card must not show figures of others
    told = {"data": what, "seed": o.seed, "weights": weights, "metrics": _without_nan(metrics)}
    write_json(Path(o.run) / "evaluation.json", told)


def _without_nan(metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """JSON has no NaN: null stands for it."""
    return {name: {k: None if v != v else v for k, v in value.items()} for name, value in metrics.items()}
