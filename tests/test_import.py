"""What importing costs and needs."""

import json
import subprocess
import sys

import pytest


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def imported():
    """What a new process says after `import aezoo` (and of the packages that load their parts on use), and then after importing everything that is in it."""
    code = """
import torch, sys; before = set(sys.modules); import aezoo, aezoo.sklearn, aezoo.tasks; new = sorted(set(sys.modules) - before)
import importlib, json, pkgutil
lacking = [n for n in aezoo.__all__ if not hasattr(aezoo, n)]
names = [aezoo.fit.__module__, aezoo.__version__]
[importlib.import_module(m.name) for m in pkgutil.walk_packages(aezoo.__path__, 'aezoo.') if '__main__' not in m.name]
print(json.dumps([new, lacking, names, [n for n in aezoo.__all__ if not callable(getattr(aezoo, n))]]))
"""
    return dict(zip(("new", "lacking", "names", "hidden"), json.loads(python(code))))


def test_import_loads_nothing_heavy_but_torch(imported):
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
    assert not [m for m in heavy if m in imported["new"]] and "aezoo.base" in imported["new"]


def test_everything_but_torchvision_data_works_where_torchvision_is_missing_or_broken(tmp_path):
    """In two processes that have imported torch, and nothing of ours."""
    code = f"""
import os, sys, importlib.abc, torch, matplotlib.figure, sklearn.linear_model
class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'torchvision':
            raise error
def works(out):
    import aezoo
    model = aezoo.create_model('vae', input_shape=(1, 28, 28), latent_dim=2)
    data = aezoo.load_data('fashion-mini', limit=200)
    result = aezoo.fit(model, data, epochs=1, out=out, progress=False, device='cpu')
    assert len(aezoo.evaluate(aezoo.from_pretrained(result.out), data)) > 5
    assert os.path.getsize(out + '/pictures/samples.png')
    try:
        aezoo.load_data('mnist')
    except ImportError as e:
        print(e, flush=True)
assert not [m for m in sys.modules if m.split('.')[0] in ('aezoo', 'torchvision')]
torch.set_num_threads(1)
for error in (ImportError('no torchvision'), RuntimeError('operator torchvision::nms does not exist')):
    child = os.fork()
    if not child:
        sys.meta_path.insert(0, Broken())
        works({str(tmp_path)!r} + '/' + type(error).__name__)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, error
"""
    out = python(code)
    assert out.count("data set 'mnist' is read by torchvision, which does not import here") == 2


def test_names(imported):
    assert not imported["lacking"] and imported["names"] == ["aezoo.train.fitting", "0.1.0"]


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


def test_public_names_are_not_hidden_by_modules_of_the_same_name(imported):
    assert imported["hidden"] == []


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
