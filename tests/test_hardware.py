"""What is decided before the first step, why, and what of it the steps see."""

import pytest
import torch
from conftest import fit, model_of
from torch import nn

import aezoo
from aezoo.train import hardware, loop
from aezoo.train.hardware import Hardware, settle

SMALL, WIDE, HUGE = "mlp(widths=(32,))", "mlp(widths=(2048, 2048))", "mlp(widths=(8192, 2048))"
# model, batch, steps, processes, device, compile= -> (compiled, threads of 4, CUDA graph, small, channels last, allocator), the reason
TABLE = {
    "few small steps": (SMALL, 32, 10**3, 1, "cpu", "auto", (False, 1, False, True, False, "prime"), "would save about 0 s and takes 30 s"),
    "many small steps": (SMALL, 32, 10**6, 1, "cpu", "auto", (True, 1, False, True, False, "prime"), "1,000,000 small steps: saves about 100 s"),
    "just enough steps": (SMALL, 32, 600_001, 1, "cpu", "auto", (True, 1, False, True, False, "prime"), "saves about 60 s"),
    "just too few": (SMALL, 32, 599_999, 1, "cpu", "auto", (False, 1, False, True, False, "prime"), "would save about 60 s"),
    "large steps": (WIDE, 128, 10**6, 1, "cpu", "auto", (False, None, False, False, False, "prime"), "MFLOP a step: arithmetic"),
    "the same in large batches": (SMALL, 8192, 10**6, 1, "cpu", "auto", (False, None, False, False, False, "prime"), "arithmetic"),
    "weights above 32 MB": (HUGE, 8, 100, 1, "cpu", "auto", (False, None, False, False, False, "keep"), "arithmetic"),
    "convolutions": ("conv(widths=(4,))", 8, 10**6, 1, "cpu", "auto", (True, 1, False, True, True, "prime"), "small steps"),
    "asked for": (WIDE, 128, 10, 1, "cpu", True, (True, None, False, False, False, "prime"), "compile on (as asked)"),
    "refused": (SMALL, 32, 10**6, 1, "cpu", False, (False, 1, False, True, False, "prime"), "compile off (as asked)"),
    "two processes": (SMALL, 32, 10**6, 2, "cpu", "auto", (False, 1, False, True, False, "prime"), "several processes"),
    "two processes, asked for": (SMALL, 32, 10, 2, "cpu", True, (False, 1, False, True, False, "prime"), "stays as it is written"),
    "a GPU": (WIDE, 128, 10**6, 1, "cuda", "auto", (False, None, True, False, False, "auto"), "a CUDA graph takes its place"),
    "a GPU, small steps": (SMALL, 128, 10, 1, "cuda", "auto", (False, None, True, True, False, "auto"), "a CUDA graph takes its place"),
    "a GPU, asked for": (SMALL, 128, 10, 1, "cuda", True, (True, None, False, True, False, "auto"), "compile on (as asked)"),
    "a GPU, refused": (SMALL, 128, 10, 1, "cuda", False, (False, None, False, True, False, "auto"), "compile off (as asked)"),
    "two GPUs": (SMALL, 128, 10**6, 2, "cuda", "auto", (False, None, False, True, False, "auto"), "kernels, not calls"),
    "an Apple GPU": ("conv(widths=(4,))", 8, 10**6, 1, "mps", "auto", (False, None, False, True, False, "auto"), "not on this device"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_settle(case, monkeypatch):
    backbone, batch, steps, world, device, compile, decided, reason = TABLE[case]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(hardware, "_compiler", lambda: "")
    h = Hardware(torch.device(device), "fp32", compile is True, allocator="auto", reasons={"device": "device"})
    model = aezoo.create_model("ae", input_shape=(1, 12, 12), latent_dim=4, backbone=backbone)
    settle(h, model, compile, batch, steps, world)
    assert (h.compile, h.threads, h.graph, h.small, h.channels_last, h.allocator) == decided
    assert reason in h.reason and f"compile {'on' if h.compile else 'off'} (" in h.reason
    if device == "cpu":
        assert (", 1 thread of 4: " if h.threads else ", 4 threads") in h.reason


def test_settle_without_a_compiler_and_where_every_run_is_to_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(hardware, "_compiler", lambda: "no C++ compiler found")
    h = Hardware(torch.device("cpu"), "fp32", reasons={"device": "device"})
    settle(h, model_of("ae"), "auto", 32, 10**6)
    assert not h.compile and h.threads is None and "compile off (no C++ compiler found)" in h.reason
    exact = Hardware(torch.device("cpu"), "fp32", deterministic=True, reasons={"device": "device"})
    settle(exact, aezoo.create_model("conv_ae", input_shape=(1, 12, 12), latent_dim=4), "auto", 32, 10)
    assert not exact.channels_last


@pytest.mark.parametrize(("compiled", "threads"), [(True, 1), (False, None), (False, 1), (True, None)])
def test_a_run_that_goes_on_keeps_what_was_decided(monkeypatch, compiled, threads):
    """Other choices would round differently; what is asked for now counts all the same."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    earlier = {"device": "cpu", "compile": compiled, "threads": threads}
    for steps in (10, 10**6):
        h = Hardware(torch.device("cpu"), "fp32", reasons={"device": "device"})
        settle(h, model_of("ae"), "auto", 32, steps, 1, earlier)
        assert (h.compile, h.threads) == (compiled, threads) and "(as before)" in h.reason
        assert h.kept() == earlier
    h = Hardware(torch.device("cpu"), "fp32", not compiled, reasons={"device": "device"})
    settle(h, model_of("ae"), not compiled, 32, 10, 1, earlier)
    assert h.compile is not compiled and "(as asked)" in h.reason


def test_the_reasons_are_printed(images, monkeypatch, capsys):
    seen, original = [], loop.settle

    def spy(h, *args):
        original(h, *args)
        seen.append(h)

    monkeypatch.setattr(loop, "settle", spy)
    fit(model_of("ae"), images, steps=1, progress=True)
    said = capsys.readouterr().out.splitlines()
    assert set(seen[0].reasons) == {"device", "precision", "compile", "tape"} and seen[0].reason in said


# ----------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("likelihood", ["mse", "bce", "gaussian", "bernoulli"])
@pytest.mark.parametrize(("precision", "inside"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_layers_compute_in_the_precision_and_losses_in_float32(images, monkeypatch, likelihood, precision, inside):
    """In training and in validation; weights and gradients stay in float32."""
    layers, losses, gradients = set(), set(), set()
    model = model_of("vae" if likelihood in ("gaussian", "bernoulli") else "ae", likelihood=likelihood)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, x, y: layers.add((y.dtype, m.training)))
    for p in model.parameters():
        p.register_hook(lambda g: gradients.add(g.dtype))
    original = aezoo.BaseAE.loss

    def watched(self, *args, **more):
        loss = original(self, *args, **more)
        losses.update((v.dtype, self.training) for v in (loss.total, *loss.terms.values()))
        return loss

    monkeypatch.setattr(aezoo.BaseAE, "loss", watched)
    fit(model, images, epochs=1, val=0.25, precision=precision, compile=False)
    assert layers == {(inside, True), (inside, False)}
    assert losses == {(torch.float32, True), (torch.float32, False)} and gradients == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_tf32_is_on_while_training_on_a_gpu_and_afterwards_as_it_was(deterministic, fails):
    """The switches are there without a GPU, too."""
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    h = Hardware(torch.device("cuda"), "fp32", deterministic=deterministic)
    inside = ("highest", False) if deterministic else ("high", True)

    def now():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    try:
        for before in [("highest", False), ("medium", True), ("high", False)]:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]
            try:
                with h.applied():
                    assert now() == inside
                    if fails:
                        raise KeyError
            except KeyError:
                assert fails
            assert now() == before
            with Hardware(torch.device("cpu"), "fp32").applied():
                assert now() == before
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[1]
