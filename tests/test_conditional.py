"""The conditional VAE: where the condition enters, what is not known, and what is refused."""

import pytest
import torch

import aezoo


def model_of(**more):
    torch.manual_seed(0)
    more = {"backbone": "mlp(widths=(32,))", "likelihood": "bernoulli", **more}
    return aezoo.create_model("cvae", input_shape=(1, 6, 6), latent_dim=3, **more)


def halves(n=120):
    """Label 0: the left half is white, 1: the right half, 2: the upper one."""
    y = torch.arange(n) % 3
    pictures = torch.zeros(3, 1, 6, 6)
    pictures[0, :, :, :3], pictures[1, :, :, 3:], pictures[2, :, :3] = 1, 1, 1
    return pictures[y] * 0.9 + 0.05, y


@pytest.mark.parametrize(
    "backbone", ["mlp(widths=(32,))", "conv(widths=(8,))", "linear(tied=True)", "conv(widths=(8,), tied=True)"]
)
def test_condition_reaches_encoder_and_decoder(backbone):
    """Sohn et al. 2015 eq. 4: q(z|x, c) and p(x|z, c)."""
    model, x = model_of(num_classes=3, backbone=backbone), torch.rand(2, 1, 6, 6)
    torch.nn.init.normal_(model.shift.weight)  # it starts at 0
    a, b = torch.tensor([0, 0]), torch.tensor([1, 1])
    assert not torch.allclose(model.encode(x, condition=a), model.encode(x, condition=b))
    z = torch.randn(2, 3)
    assert not torch.allclose(model.decode(z, a), model.decode(z, b))
    assert not torch.allclose(model.decode(z, a), model.decode(z))
    model.loss(x, condition=a).total.backward()
    table = model.embedding.weight.grad
    assert table[0].abs().sum() > 0 and model.shift.weight.grad.abs().sum() > 0


def test_samples_follow_the_condition():
    x, y = halves()
    model = model_of(num_classes=3, drop=0.2)
    aezoo.fit(
        model, torch.utils.data.TensorDataset(x, y), epochs=40, batch_size=30, lr=1e-2, progress=False, device="cpu"
    )
    for label in range(3):
        error = (model.sample(20, condition=label) - x[label]).abs().mean()
        assert error < 0.05, (label, float(error))
    every = model.sample(6, condition=torch.tensor([0, 1, 2, 0, 1, 2]))
    assert (every - x[:6]).abs().mean() < 0.05
    free = model.sample(60, generator=torch.Generator().manual_seed(0))  # labels are drawn
    nearest = torch.cdist(free.flatten(1), x[:3].flatten(1)).argmin(1)
    assert set(nearest.tolist()) == {0, 1, 2}
    guess = model.reconstruct(x[:3])  # a model that was trained with drop reads the class off x where it is not told
    assert (guess - x[:3]).abs().mean() < 0.2
    told = model.log_prob(x[:6], 50, condition=y[:6])
    assert (told > model.log_prob(x[:6], 50, condition=(y[:6] + 1) % 3)).all()


def test_drop_takes_conditions_for_unknown_in_training_alone():
    model, x, y = model_of(num_classes=3, drop=1.0), torch.rand(5, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    torch.nn.init.normal_(model.shift.weight)

    def loss(condition):
        torch.manual_seed(1)
        if condition is None and model.training:
            torch.rand(5)  # what the other one draws to decide
        return model(x, condition=condition).terms["recon"]

    assert torch.equal(loss(y), loss(None))
    model.eval()
    assert not torch.allclose(loss(y), loss(None))
    half = model_of(num_classes=3, drop=0.5)
    table, e = half.embedding.weight, half.embed(y, 5, torch.tensor([True, False, True, True, False]))
    assert torch.equal(e, table[torch.tensor([0, 3, 2, 0, 3])])


def test_vectors():
    model, x = model_of(condition_dim=2, drop=0.0), torch.rand(4, 1, 6, 6)
    torch.nn.init.normal_(model.shift.weight)
    c = torch.randn(4, 2)
    model.loss(x, condition=c).total.backward()
    assert model.embedding.weight.grad.abs().sum() > 0
    assert not torch.allclose(model.encode(x, condition=c), model.encode(x, condition=-c))
    assert not torch.allclose(model.encode(x, condition=c), model.encode(x))
    assert (
        model.sample(4, condition=c).shape == model.sample(4, condition=c[0]).shape == model.sample(4).shape == x.shape
    )
    keep = torch.tensor([True, False, True, False])
    assert torch.equal(model.embed(c, 4, keep)[1], model.unknown) and torch.equal(
        model.embed(c, 4, keep)[0], model.embed(c, 4)[0]
    )
    for bad in (torch.randn(4, 3), torch.zeros(4, 2, dtype=torch.long), torch.zeros(4)):
        with pytest.raises(ValueError, match="condition must be floating point"):
            model.loss(x, condition=bad)


@pytest.mark.parametrize(
    "condition, words",
    [(torch.tensor([0, 1, 3]), "label 3"), (torch.tensor([0, -1, 2]), "label -1"), (torch.tensor([0.0, 1.0, 2.0]), "integer"),
     (torch.tensor([True, False, True]), "integer"), (torch.tensor([[0], [1], [2]]), "integer"), (torch.tensor([0, 1]), "3 samples"),
     ([0, 1, 2], "tensor")],
)  # fmt: skip
def test_wrong_labels(condition, words):
    model, x = model_of(num_classes=3), torch.rand(3, 1, 6, 6)
    for call in (model, model.loss, model.encode, model.reconstruct, model.log_prob):
        with pytest.raises(ValueError, match=words):
            call(x, condition=condition)


def test_labels_of_any_integer_type():
    model, x = model_of(num_classes=3), torch.rand(3, 1, 6, 6)
    wanted = model.encode(x, condition=torch.tensor([0, 1, 2]))
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(model.encode(x, condition=torch.tensor([0, 1, 2], dtype=dtype)), wanted)


def test_wrong_keywords_and_samples():
    model = model_of(num_classes=3)
    with pytest.raises(ValueError, match="label 3"):
        model.sample(2, condition=3)
    with pytest.raises(ValueError, match="2 samples"):
        model.sample(2, condition=torch.tensor([0, 1, 2]))
    for bad, words in [({"num_classes": 3, "condition_dim": 2}, "exclude"), ({"num_classes": 0}, "num_classes=0"),
                       ({"condition_dim": 0}, "condition_dim=0"), ({"drop": 1.5}, "drop=1.5"), ({"features": 0}, "features=0")]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            model_of(**bad)
    assert model_of().num_classes == 10


def test_saved_and_evaluated_with_labels(tmp_path):
    x, y = halves(30)
    model = model_of(num_classes=3)
    again = aezoo.from_pretrained(model.save_pretrained(tmp_path))
    assert torch.equal(again.sample(3, condition=1, generator=torch.Generator().manual_seed(0)),
                       model.sample(3, condition=1, generator=torch.Generator().manual_seed(0)))  # fmt: skip
    result = aezoo.evaluate(model, torch.utils.data.TensorDataset(x, y), log_prob=3, device="cpu")
    assert result["log_prob"]["mean"] < 0
