"""RESULTS.md from the figures that run.py has kept: a table of goals, then one table a group.

Only what lies between the two markers is written; what others put before or after it stays."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from plan import GOALS, GROUPS, Goal, Group

BEGIN, END = "<!-- run.py: from here ... -->", "<!-- ... to here -->"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
TITLES = {
    "epoch_s": "s/epoch",
    "first_s": "first epoch, s",
    "fit_s": "training call, s",
    "wall_s": "whole process, s",
    "ready_s": "start of the process to end of training, s",
    "score_s": "scoring, s",
    "scored_s": "trained and scored, s",
    "loss": "final loss",
    "peak_mb": "peak memory, MB",
    "imported_mb": "of it after the imports, MB",
}
Figures = dict[str, Any]


def values(group: Figures, side: str, figure: str) -> list[float | None]:
    """The figure in each round; None where there is none."""
    return [r.get(figure) for r in group["sides"].get(side, [])]


def compared(group: Figures, over: str, under: str, figure: str, difference: bool = False) -> list[float]:
    """over / under (or over - under) in each round in which both ran."""
    pairs = zip(values(group, over, figure), values(group, under, figure))
    return [a - b if difference else a / b for a, b in pairs if a is not None and b]


def spread(found: list[float], digits: int = 2) -> str:
    """Median, and the range where there is one."""
    text = f"{statistics.median(found):.{digits}f}"
    return text + (f" ({min(found):.{digits}f} to {max(found):.{digits}f})" if len(found) > 1 else "")


def goal_row(goal: Goal, kept: dict[str, Figures]) -> str:
    device = goal.devices[0]
    unit = " s" if goal.difference else "×"
    sign = {"<=": "≤", ">=": "≥"}[goal.bound]
    where = DEVICES[device]
    head = f"| {goal.work} | {goal.text} | {sign} {goal.value:g}{unit} |"
    group = kept.get(device, {}).get("groups", {}).get(goal.group)
    if group is None:
        return f"{head} not run | - | {where} |"
    where = kept[device]["machine"]["gpu"] or f"{kept[device]['machine']['cores']} CPU cores"
    failed = [r["error"] for side in (goal.over, goal.under) for r in group["sides"].get(side, []) if "error" in r]
    if failed:
        return f"{head} failed: {failed[0].replace('|', '/')} | no | {where} |"
    found = compared(group, goal.over, goal.under, goal.figure, goal.difference)
    if not found:
        return f"{head} not run | - | {where} |"
    middle = statistics.median(found)
    reached = middle <= goal.value if goal.bound == "<=" else middle >= goal.value
    return f"{head} {spread(found)}{unit} | {'yes' if reached else '**no**'} | {where} |"


def group_table(group: Group, kept: Figures, device: str) -> list[str]:
    measured = kept["groups"].get(group.key)
    if measured is None:
        return []
    base = next((n for n in measured["sides"] if n in ("tuned", "torch", "one")), next(iter(measured["sides"]), ""))
    figures = [
        f for f in group.figures if any(v is not None for n in measured["sides"] for v in values(measured, n, f))
    ]
    lead = figures[0] if figures else ""
    lines = [f"### {group.title} ({DEVICES[device]})", "", group.what, ""]
    lines.append(f"Medians of {measured['rounds']} rounds (of slow sides fewer), {measured['when']}.")
    lines += [
        "",
        "| side | " + " | ".join(TITLES[f] for f in figures) + f" | {TITLES.get(lead, '')} over {base} | rounds |",
    ]
    lines.append("|---" * (len(figures) + 3) + "|")
    for name, records in measured["sides"].items():
        wrong = [r["error"] for r in records if "error" in r]
        if wrong or not records:
            what = f"failed: {wrong[0]}" if wrong else "not run"
            lines.append(f"| {name} | {what.replace('|', '/')} |" + " |" * (len(figures) + 1))
            continue
        cells = []
        for figure in figures:
            found = [v for v in values(measured, name, figure) if v is not None]
            digits = {"peak_mb": 0, "imported_mb": 0, "loss": 4 if found and abs(found[0]) < 10 else 2}.get(figure, 3)
            cells.append(f"{statistics.median(found):.{digits}f}" if found else "-")
        ratio = compared(measured, name, base, lead)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {spread(ratio) if ratio else '-'} | {len(records)} |")
    return [*lines, ""]


def hardware(kept: Figures, device: str) -> str:
    m = kept["machine"]
    memory = f", {m['memory_gib']} GiB" if m["memory_gib"] else ""
    return (
        f"- {DEVICES[device]}: {m['gpu'] + ' beside ' if m['gpu'] else ''}{m['cpu']}, {m['cores']} cores{memory}; {m['system']}; "
        f"Python {m['python']}, torch {m['torch']}, {m['threads']} threads on every side unless it sets its own. Images: {m['data']}."
    )


def versions(kept: Figures) -> str:
    found: dict[str, set[str]] = {}
    for group in kept["groups"].values():
        for records in group["sides"].values():
            for record in records:
                for name, version in record.get("versions", {}).items():
                    found.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' and '.join(sorted(several))}" for name, several in sorted(found.items()))


def sizes(kept: Figures) -> list[str]:
    rows = {k: v for k, v in kept["sizes"].items() if k != "base"}
    if not rows:
        return []
    lines = [
        "### Install size",
        "",
        "What `pip install` adds, with all that it needs, to an environment that has torch and",
    ]
    lines += [f"torchvision ({kept['sizes'].get('base', 0):,.0f} MB); compiled Python files not counted.", ""]
    lines += ["| package | MB |", "|---|---|"]
    return [*lines, *[f"| {name} | {mb:,.0f} |" for name, mb in sorted(rows.items(), key=lambda x: x[1])], ""]


def write(out: Path) -> None:
    """Writes `out` from RESULTS.cpu.json and RESULTS.cuda.json beside it, whichever there are."""
    kept: dict[str, Figures] = {}
    for device in DEVICES:
        path = out.with_suffix(f".{device}.json")
        if path.is_file():
            kept[device] = json.loads(path.read_text())
    lines = ["## Speed, memory and size beside the peers", ""]
    lines += [
        "Written by `python benchmarks/run.py`, which says how; the other sides are in `benchmarks/sides/`. Every figure is of a"
    ]
    lines += [
        "fresh process; the sides take turns, and a ratio is the median of the ratios within each round (in brackets: the lowest and"
    ]
    lines += [
        "the highest). The first epoch is left out of s/epoch. Wall times move with the host; ratios much less.",
        "",
    ]
    lines += [hardware(k, device) for device, k in kept.items()]
    lines += [f"- {DEVICES[d]}: not run" for d in DEVICES if d not in kept]
    lines += [f"- versions ({DEVICES[d]}): {versions(k)}" for d, k in kept.items()]
    lines += ["", "### Goals", "", "| work | ratio | goal | measured | reached | where |", "|---|---|---|---|---|---|"]
    lines += [goal_row(goal, kept) for goal in GOALS]
    lines.append("")
    for device, figures in kept.items():
        for group in GROUPS:
            lines += group_table(group, figures, device)
    if "cpu" in kept:
        lines += sizes(kept["cpu"])
    text = f"{BEGIN}\n" + "\n".join(lines).rstrip() + f"\n{END}\n"
    before, after = "# Results\n\n", ""
    if out.is_file():
        old = out.read_text()
        if BEGIN in old and END in old:
            before, after = old[: old.index(BEGIN)], old[old.index(END) + len(END) + 1 :]
        else:
            before = old.rstrip() + "\n\n"
    out.write_text(before + text + after)
