"""Makes aezoo/data/fashion_mini.npz from Fashion-MNIST's training split: the first 900 + 100 images of each class.

python .ci/make_fashion_mini.py ROOT      ROOT/FashionMNIST/raw/train-*-ubyte, torchvision's layout
"""

import sys
from pathlib import Path

import numpy as np

TRAIN, TEST = 900, 100


def main(root: str) -> None:
    raw = Path(root) / "FashionMNIST" / "raw"
    x = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    y = np.frombuffer((raw / "train-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    of_class = [np.flatnonzero(y == c) for c in range(10)]
    train = np.sort(np.concatenate([i[:TRAIN] for i in of_class]))
    test = np.sort(np.concatenate([i[TRAIN : TRAIN + TEST] for i in of_class]))
    out = Path(__file__).parents[1] / "aezoo" / "data" / "fashion_mini.npz"
    np.savez_compressed(out, x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {len(train)} + {len(test)} images")


if __name__ == "__main__":
    main(sys.argv[1])
