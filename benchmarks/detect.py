"""Anomaly detection in tables: AEDetector beside PCA, isolation forest, LOF, kNN and PyOD's AutoEncoder and VAE, all in one run.

    python benchmarks/detect.py --data FOLDER                  all sets of the folder
    python benchmarks/detect.py --data FOLDER --sets small     a few small ones, minutes
    python benchmarks/detect.py --render                       the tables again, from what was measured

FOLDER holds ADBench's classical sets as NUMBER_NAME.npz with X (N, F) and y (N,), 1 = abnormal. One-class setting: detectors are
trained on normal rows alone. Two protocols:

    half     the first half of the normal rows, in the file's order, trains; the others and all abnormal rows are the test (as in
             DTE, arXiv:2305.18593, whose tables hold the figures that are published for these sets)
    clean    equal rows are joined to one first (rows that are both normal and abnormal are dropped); then a random half of the
             normal ones trains, anew for each seed, so that no test row is a training row

Sets of more than 10,000 rows are cut to a random 10,000 by the seed, before all else, as ADBench does; the same rows for every
method.

AEDetector has one configuration, its defaults, for all sets. They were chosen on `clean` of every third set by number
(DEVELOPMENT below), but for one thing: that the ensemble takes the reconstruction error, too, was decided after two seeds of all
sets had been seen. Figures are given for development sets and the others apart. All sides use one thread; columns are
standardised by the training rows for all (PyOD's nets and AEDetector do so themselves). kNN: mean distance to 5 neighbours, as
in the published tables, and to 3, as many as AEDetector takes; PCA: squared error behind the components with 90 % of the
variance, and probabilistic PCA's likelihood (scikit-learn's `score_samples`) with as many; LOF: 20 neighbours; isolation forest and PyOD's nets: their defaults. Results are written after every fit to
detect.json, from where a run goes on. On a machine with other work, the seconds of the processor are the ones to compare: each side runs one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
CAP = 10_000
PROTOCOLS = ("half", "clean")
METHODS = {
    "AEDetector": "ours", "kNN": "ours", "kNN, k=3": "ours", "PCA": "ours", "PCA, likelihood": "ours", "IsolationForest": "ours", "LOF": "ours",
    "PyOD AutoEncoder": "pyod", "PyOD VAE": "pyod",
}  # fmt: skip
DEVELOPMENT = (
    "1_ALOI", "7_Cardiotocography", "11_donors", "15_Hepatitis", "19_landsat", "24_mnist", "29_Pima", "33_skin", "37_Stamps",
    "42_WBC", "45_wine",
)  # fmt: skip
SMALL = ("4_breastw", "14_glass", "15_Hepatitis", "21_Lymphography", "37_Stamps", "39_vertebral", "42_WBC", "45_wine")


# ---------------------------------------------------------------------------------------------------------------- data


def split(X: np.ndarray, y: np.ndarray, protocol: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(training rows, test rows, test labels) of a set X (N, F), y (N,)."""
    draw = np.random.default_rng(seed)
    X, y = np.asarray(X, dtype=np.float64), np.asarray(y).astype(int).ravel()
    if len(X) > CAP:
        kept = np.sort(draw.permutation(len(X))[:CAP])  # in the file's order
        X, y = X[kept], y[kept]
    if protocol == "clean":
        X, y = distinct(X, y)
        order = draw.permutation(len(X))
        X, y = X[order], y[order]
    normal = np.flatnonzero(y == 0)
    train = normal[: len(normal) // 2]
    test = np.setdiff1d(np.arange(len(X)), train)
    return X[train], X[test], y[test]


def distinct(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row once; rows with both labels not at all."""
    rows, inverse = np.unique(X, axis=0, return_inverse=True)
    low, high = np.full(len(rows), 2), np.full(len(rows), -1)
    np.minimum.at(low, inverse.ravel(), y)
    np.maximum.at(high, inverse.ravel(), y)
    one = low == high
    return rows[one], low[one]


def read(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(data / f"{name}.npz") as file:
        return file["X"], file["y"]


def names_in(data: Path) -> list[str]:
    return sorted((p.stem for p in data.glob("*.npz")), key=lambda n: (int(n.split("_")[0]), n))


# ------------------------------------------------------------------------------------------------------------- methods


def fitted(method: str, X: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Trains on X and returns what scores rows, high = abnormal."""
    if method == "PyOD AutoEncoder":
        from pyod.models.auto_encoder import AutoEncoder

        return AutoEncoder(random_state=seed, device="cpu", verbose=0).fit(X).decision_function
    if method == "PyOD VAE":
        from pyod.models.vae import VAE

        return VAE(random_state=seed, device="cpu", verbose=0).fit(X).decision_function
    if method == "AEDetector":
        from aezoo.sklearn import AEDetector

        detector = AEDetector(random_state=seed, device="cpu").fit(X)
        return lambda rows: -detector.score_samples(rows)
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(X)
    inside = scaler.transform(X)
    score = baseline(method, inside, seed)
    return lambda rows: score(scaler.transform(rows))


def baseline(method: str, X: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Scikit-learn's, on standardised rows."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

    if method.startswith("kNN"):
        index = NearestNeighbors(n_neighbors=min(3 if method == "kNN, k=3" else 5, len(X))).fit(X)
        return lambda rows: index.kneighbors(rows)[0].mean(1)
    if method == "PCA, likelihood":
        density = PCA(0.9, svd_solver="full").fit(X)
        return lambda rows: -density.score_samples(rows)
    if method == "PCA":
        pca = PCA(0.9, svd_solver="full").fit(X)
        return lambda rows: np.square(rows - pca.inverse_transform(pca.transform(rows))).sum(1)
    if method == "LOF":
        lof = LocalOutlierFactor(n_neighbors=min(20, len(X) - 1), novelty=True).fit(X)
        return lambda rows: -lof.score_samples(rows)
    forest = IsolationForest(random_state=seed).fit(X)
    return lambda rows: -forest.score_samples(rows)


def measure(method: str, X: np.ndarray, rows: np.ndarray, y: np.ndarray, seed: int) -> dict[str, Any]:
    """One fit and its figures."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    began, cpu = time.perf_counter(), time.process_time()
    score = fitted(method, X, seed)
    trained, cpu_trained = time.perf_counter(), time.process_time()
    scores = np.asarray(score(rows), dtype=np.float64).ravel()
    done, cpu_done = time.perf_counter(), time.process_time()
    scores = np.nan_to_num(scores, nan=0.0, posinf=np.finfo(float).max)
    return {
        "auroc": float(roc_auc_score(y, scores)), "aupr": float(average_precision_score(y, scores)),
"fit_s": trained - began, "score_s": done - trained, "fit_cpu_s": cpu_trained - cpu, "score_cpu_s": cpu_done - cpu_trained,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- a process of its own


def work(o: argparse.Namespace) -> None:
    """One set, some methods: a line of JSON for each fit that is asked for on standard input, as (protocol, seed, method)."""
    import torch

    torch.set_num_threads(1)
    wanted = json.loads(sys.stdin.read())
    X, y = read(o.data, o.worker)
    noise = np.random.default_rng(0).normal(size=(64, 3))
    for method in {m for _, _, m in wanted}:
        fitted(method, noise, 0)(noise)  # imports and first calls are no part of anybody's time
    for protocol, seed, method in wanted:
        train, test, labels = split(X, y, protocol, seed)
        found = measure(method, train, test, labels, seed)
        told = {
            "set": o.worker,
            "protocol": protocol,
            "seed": seed,
            "method": method,
            "train": len(train),
            "test": len(test),
        }
        print("RESULT " + json.dumps({**told, "features": X.shape[1], "rows": len(X), **found}), flush=True)


def results_of(python: str, o: argparse.Namespace, name: str, wanted: list[Any]) -> Iterator[dict[str, Any]]:
    """What a worker finds, as it finds it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [python, str(HERE / "detect.py"), "--data", str(o.data), "--worker", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(wanted))
        process.stdin.close()
        for line in process.stdout:
            if line.startswith("RESULT "):
                yield json.loads(line.removeprefix("RESULT "))
    if process.returncode:
        raise RuntimeError(f"the worker for {name} ({python}) ended with code {process.returncode}")


# ------------------------------------------------------------------------------------------------------------- the run


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with ADBench's NAME.npz")
    parser.add_argument("--sets", default="all", help="all, small, development, or names with commas between")
    parser.add_argument("--protocols", default=",".join(PROTOCOLS))
    parser.add_argument("--methods", default=";".join(METHODS), help="with semicolons between")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--peer-seeds", type=int, default=None, help="fewer seeds for PyOD's nets")
    parser.add_argument("--envs", type=Path, default=HERE / ".envs", help="environments of the peers (envs.py)")
    parser.add_argument("--out", type=Path, default=HERE / "detect.json")
    parser.add_argument("--again", default="", help="methods that are measured anew, with semicolons between")
    parser.add_argument("--note", default=None, help="what else a reader of the tables should know of this run")
    parser.add_argument("--render", action="store_true", help="only write the tables")
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    o = parse()
    if o.worker:
        work(o)
        return
    from detect_tables import environment, render

    kept: dict[str, Any] = json.loads(o.out.read_text()) if o.out.is_file() else {"results": []}
    if not o.render:
        if o.data is None or not names_in(o.data):
            sys.exit(f"--data {o.data}: no NAME.npz there; it takes the folder with ADBench's classical sets")
        run(o, kept, environment)
    if o.note is not None:
        kept["note"] = o.note
        write(o.out, kept)
    text = render(kept)
    o.out.with_name("DETECT.md").write_text(text)
    print(text)


def run(o: argparse.Namespace, kept: dict[str, Any], environment: Callable[..., Any]) -> None:
    """Everything that is asked for and not there yet, set by set, all methods of a set behind each other."""
    from tqdm import tqdm

    methods, protocols = [m.strip() for m in o.methods.split(";")], o.protocols.split(",")
    for kind, given, known in (("method", methods, METHODS), ("protocol", protocols, PROTOCOLS)):
        if odd := [g for g in given if g not in known]:
            sys.exit(f"no {kind} {odd[0]!r}; there are: {', '.join(known)}")
    every = names_in(o.data)
    chosen = {"all": every, "small": SMALL, "development": DEVELOPMENT}.get(o.sets) or o.sets.split(",")
    if odd := [n for n in chosen if n not in every]:
        sys.exit(f"no set {odd[0]!r} in {o.data}; there are: {', '.join(every)}")
    pythons = {"ours": sys.executable}
    if any(METHODS[m] == "pyod" for m in methods):
        from envs import make

        make("base", o.envs)
        pythons["pyod"] = make("pyod", o.envs)["python"]
    kept["environment"] = environment(pythons)
    again = {m for m in o.again.split(";") if m}
    kept["results"] = [r for r in kept["results"] if r["method"] not in again]
    there = {(r["set"], r["protocol"], r["seed"], r["method"]) for r in kept["results"]}
    seeds = {m: range(o.seeds if METHODS[m] == "ours" or o.peer_seeds is None else o.peer_seeds) for m in methods}
    plan = [(n, p, s, m) for n in chosen for m in methods for p in protocols for s in seeds[m]]
    plan = [job for job in plan if job not in there]
    with tqdm(total=len(plan), desc="fits") as bar:
        for name in chosen:
            for side, python in pythons.items():
                wanted = [[p, s, m] for n, p, s, m in plan if n == name and METHODS[m] == side]
                for result in results_of(python, o, name, wanted) if wanted else ():
                    kept["results"].append(result)
                    write(o.out, kept)
                    bar.update()


def write(path: Path, kept: dict[str, Any]) -> None:
    """Whole or not at all; a line for each result."""
    draft = path.with_suffix(".part")
    rows = ",\n".join(
        json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in r.items()}) for r in kept["results"]
    )
    draft.write_text(
        f'{{"environment": {json.dumps(kept.get("environment"))},\n"note": {json.dumps(kept.get("note", ""))},\n"results": [\n{rows}\n]}}\n'
    )
    draft.replace(path)


if __name__ == "__main__":
    main()
