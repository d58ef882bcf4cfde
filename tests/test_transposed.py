"""Transposed convolutions for training on a CPU: the values and gradients of torch's own."""

import pytest
import torch
import torch.nn.functional as F

import aezoo
from aezoo.backbones import transposed
from aezoo.backbones.conv import _ToMap

ORDERS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def close(a, b):
    assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max() + 1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "kernel", "options"),
    [
        ((5, 4), 3, {"stride": 2, "padding": 1, "output_padding": (0, 1)}),
        ((3, 3), 5, {"stride": 2, "padding": 2, "output_padding": 1}),
        ((4, 2), (2, 3), {"stride": (3, 1), "padding": (0, 1)}),
        ((4, 4), 1, {}),
    ],
)
def test_values_gradients_and_second_gradients_are_those_of_torch(order, channels, size, kernel, options):
    torch.manual_seed(0)
    ours = transposed.ConvTranspose2d(6, channels, kernel, **options).to(memory_format=ORDERS[order])
    theirs = torch.nn.ConvTranspose2d(6, channels, kernel, **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, *size).contiguous(memory_format=ORDERS[order])
    found = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        y = layer(given)
        first = torch.autograd.grad(y.square().sum(), [given, *layer.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [given, *layer.parameters()])
        found.append([y, *first, *second])
    assert "_Transposed" in type(ours(x).grad_fn).__name__
    for a, b in zip(*found, strict=True):
        close(a, b)


def test_only_the_gradients_that_are_asked_for():
    layer, x = transposed.ConvTranspose2d(2, 1, 3), torch.randn(1, 2, 3, 3)
    layer(x).sum().backward()
    assert x.grad is None and layer.weight.grad is not None
    layer = transposed.ConvTranspose2d(2, 1, 3)
    layer.bias.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.bias.grad is None and layer.weight.grad is not None


@pytest.mark.parametrize(
    "case", ["evaluation", "float64", "frozen", "no bias", "bf16", "vmap", "dilated", "forward mode"]
)
def test_elsewhere_torch_computes(monkeypatch, case):
    def never(*args):
        raise AssertionError("not here")

    monkeypatch.setattr(transposed._Transposed, "apply", never)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64 if case == "float64" else torch.float32)
    layer = transposed.ConvTranspose2d(3, 1, 3, bias=case != "no bias", dilation=2 if case == "dilated" else 1).to(x)
    if case == "frozen":
        layer.requires_grad_(False)
    wanted = F.conv_transpose2d(x, layer.weight, layer.bias, dilation=layer.dilation)
    with torch.set_grad_enabled(case != "evaluation"), torch.autocast("cpu", torch.bfloat16, enabled=case == "bf16"):
        if case == "forward mode":
            with torch.autograd.forward_ad.dual_level():
                dual = layer(torch.autograd.forward_ad.make_dual(x, x))
                got = torch.autograd.forward_ad.unpack_dual(dual).tangent + layer.bias.view(-1, 1, 1)
        else:
            got = torch.vmap(lambda row: layer(row[None])[0])(x) if case == "vmap" else layer(x)
    assert torch.allclose(got.to(wanted.dtype), wanted, atol=0.1 if case == "bf16" else 1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_gradients_of_maps_lie_as_the_maps_do(order, tied):
    """Where they do not, the gradient of an activation takes ten times longer."""
    torch.manual_seed(0)
    backbone = f"conv(widths=(4, 6), tied={tied})"
    model = aezoo.create_model("ae", input_shape=(1, 12, 12), latent_dim=3, backbone=backbone)
    model.to(memory_format=ORDERS[order])
    pairs = []

    def watch(module, inputs, output):
        output.register_hook(lambda g: pairs.append((output.stride(), g.stride())))

    activations = [m for m in model.modules() if isinstance(m, torch.nn.ReLU)]
    for module in activations:
        module.register_forward_hook(watch)
    model.loss(torch.rand(2, 1, 12, 12).contiguous(memory_format=ORDERS[order])).total.backward()
    assert len(pairs) == len(activations) == 4
    assert all(map_ == gradient for map_, gradient in pairs)
    to_map = next(m for m in model.modules() if isinstance(m, _ToMap))
    assert (to_map(torch.rand(2, 54)).stride(1) == 1) is (order == "channels last")


def test_a_copy_of_the_model_looks_at_its_own_layers():
    import copy

    model = aezoo.create_model("conv_ae", input_shape=(1, 8, 8), latent_dim=3, backbone="conv(widths=(4,))")
    other = copy.deepcopy(model)
    first, second = (next(m for m in x.modules() if isinstance(m, _ToMap)) for x in (model, other))
    assert second.other is not first.other and second.other in list(other.modules())
    assert not any("other" in name for name in model.state_dict())
