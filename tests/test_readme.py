"""Every code block of README runs; the install commands are run word for word by .ci/run."""

import importlib.util
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aezoo
from aezoo.cli import main
from aezoo.registry import MODELS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.S)


@pytest.mark.slow
@pytest.mark.pictures
def test_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "my_pictures").mkdir()
    for i in range(40):
        size = rng.integers(20, 60, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "my_pictures" / f"{i}.png")
    before = dict(MODELS.entries)
    space = {"__name__": "readme"}
    try:
        for language, code in BLOCKS:
            if language == "python":
                exec(compile(code, "README.md", "exec"), space)
        assert aezoo.from_pretrained("my_model").name == "vae"
        with pytest.raises(TypeError, match="Did you mean 'weight'"):
            aezoo.create_model("decorrelated_ae", input_shape=(3,), wieght=1.0)
    finally:
        MODELS.entries.clear()
        MODELS.entries.update(before)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
@pytest.mark.pictures
def test_command_lines_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        line
        for language, code in BLOCKS
        if language == "bash" and "pip install" not in code
        for line in code.splitlines()
        if line
    ]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0] == "torchrun":
            launcher = [sys.executable, "-m", "torch.distributed.run", "--master-port", str(free_port())]
            subprocess.run([*launcher, *words[1:]], check=True, capture_output=True)
            continue
        assert words[0] == "aezoo"
        main(words[1:])
    assert (tmp_path / "runs" / "digits" / "samples.png").is_file()


def test_the_two_commands_are_those_that_ci_runs():
    spec = importlib.util.spec_from_file_location("readme_commands", ROOT / ".ci" / "readme_commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    first, second = module.blocks()
    assert first.splitlines()[-1] == ".venv/bin/aezoo train" and second.splitlines()[-1] == ".venv/bin/python -m pytest"
    run = (ROOT / ".ci" / "run").read_text()
    assert "readme_commands.py 1" in run and "readme_commands.py 2" in run


def test_other_blocks_are_of_known_languages():
    assert {language for language, _ in BLOCKS} <= {"python", "bash"}


def test_every_model_and_picture_is_there():
    for name in aezoo.list_models():
        assert f"`{name}`" in TEXT, name
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (ROOT / picture).is_file(), picture
