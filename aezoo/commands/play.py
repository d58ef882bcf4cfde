"""The command that lets one play with a model in the browser: play."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..flags import command_parser, data_options, parse, run_file


def command_play(argv: Sequence[str]) -> None:
    """Sliders for a model's code in the browser, own pictures, interpolation, noise: aezoo play RUN [--port 7860] [--data SOURCE]"""
    from ..base import positive
    from ..play import Session
    from ..play_page import imported, launch, page
    from ..runs import held_out, other_data, read_config, read_model

    parser = command_parser(
        "play",
        "Shows a page on this machine (127.0.0.1, no other machine sees it, no network is asked): move the numbers of the code, drop a "
        'picture of your own, go from one sample to another, add noise for a denoiser. Needs pip install "aezoo[play]".',
    )
    parser.add_argument("run")
    parser.add_argument("--data", default=None, help="another source of samples than the run's own held-out data")
    parser.add_argument("--port", type=int | None, default=None, help="by default the first free one from 7860 on")
    parser.add_argument("--sliders", type=int, default=8, help="at most that many numbers of the code")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    argv, options = data_options(argv)
    o = parse(parser, argv)
    positive("--sliders", o.sliders)
    if options and o.data is None:
        raise ValueError(f"--data.{next(iter(options))} goes with --data SOURCE")
    if o.port is not None and not 1 <= o.port <= 65535:
        raise ValueError(f"--port {o.port} must lie between 1 and 65535")
    folder = Path(o.run).expanduser()
    if not (folder / "config.yaml").is_file():
        run_file(o.run, "config.json")  # names the nearest folder
    imported()
    model, weights = read_model(folder)
    source = None
    if o.data is not None:
        source, what = other_data(model, o.data, options)
    else:
        try:
            source, what = held_out(read_config(folder))
        except (ValueError, TypeError, OSError, ImportError) as error:
            what = f"no samples ({' '.join(str(error).split())})"
    print(f"{model.name} of {o.run}, {weights}; {what}", flush=True)
    launch(page(Session(model, source, o.sliders)), o.port, browser=o.open)
