"""The command that gives a trained run a prior: fit-prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import recipes
from ..flags import command_parser, data_options, parse, run_file


def command_fit_prior(argv: Sequence[str]) -> None:
    """A prior for a trained model's codes: aezoo fit-prior RUN [--kind "gmm(components=10)"] [--data SOURCE --data.KEY VALUE]"""
    import torch

    from ..hub import from_pretrained
    from ..index_prior import IndexPrior
    from ..prior_fitting import codes, fit_prior
    from ..priors import PRIORS
    from ..runs import other_data

    parser = command_parser(
        "fit-prior",
        "Fits a density to the codes of a run's best weights and writes it into RUN with the model, which then can sample.",
    )
    parser.add_argument("run")
    parser.add_argument(
        "--kind", type=str, default="gmm", help=f"one of {', '.join(PRIORS)}; options as in 'kde(codes=1000)'"
    )
    parser.add_argument("--data", default=None, help="another source than what the run was trained on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    argv, options = data_options(argv)
    o = parse(parser, argv)
    run_file(o.run, "config.json")
    model = from_pretrained(o.run)
    if o.data is not None:
        (source, what), held = other_data(model, o.data, options), None
    else:
        source, held, what = trained_on(recipes.read(run_file(o.run, "config.yaml")))
    fit_prior(model, source, o.kind, device=o.device, seed=o.seed)
    model.cpu().save_pretrained(o.run)
    print(f"{model.prior.name} prior of {model.name} fitted to {what}; it is saved in {o.run} with the model")
    for part, of in ((source, "these codes"), (held, "the codes of what was held out")):
        if part is not None and not isinstance(model.prior, IndexPrior):
            z = codes(model, part, o.device, o.seed).to(next(model.parameters()))
            with torch.no_grad():
                value = float(model.prior.log_prob(z.view(-1, *model.latent_shape)).mean())
            print(f"mean log p(z) of {of}: {value:.4g} nats")
    print(f"new samples: aezoo sample {o.run}")


def trained_on(config: dict[str, dict[str, Any]]) -> tuple[Any, Any, str]:
    """What a run was trained on, what it held out of that (or None), and both in words."""
    from ..data import load_data

    data, train = config.get("data", {}), config.get("train", {})
    if data.get("source") is None:
        raise ValueError("the run's data was given in Python; pass --data")
    source = load_data(data)
    if isinstance(train.get("val"), float):
        kept, held = source.split(train["val"], train.get("seed", 0))
        return kept, held, f"the part of {data['source']} that it was trained on"
    return source, None, f"all of {data['source']}, which it was trained on"
