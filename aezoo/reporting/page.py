"""The page itself: title, figures, the sections in a row, what is missing; style and script inside."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from importlib import resources

from . import about
from .general import Section
from .material import Material


def text_of(name: str) -> str:
    """A file that lies beside this one."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def page(m: Material, sections: Sequence[Section], absent: Sequence[str]) -> str:
    """The whole HTML file."""
    from .. import __version__

    name = m.model.name if m.has_model else str(m.config.get("model", {}).get("name", "run"))
    what, paper = about.sentence(m)
    title = f"{name} · {m.folder.resolve().name}"
    figures = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for v, k in about.tiles_of(m))
    chips = "".join(f'<li class="{escape(kind)}">{escape(text)}</li>' for kind, text in about.chips(m))
    links = "".join(f'<a href="#{s.key}">{escape(s.title)}</a>' for s in sections)
    missing = ""
    if absent:
        items = "".join(f"<li>{escape(text)}.</li>" for text in absent)
        missing = f'<section class="absent" id="absent"><h2>Not on this page</h2><ul>{items}</ul></section>'
        links += '<a href="#absent">Not on this page</a>'
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    cite = f' <span class="paper">{escape(paper)}</span>' if paper else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{text_of("style.css")}</style>
</head>
<body>
<header class="top"><div class="page">
<div class="from">{escape(str(m.folder))}</div>
<h1>{escape(name)}</h1>
<p class="what">{escape(what)}{cite}</p>
<ul class="chips">{chips}</ul>
{f'<div class="figures">{figures}</div>' if figures else ""}
</div></header>
<nav><div class="page">{links}</div></nav>
<main class="page">
{"".join(_section(s) for s in sections)}
{missing}
</main>
<footer><div class="page">Written by aezoo {escape(__version__)} on {now}. This file is complete in itself.</div></footer>
<div id="tip" hidden></div>
<script>
{text_of("page.js")}</script>
</body>
</html>
"""


def _section(s: Section) -> str:
    lead = f'<p class="lead">{escape(s.lead)}</p>' if s.lead else ""
    return f'<section id="{s.key}"><h2>{escape(s.title)}</h2>{lead}{s.body}</section>\n'
