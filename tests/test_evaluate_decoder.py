import dataclasses
import json
import shutil

import pytest

import evaluate
import utils
from clips import feature_files
from faces import portraits
from judging import craniofacial
from training import runs
from training.batches import predict_features

pytestmark = pytest.mark.usefixtures("no_named_runs")


@pytest.fixture
def run(voice_run, tmp_path):
    return shutil.copytree(voice_run, tmp_path / "run")


def run_evaluate(run, *more):
    return evaluate.main([*map(str, ["--run", run, *more])])


def test_craniofacial_measures_of_decoded_faces(run, decoder_run, demo_data, monkeypatch, capsys):
    """Printed, and in results.md and metrics.json; none without a decoder, or with few faces."""
    assert run_evaluate(run, "--k", 1) == 0
    assert "craniofacial measure" not in "".join(capsys.readouterr())
    assert run_evaluate(run, "--k", 1, "--decoder", decoder_run) == 0
    printed = capsys.readouterr()
    assert (
        "fewer than 20 test faces, no correlations of craniofacial" in printed.err and "craniofacial measure" not in printed.out
    )
    monkeypatch.setattr(craniofacial, "LEAST_FACES", 3)
    assert run_evaluate(run, "--k", 1, "--decoder", decoder_run) == 0
    lines = capsys.readouterr().out.splitlines()
    metrics = json.loads((run / "metrics.json").read_text())["craniofacial"]
    read = runs.read_run(run)
    test = utils.split_clips(feature_files.ready_clips(demo_data), read["seed"])["test"]
    voices, faces = predict_features(runs.load_encoder(run, read), demo_data, test, 128)
    decode = runs.load_face_decoder(str(decoder_run), run, 128, 1.0)
    pictures = decode.from_voices(utils.normalise(voices - read["centre"])), decode(faces)
    expected = craniofacial.correlations(*map(portraits.landmarks_in, pictures))
    header = next(number for number, line in enumerate(lines) if line.startswith("craniofacial measure"))
    for name, of in expected.items():
        assert metrics[name] == pytest.approx(dataclasses.asdict(of), abs=0.02), name
    assert lines[header + 5].split() == ["nose", "width", f"{metrics['nose width']['r']:.2f}", *lines[header + 5].split()[-2:]]
    assert lines[header + 5].endswith(" 0.35") and lines[header + 13].startswith("mean ") and "0.23" in lines[header + 13]
    assert run_evaluate(run, "--k", 1, "--decoder", decoder_run, "--exaggerate", 0) == 0  # of the picture, not of the measures
    assert json.loads((run / "metrics.json").read_text())["craniofacial"] == metrics
    assert "## Craniofacial measures" in (run / "results.md").read_text()
