"""What the tests share: a seeded generator, a tone, synthetic people and a tiny data set made of them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest

import preprocess
from utils import SAMPLE_RATE

hypothesis.settings.register_profile("no deadline", deadline=None)  # machines pause now and then
hypothesis.settings.load_profile("no deadline")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def tone():
    """Return a function: a sine, float32 (samples,), of so many Hz and seconds."""

    def make(hertz, seconds, amplitude=0.5):
        return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(
            np.float32
        )

    return make


@pytest.fixture(scope="session")
def make_demo():
    """The module data/make_demo.py."""
    spec = importlib.util.spec_from_file_location("make_demo", ROOT / "data" / "make_demo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_demo"] = module  # its processes pickle functions by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def demo_clips(tmp_path_factory):
    """Folder with `videos/` and `avspeech_demo.csv` of 30 synthetic people."""
    folder = tmp_path_factory.mktemp("clips")
    subprocess.run(
        [sys.executable, ROOT / "data" / "make_demo.py", "--out", folder, "--people", "30", "--seed", "5"], check=True
    )
    return folder


@pytest.fixture(scope="session")
def demo_data(demo_clips, tmp_path_factory):
    """What preprocess.py makes of `demo_clips`, with dlib's features."""
    data = tmp_path_factory.mktemp("data")
    arguments = ["--csv", demo_clips / "avspeech_demo.csv", "--videos", demo_clips / "videos", "--data", data]
    assert preprocess.main([*map(str, arguments), "--face-model", "dlib"]) == 0
    return data
