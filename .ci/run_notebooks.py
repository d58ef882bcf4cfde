#!/usr/bin/env python3
"""Runs every notebook in quick mode from a wheel in an environment of its own, and says how long each takes.

    python3 .ci/run_notebooks.py [--full] [NAME ...]

The wheel is built from the tree, installed with the extra `notebooks` into a new virtual environment, and the notebooks run in an empty
folder, so that nothing of the source tree is seen. `--full`: as they were committed, which takes minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = """
import sys, time
import aezoo, nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

print(f"aezoo {aezoo.__version__} from {aezoo.__file__}", flush=True)
failed = 0
for number, path in enumerate(sys.argv[2:]):
    began = time.perf_counter()
    folder = f"{sys.argv[1]}/{number}"
    __import__("os").makedirs(folder)
    try:
        NotebookClient(nbformat.read(path, 4), timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
        said = "ok"
    except CellExecutionError as error:
        said, failed = f"FAILED: {error}", failed + 1
    print(f"{path.rpartition('/')[2]:32} {time.perf_counter() - began:6.1f} s  {said}", flush=True)
sys.exit(failed > 0)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as 08 or 08_fine_tuning; all by default")
    parser.add_argument("--full", action="store_true", help="not in quick mode")
    options = parser.parse_args()
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    chosen = [p for p in notebooks if not options.names or any(p.stem.startswith(n) for n in options.names)]
    if not chosen:
        parser.error(
            f"no notebook begins with {', '.join(options.names)}; there are {', '.join(p.stem for p in notebooks)}"
        )
    with tempfile.TemporaryDirectory() as work:
        venv.create(f"{work}/env", with_pip=True)
        python = f"{work}/env/bin/python"
        subprocess.run([python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", f"{work}/wheel", str(ROOT)], check=True)
        wheel = next(Path(work, "wheel").glob("aezoo-*.whl"))
        subprocess.run([python, "-m", "pip", "install", "-q", f"{wheel}[notebooks]"], check=True)
        settings = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "AEZOO_QUICK")}
        settings["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel is this environment's, whatever kernels the user has
        settings |= {} if options.full else {"AEZOO_QUICK": "1"}
        command = [python, "-c", RUN, work, *map(str, chosen)]
        return subprocess.run(command, cwd=work, env=settings).returncode


if __name__ == "__main__":
    sys.exit(main())
