"""What importing costs and needs."""

import subprocess
import sys

import pytest


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy_but_torch():
    heavy = [
        "torchvision",
        "sklearn",
        "matplotlib",
        "jsonargparse",
        "huggingface_hub",
        "yaml",
        "PIL",
        "safetensors.torch",
    ]
    out = python(
        f"import torch, sys; before = set(sys.modules); import aezoo; new = set(sys.modules) - before; print([m for m in {heavy} if m in new])"
    )
    assert out.strip() == "[]"


@pytest.mark.parametrize(
    "error", ["ImportError('no torchvision')", "RuntimeError('operator torchvision::nms does not exist')"]
)
def test_everything_but_torchvision_data_works_where_torchvision_is_missing_or_broken(error, tmp_path):
    code = f"""
import sys, importlib.abc
class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'torchvision':
            raise {error}
sys.meta_path.insert(0, Broken())
import aezoo
model = aezoo.create_model('vae', input_shape=(1, 28, 28), latent_dim=2)
result = aezoo.fit(model, aezoo.load_data('fashion-mini', limit=200), epochs=1, out={str(tmp_path / "r")!r}, progress=False, device='cpu')
print(len(aezoo.evaluate(aezoo.from_pretrained(result.out), 'fashion-mini', batch_size=1000)))
try:
    aezoo.load_data('mnist')
except ImportError as e:
    print(e)
"""
    out = python(code)
    assert "data set 'mnist' is read by torchvision, which does not import here" in out


def test_names():
    out = python(
        "import aezoo; assert all(hasattr(aezoo, n) for n in aezoo.__all__); print(aezoo.fit.__module__, aezoo.__version__)"
    )
    assert out.split() == ["aezoo.train.fitting", "0.1.0"]


def test_arrows_point_down():
    """models know nothing of train, data or tasks; functional imports nothing of ours."""
    import ast
    from pathlib import Path

    import aezoo

    root = Path(aezoo.__file__).parent

    def imports(path):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("aezoo")):
                yield (node.module or "") + "." + ".".join(a.name for a in node.names)

    for path in [*root.glob("models/*.py"), *root.glob("backbones/*.py"), root / "base.py"]:
        assert not [
            i
            for i in imports(path)
            if any(part in i.split(".") for part in ("train", "data", "evaluation", "cli", "hub"))
        ], path
    own = {path.stem for path in root.glob("functional/*.py")}
    for path in root.glob("functional/*.py"):
        assert not [i for i in imports(path) if i.split(".")[0] not in own], path
    for path in root.glob("models/*.py"):
        text = path.read_text()
        assert not [w for w in (".item()", ".cuda(", ".to(device", "autocast", "torch.compile(") if w in text], path


def test_public_names_are_not_hidden_by_modules_of_the_same_name():
    code = "import aezoo, pkgutil, importlib; [importlib.import_module(m.name) for m in pkgutil.walk_packages(aezoo.__path__, 'aezoo.') if '__main__' not in m.name]; "
    out = python(code + "print([n for n in aezoo.__all__ if not callable(getattr(aezoo, n))])")
    assert out.strip() == "[]"


def test_training_does_not_import_the_compiler(tmp_path):
    """It takes more than a second of every process. Compiling still works afterwards."""
    code = f"""
import sys, torch, aezoo
model = aezoo.create_model('ae', input_shape=(5,), latent_dim=2)
aezoo.fit(model, torch.rand(64, 5), epochs=1, val=0.2, ema=0.9, out={str(tmp_path / "r")!r}, progress=False, device='cpu')
assert 'torch._dynamo' not in sys.modules
models = [aezoo.create_model('ae', input_shape=(5,), latent_dim=2) for _ in range(3)]
aezoo.fit_many(models, torch.rand(64, 5), epochs=1, progress=False, device='cpu')
assert 'torch._dynamo' not in sys.modules
print(float(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(()))))
torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
"""
    assert python(code).strip() == "2.0"
