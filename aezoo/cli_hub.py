"""The commands that know the Hugging Face hub: push, pull, card."""

from __future__ import annotations

from collections.abc import Sequence

from .flags import command_parser, parse, run_file


def command_push(argv: Sequence[str]) -> None:
    """A run's model to the Hugging Face hub, with a card: aezoo push RUN user/name [--license mit] [--private] [--dry_run]"""
    from .hub import FILES, push

    parser = command_parser(
        "push",
        f"Uploads {', '.join(FILES)}, and nothing else, in one commit. RUN/README.md is the card if it is there (aezoo card RUN "
        "writes it); else one is written for the upload. Log in by 'hf auth login' or HF_TOKEN.",
    )
    parser.add_argument("run")
    parser.add_argument("name", help="user/name, or user/name@branch")
    parser.add_argument(
        "--license", type=str, default=None, help="as the hub spells it: mit, apache-2.0, ...; default unknown"
    )
    parser.add_argument("--private", action="store_true", help="a repository that is made now is private")
    parser.add_argument("--message", type=str, default=None, help="of the commit")
    parser.add_argument("--dry_run", action="store_true", help="check everything, and upload nothing")
    o = parse(parser, argv)
    run_file(o.run, "config.json")
    where = push(o.run, o.name, license=o.license, private=o.private, message=o.message, dry_run=o.dry_run)
    print(f"{'would be pushed' if o.dry_run else 'pushed'} to {where}: {', '.join(FILES)}")
    if not o.dry_run:
        print(f"load:     model = aezoo.from_pretrained('hf://{o.name.removeprefix('hf://')}')")


def command_pull(argv: Sequence[str]) -> None:
    """A model from the Hugging Face hub: aezoo pull user/name[@revision] [--out DIR]"""
    from .hub import FILES, pull

    parser = command_parser(
        "pull",
        f"Fetches {', '.join(FILES)}, and nothing else, and checks them. They stay in huggingface_hub's cache, where "
        "HF_HUB_OFFLINE=1 finds them, or go to --out.",
    )
    parser.add_argument("name", help="user/name, or user/name@revision: a branch, tag or commit")
    parser.add_argument("--out", default=None, help="a new or empty folder")
    o = parse(parser, argv)
    folder = pull(o.name, o.out)
    load = str(folder) if o.out else f"hf://{o.name.removeprefix('hf://')}"
    print(f"{o.name} is in {folder}")
    print(f"load:     model = aezoo.from_pretrained({load!r})")
    print(f"evaluate: aezoo evaluate {folder} --data SOURCE")


def command_card(argv: Sequence[str]) -> None:
    """A model card in the run folder, to edit before push: aezoo card RUN [--license mit] [--name user/name] [--overwrite]"""
    from .cards import write_card

    parser = command_parser(
        "card",
        "Writes RUN/README.md: what the model is, its data, its figures (of aezoo evaluate), the recipe that trains it again, how to "
        "load it, its licence.",
    )
    parser.add_argument("run")
    parser.add_argument(
        "--license", type=str, default=None, help="as the hub spells it: mit, apache-2.0, ...; default unknown"
    )
    parser.add_argument("--name", type=str, default=None, help="user/name that it will have on the hub")
    parser.add_argument("--overwrite", action="store_true", help="write over a README.md that is there")
    o = parse(parser, argv)
    run_file(o.run, "config.json")
    path = write_card(o.run, name=o.name, license=o.license, overwrite=o.overwrite)
    print(f"{path}: edit it as you like; aezoo push {o.run} {o.name or 'user/name'} uploads it")
    if o.license is None:
        print("its licence is said to be unknown, so that nobody may rely on it; --license names one")
