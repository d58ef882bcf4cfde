"""What test_processes.py compares: runs by name, the same in one process and in each of several.

Started as `python processes_worker.py FOLDER CASE...` with RANK and WORLD_SIZE set; writes FOLDER/CASE-RANK.json and .safetensors."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

import aezoo
from aezoo.storage import write_tensors
from aezoo.wholebatch import batch_axis, batch_sum, whole_batch


@aezoo.register("counting_ae")
class CountingAE(aezoo.BaseAE):
    """Keeps an average of what the whole batch sums to, as codebooks do, draws twice per sample, and compares samples."""

    def __init__(self, input_shape, latent_dim=4, **base):
        super().__init__(input_shape, latent_dim, **base)
        self.register_buffer("sums", torch.zeros(self.latent_dim))
        self.scale = nn.Parameter(torch.zeros(()))

    def bottleneck(self, h, sample):
        if self.training:
            with torch.no_grad():
                self.sums.lerp_(batch_sum(h), 0.1)
                with batch_axis(None):
                    self.sums.add_(1e-3 * torch.randn(self.latent_dim))
        rows = whole_batch(h)
        terms = {"spread": (rows - rows.mean(0)).square().mean(), "pull": (h - self.sums).square().sum(1)}
        if sample:
            with batch_axis(1):
                h = h + 0.1 * self.scale.exp() * torch.randn(2, *h.shape).mean(0)
        return h, terms

    def term_weights(self):
        return {"spread": 0.1, "pull": 0.01}


class Noisy(torch.utils.data.Dataset):
    """A data set that draws for itself."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return (self.x[i] + 0.1 * torch.rand(self.x[i].shape)).clamp(0, 1)


class Killer(torch.utils.data.Dataset):
    """Validation data that, once armed, has the process sent a SIGTERM while it is read."""

    def __init__(self, x):
        self.x, self.armed = x, False

    def arm(self):
        self.armed = True

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if self.armed and i == 9:  # the first one that the last process reads
            terminate()
        return self.x[i]


class AtStep(aezoo.Callback):
    """Does something after step 2."""

    def __init__(self, what):
        self.what = what

    def on_step(self, run):
        if run.step == 2:
            self.what()


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def fails():
    raise RuntimeError("this process is broken")


def images(n=43, size=12):
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, size, size, generator=g)


def poisoned():
    """One sample's loss overflows, on whichever process has it."""
    x = images()
    x[5] = 1e20
    return x


MLP, CONV = "mlp(widths=(32,))", "conv(widths=(4, 6))"
# (model, its keywords, fit's); 43 samples, of which a tenth is held out: the last batch of every epoch is odd, sometimes a single one
CASES = {
    "vae": ("vae", {}, {"clip": 0.5, "weight_decay": 0.01}),
    "vae_optimal": ("vae", {"likelihood": "gaussian(sigma='optimal')"}, {}),
    "vae_learned": ("vae", {"likelihood": "gaussian(sigma='learned')"}, {"accumulate": 2, "clip": 0.3}),
    "binarised": ("vae", {"likelihood": "bernoulli"}, {"binarize": "dynamic"}),
    # a bias before a batch norm has no gradient but rounding, which Adam would blow up: sgd
    "batch_norm": (
        "ae",
        {"backbone": "mlp(widths=(32,), norm='batch', dropout=0.3)"},
        {"ema": 0.9, "optimizer": "sgd"},
    ),
    "sparse_kl": ("sparse_ae", {"penalty": "kl", "weight": 0.1}, {"accumulate": 2}),
    "denoising": ("denoising_ae", {"corruption": ["gaussian(sigma=(0.0, 0.5))", "masking"]}, {"l1": 1e-3}),
    "conv": ("conv_vae", {"backbone": CONV, "corruption": "salt_and_pepper"}, {"accumulate": 2, "schedule": "cosine"}),
    "conv_norm": ("conv_ae", {"backbone": "conv(widths=(4, 6), norm='batch')"}, {"clip": 0.5, "optimizer": "sgd"}),
    "stages": ("stacked_denoising_ae", {}, {"optimizer": "sgd"}),
    "counting": ("counting_ae", {}, {"accumulate": 2}),
    # statistics, draws and figures of the whole batch, each in a way of its own
    "vq": ("vq_vae", {"num_codes": 8, "decay": 0.9, "backbone": CONV}, {}),
    "batch_topk": ("batch_topk_sae", {"k": 2, "dead_after": 20, "backbone": "linear"}, {}),
    "factor": ("factor_vae", {}, {}),
    "total_correlation": ("beta_tc_vae", {}, {}),
    "mmd": ("wae_mmd", {}, {}),
    "importance": ("iwae", {"k": 3}, {}),
    "ladder": ("ladder_vae", {"backbone": CONV, "free_bits": 3.0}, {}),
    "dataset": ("ae", {}, {"noisy": True}),
    "tiny": ("ae", {}, {"batch_size": 21, "epochs": 2}),
    "skip": ("ae", {}, {"nonfinite": "skip", "poison": True}),
    "rollback": ("ae", {}, {"nonfinite": "rollback", "poison": True}),
    "patience": ("ae", {}, {"patience": 2, "lr": 0.5, "epochs": 9}),
    "callback": ("ae", {}, {"ends": True}),
    "signal": ("vae", {}, {"signal": "step", "ema": 0.9}),
    "evaluating": ("ae", {}, {"signal": "val"}),
    "raise": ("ae", {}, {"poison": True}),
    "locked": ("ae", {}, {}),
    "taken": ("ae", {}, {}),
    "missing": ("ae", {}, {"missing": True}),
    "cannot_write": ("ae", {}, {"full": True}),
    "shard": (
        "vae",
        {"likelihood": "gaussian(sigma='learned')"},
        {"shard": True, "clip": 0.3, "accumulate": 2, "ema": 0.9},
    ),
    "shard_sgd": (
        "conv_vae",
        {"backbone": CONV},
        {"shard": True, "optimizer": "sgd", "l1": 1e-3, "weight_decay": 0.01, "lr": 1e-4},
    ),
    "shard_tied": ("tied_ae", {}, {"shard": True, "optimizer": "rmsprop(eps=1e-3)"}),
    "shard_norm": ("conv_ae", {"backbone": "conv(widths=(4, 6), norm='batch')"}, {"shard": True, "optimizer": "sgd"}),
    "shard_stages": ("stacked_denoising_ae", {}, {"shard": True, "optimizer": "sgd"}),
    "shard_skip": ("ae", {}, {"shard": True, "nonfinite": "skip", "poison": True}),
    "dies": ("ae", {}, {"dies": True, "epochs": 50}),
}


def run(case, out=None, alone=False, **more):
    """The run of a case. `alone`: as one process runs it, without the accidents of some cases."""
    name, model_options, options = CASES[case]
    options = {
        "epochs": 2,
        "batch_size": 9,
        "val": 0.1,
        "lr": 3e-3,
        "progress": False,
        "device": "cpu",
        **options,
        **more,
    }
    last = not alone and os.environ["RANK"] == "1"
    torch.manual_seed(3)
    backbone = {} if name in ("stacked_denoising_ae", "tied_ae") else {"backbone": MLP}
    model = aezoo.create_model(name, input_shape=(1, 12, 12), latent_dim=5, **{**backbone, **model_options})
    data = poisoned() if options.pop("poison", False) else images()
    data = Noisy(data) if options.pop("noisy", False) else data
    if binarize := options.pop("binarize", None):
        data = aezoo.load_data(data, binarize=binarize)
    if options.pop("ends", False):  # only the last process wants to end
        options["callbacks"] = lambda row: not (alone or last) or row["epoch"] < 2
    accident = options.pop("signal", None)
    if accident == "val":
        options["val"] = Killer(images(60))
    if accident and last:
        options["callbacks"] = AtStep(options["val"].arm if accident == "val" else terminate)
    if options.pop("dies", False) and last:
        options["callbacks"] = AtStep(fails)
    if options.pop("missing", False) and last:
        data = "there is no such file.npy"
    if options.pop("full", False) and not last:
        (Path(out) / "checkpoints").parent.mkdir()
        (Path(out) / "checkpoints").write_text("a file where the folder should be")
    if alone:
        options.pop("shard", None)
    return aezoo.fit(model, data, out=out, **options)


def written(result, folder, case, rank):
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in result.history]
    told = {"rows": rows, "stopped": result.stopped, "best": result.best.get("epoch")}
    (folder / f"{case}-{rank}.json").write_text(json.dumps(told))
    write_tensors(folder / f"{case}-{rank}.safetensors", result.model.state_dict())


def main():
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    for case in cases:
        name, _, option = case.partition(":")
        more = {"out": folder / f"{name}-run"} if option else {}
        if option == "half":
            more["max_time"] = 1e-6
        if option == "resume":
            more["resume"] = True
        try:
            result = run(name, **more)
        except (Exception, SystemExit) as error:
            if name == "dies":
                raise
            told = {"error": type(error).__name__, "said": str(error)}
            (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(told))
        else:
            written(result, folder, name, os.environ["RANK"])


if __name__ == "__main__":
    main()
