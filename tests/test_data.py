"""Everything that `load_data` takes, and what it refuses."""

import numpy as np
import pytest
import torch
from conftest import make_images
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import aezoo
from aezoo.data import DATASETS, data_for
from aezoo.tasks import error_map

CPU = torch.device("cpu")


def picture(path, size=(10, 8), mode="RGB", value=None):
    """A picture file of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    g = np.random.default_rng(hash(path.name) % 1000)
    array = (
        g.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
        if value is None
        else np.full((size[1], size[0], 4), value, np.uint8)
    )
    Image.fromarray(array, "RGBA").convert(mode).save(path)


def first(source, n=5):
    return source.peek(n, CPU)


class Squares(Dataset):
    """Map-style, with or without labels."""

    def __init__(self, n=20, labels=True, kind="tensor"):
        self.n, self.labels, self.kind = n, labels, kind

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        x = torch.full((1, 6, 5), i / self.n)
        if self.kind == "pil":
            x = Image.fromarray((x[0] * 255).byte().numpy())
        if self.kind == "array":
            x = x.numpy()
        return (x, i % 3) if self.labels else x


# --------------------------------------------------------------------------------------------------------- in memory


@pytest.mark.parametrize("make", [lambda x, y: (x, y), lambda x, y: (x.numpy(), y.numpy()), lambda x, y: TensorDataset(x, y), lambda x, y: x,
                                  lambda x, y: TensorDataset(x), lambda x, y: x.numpy().astype(np.float64), lambda x, y: DataLoader(TensorDataset(x, y), 16)])  # fmt: skip
def test_objects(make):
    x, y = make_images(40)
    source = aezoo.load_data(make(x, y))
    assert len(source) == 40 and source.shape == (1, 12, 12)
    got = first(source)
    assert torch.allclose(got.x, x[:5]) and got.x.dtype == torch.float32
    assert got.y is None or torch.equal(got.y, y[:5])
    assert aezoo.load_data(source) is source


@pytest.mark.parametrize("kind", ["tensor", "array", "pil"])
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_datasets(kind, labels, workers):
    source = aezoo.load_data(Squares(labels=labels, kind=kind), workers=workers)
    assert source.shape == (1, 6, 5) and len(source) == 20
    order = torch.randperm(20)
    batches = list(source.batches(list(order.split(7)), CPU))
    assert torch.allclose(torch.cat([b.x for b in batches])[:, 0, 0, 0], order / 20, atol=1 / 255)
    assert (batches[0].y is not None) == labels


@pytest.mark.parametrize(
    "data",
    [Squares(), DataLoader(Squares(), batch_size=6, shuffle=False), DataLoader(Squares(labels=False), batch_size=6)],
)
def test_training_from_datasets_and_loaders(data):
    model = aezoo.create_model("ae", input_shape=(1, 6, 5), latent_dim=2)
    result = aezoo.fit(
        model,
        data,
        epochs=15,
        lr=1e-2,
        batch_size=None if isinstance(data, DataLoader) else 6,
        progress=False,
        device="cpu",
    )
    assert result.history[-1]["step"] == 60 and result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]


def test_a_dataset_and_a_tensor_give_the_same_run():
    x = torch.stack([Squares()[i][0] for i in range(20)])
    runs = []
    for data in (Squares(labels=False), x):
        torch.manual_seed(0)
        model = aezoo.create_model("ae", input_shape=(1, 6, 5), latent_dim=2)
        aezoo.fit(model, data, epochs=3, batch_size=6, progress=False, device="cpu", val=0.2)
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])


def test_singleton_axes_are_added_and_dropped():
    x, _ = make_images(8)
    for data in (x[:, 0], x):
        for shape in [(1, 12, 12), (12, 12)]:
            assert first(aezoo.load_data(data).reshaped(shape)).x.shape == (5, *shape)


def test_booleans_and_integers():
    assert torch.equal(first(aezoo.load_data(torch.tensor([[True, False], [False, True]]))).x, torch.eye(2))
    assert first(aezoo.load_data(np.arange(6, dtype=np.uint16).reshape(3, 2))).x.max() == 5
    assert first(aezoo.load_data(np.arange(6, dtype=np.uint8).reshape(3, 2))).x.max() == pytest.approx(5 / 255)


def test_binarisation():
    x = torch.full((500, 1, 4, 4), 0.3)
    dynamic = aezoo.load_data(x, binarize="dynamic")
    a, b = first(dynamic, 500).x, first(dynamic, 500).x
    assert (
        set(a.unique().tolist()) == {0.0, 1.0}
        and not torch.equal(a, b)
        and a.mean().item() == pytest.approx(0.3, abs=0.02)
    )
    static = [first(aezoo.load_data(x, binarize="static"), 500).x for _ in range(2)]
    assert torch.equal(*static) and static[0].mean().item() == pytest.approx(0.3, abs=0.02)
    assert (first(aezoo.load_data(x, binarize="threshold")).x == 0).all()


def test_binarising_checks_the_range_first():
    for mode in ("static", "threshold", "dynamic"):
        for kind in (torch.rand, lambda *s: 255 * torch.rand(*s)):
            x = kind(20, 1, 4, 4)
            model = aezoo.create_model("vae", input_shape=(1, 4, 4), likelihood="bernoulli")
            if x.max() > 1:
                with pytest.raises(ValueError, match=f"binarize='{mode}' needs data in"):
                    aezoo.fit(model, aezoo.load_data(x, binarize=mode), progress=False)
            else:
                aezoo.fit(model, aezoo.load_data(x, binarize=mode), steps=1, progress=False)


def test_options_that_do_not_apply_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 3), np.float32))
    picture(tmp_path / "p" / "a.png")
    for data, option in [
        (torch.rand(4, 3), {"size": 8}),
        (torch.rand(4, 3), {"split": "test"}),
        (tmp_path / "a.npy", {"split": "test"}),
        (tmp_path / "p", {"split": "test"}),
        ("digits", {"channels": 3}),
    ]:
        with pytest.raises(ValueError, match=f"{next(iter(option))}=.* does not apply to"):
            aezoo.load_data(data, **option)
    with pytest.raises(ValueError, match="workers=-3"):
        aezoo.load_data(Squares(), workers=-3)


def test_hidden_folders_and_tables_of_pandas(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png")
    assert len(aezoo.load_data(tmp_path)) == 1

    class Table:
        def to_numpy(self):
            return np.eye(3)

    assert first(aezoo.load_data(Table())).x.shape == (3, 3)
    assert first(aezoo.load_data(np.eye(3).astype(">f4"))).x.shape == (3, 3)


def test_double_precision_reaches_a_double_model():
    x = np.random.default_rng(0).random((8, 3))
    assert torch.equal(aezoo.load_data(x).peek(8, CPU, torch.float64).x, torch.from_numpy(x))


def test_labels_of_any_kind():
    for y in (torch.zeros(3), np.int64(3), 2.5, "cat"):
        data = [(torch.rand(2), y)] * 4
        holder = type("Holder", (Dataset,), {"__len__": lambda s: 4, "__getitem__": lambda s, i, data=data: data[i]})()
        got = first(aezoo.load_data(holder), 4)
        assert (got.y is None) == isinstance(y, str)


def test_limit_and_split():
    source = aezoo.load_data(torch.arange(20.0)[:, None], limit=10)
    train, val = source.split(0.3, seed=1)
    values = torch.cat([first(train, 99).x, first(val, 99).x]).flatten().sort().values
    assert (len(train), len(val)) == (7, 3) and torch.equal(values, torch.arange(10.0))
    assert torch.equal(first(source.split(0.3, seed=1)[1], 9).x, first(val, 9).x)


# ------------------------------------------------------------------------------------------------------ folders, files


def test_folder_without_labels(tmp_path):
    for i in range(6):
        picture(tmp_path / f"{i}.png", mode="L")
    (tmp_path / "notes.txt").write_text("not an image")
    source = aezoo.load_data(tmp_path)
    assert source.shape == (1, 8, 10) and len(source) == 6 and source.labels is None and source.x.dtype == torch.uint8


def test_folder_of_classes(tmp_path):
    for name in ("cat", "dog"):
        for i in range(3):
            picture(tmp_path / name / f"{i}.jpg")
    source = aezoo.load_data(str(tmp_path))
    assert (
        source.shape == (3, 8, 10)
        and source.labels.tolist() == [0, 0, 0, 1, 1, 1]
        and source.class_names == ["cat", "dog"]
    )


def test_folder_of_mixed_sizes_and_modes(tmp_path):
    for i, (size, mode, ending) in enumerate([((10, 8), "L", "png"), ((20, 9), "RGB", "jpg"), ((7, 30), "RGBA", "png"), ((9, 9), "P", "gif"),
                                              ((9, 9), "1", "bmp"), ((12, 9), "LA", "png"), ((12, 9), "CMYK", "jpg")]):  # fmt: skip
        picture(tmp_path / f"{i}.{ending}", size, mode)
    Image.fromarray(np.full((6, 6), 40000, np.uint16)).save(tmp_path / "sixteen bits.png")
    with pytest.raises(ValueError, match=r"images of 6 sizes .*pass size=, e.g. size=6"):
        aezoo.load_data(tmp_path)
    assert aezoo.load_data(tmp_path, size=16).shape == (3, 16, 16)
    grey = aezoo.load_data(tmp_path, size=(12, 8), channels=1)
    assert grey.shape == (1, 12, 8)
    assert first(grey, 8).x[-1].mean().item() == pytest.approx(40000 / 65535, abs=0.01)
    model = aezoo.create_model("conv_ae", input_shape=(3, 16, 16))
    with pytest.raises(ValueError, match="it has 1 channels and the model takes 3"):
        aezoo.fit(model, aezoo.load_data(tmp_path, size=16, channels=1), progress=False)


def test_exif_orientation(tmp_path):
    image = Image.fromarray(np.zeros((4, 9, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert aezoo.load_data(tmp_path).shape == (3, 9, 4)


def test_transparent_pixels_are_white(tmp_path):
    Image.fromarray(np.zeros((4, 4, 4), np.uint8), "RGBA").save(tmp_path / "clear.png")
    assert (first(aezoo.load_data(tmp_path)).x == 1).all()


def test_large_folders_are_read_by_workers(tmp_path, monkeypatch):
    for i in range(9):
        picture(tmp_path / f"{i}.png")
    in_memory = first(aezoo.load_data(tmp_path), 9).x
    monkeypatch.setattr("aezoo.data.files.IN_MEMORY", 0)
    source = aezoo.load_data(tmp_path, workers=2)
    assert type(source).__name__ == "DatasetSource" and torch.equal(first(source, 9).x, in_memory)


def test_corrupt_images_are_listed_and_left_out_only_if_asked(tmp_path, capsys):
    for i in range(4):
        picture(tmp_path / f"{i}.png", (40, 40))
    (tmp_path / "bad.png").write_bytes(b"no image")
    data = (tmp_path / "3.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"2 of 6 images cannot be read: bad.png .*; cut.png .*truncated"):
        aezoo.load_data(tmp_path)
    assert len(aezoo.load_data(tmp_path, skip_corrupt=True)) == 4
    assert "left out 2 of 6 images, which cannot be read: bad.png" in capsys.readouterr().out


def test_images_that_break_only_when_decoded(tmp_path, capsys):
    for i in range(4):
        picture(tmp_path / f"{i}.bmp", (40, 40))
    data = (tmp_path / "3.bmp").read_bytes()
    (tmp_path / "3.bmp").write_bytes(data[: len(data) // 2])  # the header is whole
    with pytest.raises(ValueError, match=r"1 of 4 images cannot be read: .*3.bmp"):
        aezoo.load_data(tmp_path)
    assert len(aezoo.load_data(tmp_path, skip_corrupt=True)) == 3


def test_arrays_in_files(tmp_path):
    from safetensors.torch import save_file

    x, y = make_images(10)
    np.save(tmp_path / "a.npy", x.numpy())
    np.savez(tmp_path / "b.npz", X=x.numpy(), y=y.numpy())
    np.savez(tmp_path / "c.npz", pictures=x.numpy())
    save_file({"x": x, "labels": y}, tmp_path / "d.safetensors")
    for name in ("a.npy", "b.npz", "c.npz", "d.safetensors"):
        source = aezoo.load_data(tmp_path / name)
        assert torch.equal(first(source, 10).x, x), name
        assert (source.labels is not None) == (name[0] in "bd")


def test_csv(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,label\n1,2.5,0\n3,-4e1,1\n")
    source = aezoo.load_data(path)
    assert first(source).x.tolist() == [[1, 2.5], [3, -40]] and source.labels.tolist() == [0, 1]
    path.write_text("1;2\n3;4\n")
    assert first(aezoo.load_data(path)).x.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "a,b\n", "a header and no rows"),
        ("a.csv", "a,b\n1,Paris\n", r"line 2, column 'b': 'Paris' is no number"),
        ("a.csv", "1,2\n3\n", "line 2: 1 cells where 2 are expected"),
        ("a.csv", "label\n1\n2\n", "labels only"),
        ("a.npy", "rubbish", "a.npy"),
        ("a.npz", "rubbish", "a.npz"),
        ("a.safetensors", "rubbish", "truncated, damaged or not a safetensors file"),
        ("a.pt", "x", "pickles can run code"),
        ("a.png", "x", "pass their folder"),
        ("a.xyz", "x", "allowed: .npy"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        aezoo.load_data(tmp_path / name)


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy"):
        aezoo.load_data(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.arange(10), ValueError, "labels only"),
        (torch.rand(10), ValueError, "no axis"),
        (torch.empty(0, 3), ValueError, "empty"),
        (torch.zeros(3, 2, dtype=torch.complex64), TypeError, "complex"),
        (np.array([["a", "b"]]), TypeError, "dtype"),
        ((torch.rand(5, 2), torch.zeros(4)), ValueError, "5 samples but 4 labels"),
        ([1, 2, 3], TypeError, "cannot read data from list"),
        ("fashion-mni", FileNotFoundError, "Did you mean 'fashion-mini'"),
        ("nowhere/pictures", FileNotFoundError, "no file, folder or data set"),
        ({"source": "digits", "binarise": "dynamic"}, TypeError, "Did you mean 'binarize'"),
    ],
)
def test_refused(data, error, message):
    with pytest.raises(error, match=message):
        aezoo.load_data(data)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(3)])


def test_refused_datasets(tmp_path):
    with pytest.raises(TypeError, match="make it map-style"):
        aezoo.load_data(Stream())
    with pytest.raises(TypeError, match="reads an IterableDataset"):
        aezoo.load_data(DataLoader(Stream()))
    with pytest.raises(ValueError, match="is empty"):
        aezoo.load_data(Squares(n=0))
    with pytest.raises(ValueError, match="holds no image"):
        aezoo.load_data(tmp_path)
    with pytest.raises(ValueError, match="labels only"):
        aezoo.load_data(type("Labels", (Dataset,), {"__len__": lambda s: 4, "__getitem__": lambda s, i: i})())


def test_nan_and_ranges_are_found_before_the_first_step():
    x, _ = make_images(20)
    bad = x.clone()
    bad[7, 0, 3, 3] = float("nan")
    model = aezoo.create_model("ae", input_shape=(1, 12, 12), likelihood="bce")
    for data, message in [
        (bad, r"NaN in 1 of 20 samples, first in sample 7 \(element 39\)"),
        (x * 255, r"lies in \[.*, 25.* divide by 255"),
        (x - 0.5, r"rescale the data"),
        ((x * 255).round(), "8-bit pixels stored as torch.float32"),
        (torch.full_like(x, float("inf")), "infinity in 20 of 20"),
    ]:
        with pytest.raises(ValueError, match=message):
            aezoo.fit(model, data, progress=False)


# ----------------------------------------------------------------------------------------------------------- by name


def test_fashion_mini():
    train, test = (aezoo.load_data("fashion-mini", split=s) for s in ("train", "test"))
    assert (len(train), len(test)) == (9000, 1000) and train.shape == (1, 28, 28)
    assert torch.bincount(train.labels).tolist() == [900] * 10 and torch.bincount(test.labels).tolist() == [100] * 10
    assert train.class_names[9] == "Ankle boot" and 0.25 < first(train, 500).x.mean() < 0.32
    assert not (set(map(bytes, train.x.numpy())) & set(map(bytes, test.x.numpy())))


def test_digits():
    train, test = (aezoo.load_data("digits", split=s) for s in ("train", "test"))
    assert len(train) + len(test) == 1797 and train.shape == (1, 8, 8) and first(train, 99).x.max() == 1
    assert aezoo.load_data("digits", size=16).shape == (1, 16, 16)
    halves = aezoo.load_data("digit-halves")
    assert halves.shape == (2, 4, 8) and torch.equal(halves.x[:, 1], train.x[:, 0, 4:])
    assert torch.equal(halves.labels, train.labels)
    with pytest.raises(ValueError, match="whose samples are pairs"):
        aezoo.load_data("digit-halves", size=16)


def idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_torchvision_layout(tmp_path, monkeypatch, name, folder):
    g = np.random.default_rng(0)
    for part, n in (("train", 30), ("t10k", 10)):
        idx(tmp_path / folder / "raw" / f"{part}-images-idx3-ubyte", g.integers(0, 256, (n, 28, 28)))
        idx(tmp_path / folder / "raw" / f"{part}-labels-idx1-ubyte", g.integers(0, 10, n))
    source = aezoo.load_data(name, root=str(tmp_path))
    assert (
        len(source) == 30
        and source.shape == (1, 28, 28)
        and source.x.dtype == torch.uint8
        and len(source.class_names) == 10
    )
    monkeypatch.setenv("AEZOO_DATA", str(tmp_path))
    assert len(aezoo.load_data(name, split="test")) == 10


def test_every_name_is_registered():
    wanted = {
        "fashion-mini",
        "digits",
        "mnist",
        "fashion_mnist",
        "cifar10",
        "kmnist",
        "emnist",
        "svhn",
        "stl10",
        "celeba",
    }
    assert wanted <= set(DATASETS) and all(DATASETS[n].__doc__ for n in wanted)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn", "stl10", "emnist", "celeba"])
def test_missing_data_without_a_network(tmp_path, monkeypatch, name):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", no_network)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torchvision.datasets.utils.download_file_from_google_drive", no_network)
    monkeypatch.setattr("torchvision.datasets.celeba.download_file_from_google_drive", no_network)
    with pytest.raises(FileNotFoundError, match=f"'{name}' is not under .*cannot be downloaded.*torchvision's layout"):
        aezoo.load_data(name, root=str(tmp_path))


def test_a_folder_is_fitted_to_the_model(tmp_path):
    """Wherever a model is at hand: pictures of any size and colour become its samples; what is asked for stays."""
    for i, (size, mode) in enumerate([((20, 14), "RGB"), ((9, 9), "L"), ((30, 50), "RGB")]):
        Image.new(mode, size, 10 * i).save(tmp_path / f"{i}.png")
    model = aezoo.create_model("conv_ae", input_shape=(1, 12, 8), latent_dim=3, backbone="conv(widths=(4,))")
    assert data_for((1, 12, 8), tmp_path).shape == (1, 12, 8)
    for shape in ((3, 6, 6), (1, 12, 8)):
        assert data_for(shape, str(tmp_path)).peek(3, torch.device("cpu")).x.shape == (3, *shape)
    assert len(data_for((1, 12, 8), tmp_path, limit=2)) == 2
    with pytest.raises(ValueError, match="the model takes"):
        data_for((1, 12, 8), tmp_path, size=6)
    aezoo.fit(model, tmp_path, epochs=1, progress=False, device="cpu")
    assert aezoo.features(model, tmp_path, progress=False).shape == (3, 3)
    assert error_map(model, tmp_path).shape == (3, 12, 8)
    assert aezoo.evaluate(model, tmp_path, metrics="mse", progress=False)["mse"]["mean"] > 0
