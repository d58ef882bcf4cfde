"""Measures aezoo beside a tuned plain-torch loop and beside its peers, and writes RESULTS.md.

    python benchmarks/run.py                                 everything that this machine can run, 3 rounds
    python benchmarks/run.py --only w1,w3 --peers pythae     some of it
    python benchmarks/run.py --device cuda --only w1,many    the rows of a GPU
    python benchmarks/run.py --quick                         tiny sizes: does every side run? Not written to RESULTS.md
    python benchmarks/run.py --render                        RESULTS.md anew from what was measured

Each figure comes from a fresh process of a small script in `sides/`; the sides of a group take turns, and what is compared is the
ratio within each round, its median over the rounds. Environments are made on the first run (benchmarks/.envs, about 9 GB, most of it
torch), from PyPI. MNIST is read from --data in torchvision's layout; without it, fashion-mini, repeated, takes its place.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import envs
import render
from plan import GROUPS, Group, Side

HERE = Path(__file__).resolve().parent
TIME_LIMIT = 900  # seconds of one process


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="groups, comma-separated; a beginning is enough: w1,w3")
    parser.add_argument("--peers", default="all", help="all, none, or names: pythae,pyod")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round")
    parser.add_argument("--data", type=Path, default=os.environ.get("AEZOO_DATA"), help="default: AEZOO_DATA")
    parser.add_argument("--envs", type=Path, default=HERE / ".envs")
    parser.add_argument(
        "--torch", default="", help='what to give pip for torch: "torch==2.13.0+cpu torchvision==0.28.0"'
    )
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md", help="figures go beside it, as .json")
    parser.add_argument("--render", action="store_true", help="only write --out from the figures that are there")
    return parser.parse_args()


def mnist_folder(given: Path | None, work: Path, python: str) -> tuple[Path, str]:
    """A folder with MNIST/raw, and what is in it."""
    if given is not None and (given / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").is_file():
        return given, "MNIST"
    source = envs.ROOT / "aezoo" / "data" / "fashion_mini.npz"
    subprocess.run([python, HERE / "sides" / "common.py", source, work], check=True)
    return work, "fashion-mini, repeated to MNIST's size (MNIST was not at hand)"


def run_side(side: Side, options: list[str], python: str) -> dict[str, Any]:
    """One process. Returns its figures and `wall_s`, or {"error": last line} if it fails."""
    target = ["-c"] if side.script == "-c" else [str(HERE / "sides" / side.script)]
    command = [python, *target, *side.options, *([] if side.script == "-c" else options)]
    with tempfile.TemporaryDirectory() as scratch:
        environ = {**os.environ, **side.environ, "TORCHINDUCTOR_CACHE_DIR": scratch, "WANDB_MODE": "disabled"}
        environ.pop("PYTHONPATH", None)
        began = time.time()
        try:
            done = subprocess.run(
                command, env={**environ, "BENCHMARK_STARTED": repr(began)}, cwd=scratch, capture_output=True, text=True,
                timeout=TIME_LIMIT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {TIME_LIMIT} s"}
        wall = time.time() - began
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        return {"error": lines[-1][:300]}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if side.script != "-c" and not lines:
        return {"error": "printed no figures"}
    record = json.loads(lines[-1]) if lines else {}
    seconds = record.get("epoch_s")
    if seconds:  # the first epoch holds what happens once: allocation, compiling, tracing
        later = sorted(seconds[1:] or seconds)
        record |= {"epochs": seconds, "first_s": seconds[0], "epoch_s": later[len(later) // 2]}
    return {**record, "wall_s": wall}


def measure(group: Group, args: argparse.Namespace, data: Path, pythons: dict[str, Any]) -> dict[str, Any]:
    """All rounds of one group: {"sides": {name: [record of each round]}, ...}."""
    options = [*group.options, *(group.quick if args.quick else ())]
    options += ["--device", args.device, "--data", str(data)]
    sides = [s for s in group.sides if s.env in pythons and args.device.split(":")[0] in s.devices]
    records: dict[str, list[dict[str, Any]]] = {s.name: [] for s in sides}
    for round_number in range(args.rounds):
        for side in sides:
            made = pythons[side.env]
            if round_number >= side.rounds or any("error" in r for r in records[side.name]):
                continue  # what failed once is not tried again
            if "error" in made:
                record = {"error": f"environment: {made['error']}"}
            else:
                record = run_side(side, options, made["python"])
            records[side.name].append(record)
            shown = {k: record[k] for k in (*group.figures, "error") if k in record}
            text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
            print(f"{group.key:7} round {round_number + 1}/{args.rounds}  {side.name:20} {text}", flush=True)
    when = datetime.datetime.now().strftime("%Y-%m-%d")
    return {"sides": records, "rounds": args.rounds, "when": when}


def machine(args: argparse.Namespace, python: str, data: str) -> dict[str, Any]:
    """What the figures were taken on."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    ask = "import torch; print(torch.__version__, torch.get_num_threads(), torch.cuda.get_device_name() if torch.cuda.is_available() else '-', sep='|')"
    told = subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout.strip().split("|")
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory[0]) if memory else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": told[0],
        "threads": told[1] if len(told) > 1 else "",
        "gpu": told[2] if args.device.startswith("cuda") and len(told) > 2 else "",
        "data": data,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def main() -> None:
    args = parse()
    args.envs, args.data = args.envs.resolve(), Path(args.data).expanduser().resolve() if args.data else None
    figures = args.out.with_suffix(f".{args.device.split(':')[0]}.json")
    if args.render:
        render.write(args.out)
        return
    chosen = [g for g in GROUPS if not args.only or g.key.startswith(tuple(args.only.split(",")))]
    if not chosen:
        sys.exit(f"--only {args.only}: no such group; there are {', '.join(g.key for g in GROUPS)}")
    unknown = set(args.peers.split(",")) - {"all", "none", *envs.PACKAGES, "keras"}
    if unknown:
        sys.exit(f"--peers {args.peers}: no such peer: {', '.join(unknown)}; there are {', '.join(envs.PACKAGES)}")
    if args.quick:
        args.rounds = 1
    wanted = {s.env for g in chosen for s in g.sides if args.device.split(":")[0] in s.devices}
    if args.peers != "all":
        wanted = {e for e in wanted if e in ("base", "aezoo") or e.startswith(tuple(args.peers.split(",")))}
    pythons: dict[str, Any] = {}
    args.envs.mkdir(parents=True, exist_ok=True)
    for name in ["base", *sorted(wanted - {"base"})]:
        try:
            pythons[name] = envs.make(name, args.envs, args.torch.split())
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            print(f"environment {name}: {error}", flush=True)
            pythons[name] = {"error": str(error)}
    if "error" in pythons["base"]:
        sys.exit("nothing runs without torch")
    began = time.time()
    with tempfile.TemporaryDirectory() as work:
        data, told = mnist_folder(args.data, Path(work), pythons["base"]["python"])
        if "import" in [g.key for g in chosen]:  # once untimed: Python writes its compiled files, the disk is read
            for side in next(g for g in chosen if g.key == "import").sides:
                if side.env in pythons and "error" not in pythons[side.env]:
                    run_side(side, [], pythons[side.env]["python"])
        kept = json.loads(figures.read_text()) if figures.is_file() else {"groups": {}, "sizes": {}}
        kept["machine"] = machine(args, pythons["base"]["python"], told)
        kept["sizes"] |= {name: made["mb"] for name, made in pythons.items() if "mb" in made}
        for group in chosen:
            kept["groups"][group.key] = measure(group, args, data, pythons)
            if not args.quick:
                figures.write_text(json.dumps(kept, indent=1) + "\n")
    if args.quick:
        failed = [f"{k}: {n}" for k, g in kept["groups"].items() for n, r in g["sides"].items() if any("error" in x for x in r)]  # fmt: skip
        print(
            f"{time.time() - began:.0f} s; failed: {', '.join(failed) or 'none'}. Figures of tiny sizes are not written."
        )
        sys.exit(bool(failed))
    render.write(args.out)
    print(f"{time.time() - began:.0f} s; {args.out}, {figures}")


if __name__ == "__main__":
    main()
