"""The page of `aezoo play`: sliders for the code, a field for a picture of one's own, interpolation, noise. Shown on this machine only.

Gradio draws it. Its analytics are off, and its fonts are the browser's own, so that nothing is asked of any network.
"""

from __future__ import annotations

import os
from typing import Any

from .play import Session

CSS = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
.picture img { image-rendering: pixelated; }
footer { display: none !important; }
"""


def imported() -> Any:
    """Gradio, with everything off that would leave this machine. Raises ImportError with the line that installs it."""
    for name, value in (("GRADIO_ANALYTICS_ENABLED", "False"), ("HF_HUB_DISABLE_TELEMETRY", "1")):
        os.environ.setdefault(name, value)
    try:
        import gradio
    except ImportError:
        raise ImportError('aezoo play needs Gradio: pip install "aezoo[play]"') from None
    return gradio


def looks(gr: Any) -> Any:
    """Gradio's soft theme in the browser's own fonts."""
    plain = ["system-ui", "sans-serif"]
    return gr.themes.Soft(primary_hue="sky", font=plain, font_mono=["ui-monospace", "monospace"])


def page(session: Session) -> Any:
    """The page, a `gradio.Blocks` to `launch`."""
    gr = imported()
    with gr.Blocks(title=f"aezoo play: {session.model.name}", analytics_enabled=False) as blocks:
        size = " × ".join(map(str, session.model.input_shape))
        code = " × ".join(map(str, session.model.latent_shape))
        gr.Markdown(
            f"# {session.model.name}\nSamples of {size}, codes of {code}, {session.model.num_parameters:,} parameters."
        )
        if not session.why_no_code:
            with gr.Tab("Sliders"):
                _sliders(gr, session)
            with gr.Tab("Between two"):
                _between(gr, session)
        if session.noise is not None:
            with gr.Tab("Noise"):
                _noise(gr, session)
        elif session.why_no_code:
            gr.Markdown(session.why_no_code)
    return blocks


def told(gr: Any, work: Any) -> Any:
    """`work`, with what is wrong with an input shown on the page in place of a trace."""

    def run(*given: Any) -> Any:
        try:
            return work(*given)
        except (ValueError, TypeError) as error:
            raise gr.Error(str(error)) from None

    return run


def _picture(gr: Any, label: str, **more: Any) -> Any:
    return gr.Image(label=label, elem_classes="picture", buttons=["download", "fullscreen"], **more)


def _input(gr: Any, session: Session, name: str, number: int) -> tuple[Any, Any]:
    """(a field for a picture, the number of a held-out sample), of which there may be only one."""
    field = slider = None
    if session.images:
        field = gr.Image(
            label=f"{name}: drop a picture here",
            type="pil",
            sources=["upload", "clipboard"],
            height=240,
            elem_classes="picture",
        )
    if session.x is not None:
        slider = gr.Slider(0, len(session.x) - 1, value=number, step=1, label=f"{name}: or a held-out sample")
    return field, slider


def _sample(session: Session, picture: Any, number: Any) -> tuple[Any, int | None]:
    """What was chosen: the picture if there is one, else the sample of that number."""
    return (session.read(picture), None) if picture is not None else session.sample(number or 0)


def _round(session: Session, places: list[float]) -> list[float]:
    """Places as the sliders show them."""
    return [float(f"{round(place / step) * step:.6g}") for place, (_, _, step) in zip(places, session.ends)]


def _sliders(gr: Any, session: Session) -> None:
    ways = session.ways
    first = session.start
    state = gr.State(first)
    with gr.Row():
        with gr.Column(scale=3):
            if session.images or session.x is not None:
                field, number = _input(gr, session, "start from", 0)
            else:
                field = number = None
            seen = _picture(gr, "as the model sees it", interactive=False, visible=False, height=240)
        with gr.Column(scale=4):
            output = _picture(
                gr, "decoded", value=session.decoded(first), interactive=False, height=380, elem_id="decoded"
            )
            note = gr.Markdown("", elem_id="note")
            draw = gr.Button("a new sample from the prior") if session.model.prior is not None else None
            back = gr.Button("back to the start", variant="secondary")
        with gr.Column(scale=4):
            label = (
                gr.Dropdown([str(i) for i in range(session.classes)], value="0", label="label")
                if session.classes
                else gr.State(None)
            )
            sliders = [
                gr.Slider(low, high, value=place, step=step, label=name, elem_classes="latent")
                for (low, high, step), place, name in zip(
                    session.ends, _round(session, session.places(first)), ways.names
                )
            ]

    def move(code: list[float], chosen: Any, *places: float) -> Any:
        return session.moved(places, code, None if chosen is None else int(chosen))

    def start(picture: Any, chosen: Any, which: Any = None) -> tuple[Any, ...]:
        x, known = _sample(session, picture, which)
        mine = known if known is not None else None if chosen is None else int(chosen)
        found = session.shown(x, mine)
        text = f"mean squared error {found.error:.4g}"
        return (
            found.code,
            gr.update(value=found.input, visible=True),
            found.output,
            text,
            *_round(session, found.places),
        )

    def settle(code: list[float], chosen: Any) -> tuple[Any, ...]:
        return (
            code,
            session.decoded(code, None if chosen is None else int(chosen)),
            "",
            *_round(session, session.places(code)),
        )

    quick = {"show_progress": "hidden", "trigger_mode": "always_last"}
    for slider in sliders:
        slider.input(told(gr, move), [state, label, *sliders], output, **quick)
    if session.classes:
        label.input(told(gr, move), [state, label, *sliders], output, **quick)
    everything = [state, seen, output, note, *sliders]
    if field is not None:
        field.upload(
            told(gr, lambda picture, chosen: start(picture, chosen)),
            [field, label],
            everything,
            show_progress="minimal",
        )
    if number is not None:
        number.input(told(gr, lambda which, chosen: start(None, chosen, which)), [number, label], everything, **quick)
    at = [state, output, note, *sliders]
    back.click(told(gr, lambda chosen: settle(first, chosen)), [label], at, **quick)
    if draw is not None:
        turn = gr.State(0)
        turns = [turn, *at]
        draw.click(
            told(gr, lambda n, chosen: (n + 1, *settle(session.drawn(n), chosen))), [turn, label], turns, **quick
        )


def _between(gr: Any, session: Session) -> None:
    if not session.images and session.x is None:
        gr.Markdown("There is no data to choose two samples of; start with `--data SOURCE`.")
        return
    with gr.Row():
        with gr.Column():
            field_a, number_a = _input(gr, session, "from", 0)
        with gr.Column():
            field_b, number_b = _input(gr, session, "to", session.other)
    share = gr.Slider(0, 1, value=0.5, step=0.01, label="how far from the one to the other", elem_id="share")
    begin = (None, None)
    if session.x is not None:
        (a, la), (b, lb) = session.sample(0), session.sample(session.other)
        begin = session.between(a, b, 0.5, (la, lb))
    with gr.Row():
        middle = _picture(gr, "between", value=begin[0], interactive=False, height=260, scale=1, elem_id="between")
        row = _picture(gr, "the whole way", value=begin[1], interactive=False, height=260, scale=3)
    given = [part for part in (field_a, number_a, field_b, number_b) if part is not None]

    def mix(where: float, *chosen: Any) -> tuple[Any, Any]:
        left = list(chosen)
        found = []
        for field, number in ((field_a, number_a), (field_b, number_b)):
            picture = left.pop(0) if field is not None else None
            which = left.pop(0) if number is not None else None
            if picture is None and number is None:
                return None, None  # the other picture is still to come
            found.append(_sample(session, picture, which))
        (a, la), (b, lb) = found
        return session.between(a, b, where, (la, lb))

    for part in (share, *given):
        event = part.change if part in (field_a, field_b) else part.input
        event(told(gr, mix), [share, *given], [middle, row], show_progress="hidden", trigger_mode="always_last")


def _noise(gr: Any, session: Session) -> None:
    from .noise import WORDS

    assert session.noise is not None
    levels, word = session.levels, WORDS[session.noise.name]
    middle = levels[len(levels) // 2]
    begin: tuple[Any, Any, str] = (None, None, "") if session.x is None else _start(session, middle)
    with gr.Row():
        with gr.Column():
            field, number = _input(gr, session, "sample", 0)
            level = gr.Slider(
                0 if word != "peak" else min(levels), max(levels), value=middle, step=(max(levels) - 0) / 100,
                label=f"{session.noise.name.replace('_', ' ')} noise, {word}", elem_id="level",
            )  # fmt: skip
            seed = gr.Slider(0, 99, value=0, step=1, label="draw of the noise")
        noisy = _picture(gr, "what the model gets", value=begin[0], interactive=False, height=380)
        output = _picture(gr, "what it makes of it", value=begin[1], interactive=False, height=380, elem_id="denoised")
    note = gr.Markdown(begin[2], elem_id="errors")
    given = [part for part in (field, number) if part is not None]

    def work(where: float, draw: float, *chosen: Any) -> tuple[Any, Any, str]:
        picture = chosen[0] if field is not None else None
        if picture is None and number is None:
            return None, None, ""
        x, label = _sample(session, picture, chosen[-1])
        a, b, before, after = session.denoised(x, where, int(draw), label)
        return a, b, f"mean squared error {before:.4g} → {after:.4g}"

    for part in (level, seed, *given):
        event = part.change if part is field else part.input
        event(
            told(gr, work),
            [level, seed, *given],
            [noisy, output, note],
            show_progress="hidden",
            trigger_mode="always_last",
        )


def _start(session: Session, level: float) -> tuple[Any, Any, str]:
    x, label = session.sample(0)
    a, b, before, after = session.denoised(x, level, 0, label)
    return a, b, f"mean squared error {before:.4g} → {after:.4g}"


def launch(blocks: Any, port: int | None = None, *, browser: bool = False, wait: bool = True) -> str:
    """Shows the page on this machine, and to no other; returns its address. `port`: the first free one from 7860 on by default.
    `wait`: until Ctrl-C. Raises OSError if the port is taken."""
    gr = imported()
    _, address, _ = blocks.launch(
        server_name="127.0.0.1", server_port=port, share=False, inbrowser=browser, quiet=True, prevent_thread_lock=True,
        theme=looks(gr), css=CSS,
    )  # fmt: skip
    if wait:
        print(f"{address} (this machine only); Ctrl-C ends it", flush=True)
        blocks.block_thread()
    return str(address)
