"""The tables of detect.py: what was measured as Markdown."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from typing import Any

import numpy as np
from detect import CAP, DEVELOPMENT, METHODS, PROTOCOLS

TITLES = {
    "half": "Protocol `half`: the first half of the normal rows trains",
    "clean": "Protocol `clean`: random halves without equal rows",
}


def environment(pythons: dict[str, str]) -> dict[str, Any]:
    """Machine and versions of every side."""
    from aezoo.zoo import processor

    ask = (
        "import importlib.metadata as m, json; "
        "print(json.dumps({n: m.version(n) for n in ('torch', 'scikit-learn', 'numpy', 'pyod') if any(True for d in m.distributions(name=n))}))"
    )
    versions = {
        side: json.loads(subprocess.run([p, "-c", ask], check=True, capture_output=True, text=True).stdout)
        for side, p in pythons.items()
    }
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def render(kept: dict[str, Any]) -> str:
    results = kept["results"]
    methods = [m for m in METHODS if any(r["method"] == m for r in results)]
    machine = kept.get("environment", {})
    versions = "; ".join(
        f"{side}: " + ", ".join(f"{k} {v}" for k, v in found.items())
        for side, found in machine.get("versions", {}).items()
    )
    lines = [
        "# Anomaly detection in tables",
        "",
        "`python benchmarks/detect.py --data FOLDER`: ADBench's classical sets, one-class (trained on normal rows only), mean over seeds. Every "
        f"method sees the same rows; sets of more than {CAP:,} rows are cut to a random {CAP:,} by the seed, before all else. AEDetector has one "
        "configuration, its defaults, which were chosen on protocol `clean` of the sets marked * (every third by number), but for one thing: that the "
        "ensemble takes the reconstruction error beside the neighbours in rows and codes was decided after two seeds of all sets had been seen. What the methods are and what "
        "the protocols do is said in `detect.py`.",
        "",
        f"*{machine.get('processor')}, {machine.get('cores')} cores, one thread a side; Python {machine.get('python')}; {versions}.*",
        "",
    ]  # fmt: skip
    few = [m for m in methods if METHODS[m] == "pyod" and {r["seed"] for r in results if r["method"] == m} == {0}]
    if few:
        lines += [f"{' and '.join(few)}: one seed, for their time.", ""]
    if kept.get("note"):
        lines += [kept["note"], ""]
    for protocol in PROTOCOLS:
        some = [r for r in results if r["protocol"] == protocol]
        if some:
            lines += [f"## {TITLES[protocol]}", "", *summary(some, methods), *times(some, methods), *table(some, methods, "auroc", "AUROC"),
                      *table(some, methods, "aupr", "AUPR")]  # fmt: skip
    return "\n".join(lines) + "\n"


def cell(results: list[dict[str, Any]], name: str, method: str, key: str) -> list[float]:
    """One value for each seed."""
    return [r[key] for r in results if r["set"] == name and r["method"] == method]


def complete(results: list[dict[str, Any]], methods: list[str]) -> list[str]:
    """The sets, by number, that all methods have been through."""
    names = sorted({r["set"] for r in results}, key=lambda n: int(n.split("_")[0]))
    return [n for n in names if all(cell(results, n, m, "auroc") for m in methods)]


def summary(results: list[dict[str, Any]], methods: list[str]) -> list[str]:
    """Means over sets, with the standard deviation of that mean from seed to seed."""
    sets = complete(results, methods)
    groups = {
        f"all {len(sets)} sets": sets,
        f"the {len([s for s in sets if s not in DEVELOPMENT])} others": [s for s in sets if s not in DEVELOPMENT],
        f"{len([s for s in sets if s in DEVELOPMENT])} development sets *": [s for s in sets if s in DEVELOPMENT],
    }
    groups = {title: names for title, names in groups.items() if names}
    lines = [
        "| mean AUROC / AUPR, % | "
        + " | ".join(groups)
        + " | AEDetector's AUROC less this one's | seeds | best or equal AUROC |",
        "|---|" + "---|" * (len(groups) + 3),
    ]
    best = {n: max(np.mean(cell(results, n, m, "auroc")) for m in methods) for n in sets}
    for m in methods:
        cells = []
        for names in groups.values():
            a, p = (over_seeds(results, names, m, key) for key in ("auroc", "aupr"))
            cells.append(f"{spread(*a)} / {spread(*p)}")
        cells.append(difference(results, sets, m))
        seeds = sorted({len(cell(results, n, m, "auroc")) for n in sets})
        wins = sum(np.mean(cell(results, n, m, "auroc")) >= best[n] - 5e-4 for n in sets)
        lines.append(
            f"| {m} | " + " | ".join(cells) + f" | {'-'.join(map(str, sorted({seeds[0], seeds[-1]})))} | {wins} |"
        )
    return [
        *lines,
        "",
        "± is the standard deviation over seeds of the mean over sets (none: one seed). Differences: over the seeds that "
        "both went through, ± the standard error over sets. Best: within 0.05 points of the highest mean of a set.",
        "",
    ]


def over_seeds(results: list[dict[str, Any]], names: list[str], method: str, key: str) -> tuple[float, float]:
    """(mean, standard deviation over seeds) of the mean over sets, in per cent."""
    values = [cell(results, n, method, key) for n in names]
    seeds = min(map(len, values))
    means = 100 * np.mean([v[:seeds] for v in values], axis=0)
    return 100 * float(np.mean([np.mean(v) for v in values])), float(means.std(ddof=1)) if seeds > 1 else float("nan")


def difference(results: list[dict[str, Any]], names: list[str], method: str) -> str:
    """How much higher AEDetector's AUROC is, in points: mean over sets ± its standard error over sets, seeds paired."""
    if method == "AEDetector" or not cell(results, names[0], "AEDetector", "auroc"):
        return ""
    each = []
    for n in names:
        one, other = (
            {r["seed"]: r["auroc"] for r in results if r["set"] == n and r["method"] == m}
            for m in ("AEDetector", method)
        )
        each.append(100 * np.mean([one[s] - other[s] for s in one.keys() & other.keys()]))
    error = float(np.std(each, ddof=1)) / len(each) ** 0.5 if len(each) > 1 else float("nan")
    return f"{np.mean(each):+.2f} ± {error:.2f}"


def spread(mean: float, deviation: float) -> str:
    """Without ± where there is one seed."""
    return f"{mean:.2f}" + (f" ± {deviation:.2f}" if deviation == deviation else "")


def times(results: list[dict[str, Any]], methods: list[str]) -> list[str]:
    """Seconds of wall clock and of the processor, which other work on the machine disturbs less."""
    sets, peer = complete(results, methods), "PyOD AutoEncoder"
    columns = ("fit_s", "fit_cpu_s", "score_s", "score_cpu_s")
    mean = {m: {k: float(np.mean([np.mean(cell(results, n, m, k)) for n in sets])) for k in columns} for m in methods}
    lines = [
        "| seconds, mean over sets | fit, wall | fit, processor | score, wall | score, processor | fit time of PyOD AutoEncoder is (wall; processor) |",
        "|---|---|---|---|---|---|",
    ]
    for m in methods:
        ratio = ""
        if peer in methods:
            ratio = "; ".join(f"{mean[peer][k] / mean[m][k]:.1f}" for k in columns[:2]) + " times"
        lines.append(f"| {m} | " + " | ".join(f"{mean[m][k]:.3f}" for k in columns) + f" | {ratio} |")
    return [*lines, ""]


def table(results: list[dict[str, Any]], methods: list[str], key: str, title: str) -> list[str]:
    """A set in each row."""
    names = sorted({r["set"] for r in results}, key=lambda n: int(n.split("_")[0]))
    lines = [
        f"| {title}, % | train | test | columns | " + " | ".join(methods) + " |",
        "|---|---|---|---|" + "---|" * len(methods),
    ]
    for n in names:
        found = {m: cell(results, n, m, key) for m in methods}
        top = max(np.mean(v) for v in found.values() if v)
        cells = []
        for v in found.values():
            text = (
                "" if not v else f"{100 * np.mean(v):.1f}" + (f" ± {100 * np.std(v, ddof=1):.1f}" if len(v) > 1 else "")
            )
            cells.append(f"**{text}**" if v and np.mean(v) >= top - 5e-4 else text)
        one = next(r for r in results if r["set"] == n)
        star = " *" if n in DEVELOPMENT else ""
        lines.append(
            f"| {n.split('_', 1)[1]}{star} | {one['train']:,} | {one['test']:,} | {one['features']} | "
            + " | ".join(cells)
            + " |"
        )
    return [*lines, ""]
