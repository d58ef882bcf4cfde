"""Records tests/frechet.json: what torch-fidelity makes of features that `tests/test_frechet.py` makes again.

pip install torch-fidelity && python tests/record_frechet.py
"""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import torch


def features(name):
    """(real, fake) float64 by name; NumPy's RandomState is frozen, so these are the same everywhere."""
    r = np.random.RandomState({"near": 0, "far": 1, "singular": 2}[name])
    n, m, width = {"near": (400, 300, 12), "far": (200, 350, 8), "singular": (30, 40, 48)}[name]
    mix = r.randn(width, width) / width**0.5
    real, fake = r.randn(n, width) @ mix, r.randn(m, width) @ mix
    fake = {"near": 0.9 * fake + 0.1, "far": 1.5 * fake[:, ::-1] + 1.0, "singular": fake + 0.2}[name]
    return torch.from_numpy(real), torch.from_numpy(np.ascontiguousarray(fake))


def record():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    found = {}
    for name in ("near", "far", "singular"):
        real, fake = features(name)
        statistics = [fid_features_to_statistics(x) for x in (real, fake)]
        fid = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
        precision, recall = calculate_precision_recall_full(fake, real, 3)
        found[name] = {"frechet_distance": fid, "precision": precision, "recall": recall}
    found["made by"] = f"torch-fidelity {importlib.metadata.version('torch-fidelity')}"
    Path(__file__).with_name("frechet.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    print(record())
