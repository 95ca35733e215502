import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import error_of, small_decoder, write_decoder_run

import model
import share
import train
import utils
from clips import feature_files, splits
from faces import likely
from listening import certainty, listener
from training import compact, runs
from utils import InputError, normalise

D = 12  # numbers in a face feature
OF_SPLIT = {"split": Path("my-split.csv"), "names": Path("my-names.csv")}  # options
SPLIT = splits.Split(0, {"some-video7": "train", "secret-person": "test"}, (("C*", "test"), ("Xyz*", "val")))
CLIPS = {"train": [f"some-video{number}_000.000000-006.000000" for number in range(30)], "val": ["another_3_007.0-013.0"]}
FILES = {utils.OPTIONS, utils.CLIPS, utils.SPLIT_FILE, utils.CENTRE, utils.COMPACT_WEIGHTS, utils.LIKELY, utils.CERTAINTY}
FILES |= {share.MEASURED}
DECODER_FILES = {utils.OPTIONS, utils.CLIPS, utils.CENTRE, utils.COMPACT_WEIGHTS}


def write_voice_run(folder, network, **options):
    """Write what train.py leaves of an encoder, with random statistics."""
    rng = np.random.default_rng(4)
    data = folder.parent / "my-data"
    given = train.with_defaults(
        train.Options(run=str(folder), data=data, decoder=str(folder.parent / "face-run"), loss="total", **OF_SPLIT)
    )
    given = dataclasses.replace(given, **options)
    centre = (3 + rng.normal(size=D)).astype(np.float32)
    runs.start(folder, given, CLIPS, centre, SPLIT)
    runs.save_weights(folder / utils.BEST_WEIGHTS, network)
    runs.save_weights(folder / utils.LAST_WEIGHTS, network)
    faces = (centre + rng.normal(size=(200, D))).astype(np.float32)
    likely.fit(normalise(faces - centre + rng.normal(size=(200, D))), faces, faces).save(folder / utils.LIKELY)
    size = model.embedder(network).output.shape[-1]
    halves = rng.normal(size=(60, 1, size)) + 0.3 * rng.normal(size=(60, 2, size))
    names = [f"v{number}" for number in range(60)]
    certainty.fit(halves, np.ones(60), rng.uniform(size=60), names).save(folder / utils.CERTAINTY)
    leak = f"1 of 2 clips were trained on: {CLIPS['train'][0]}"
    utils.write_json(folder / "metrics.json", {"parts": {"test": {"matching": 0.75}}, "leaks": [leak], "craniofacial": {}})
    (folder / utils.HISTORY).write_text("{}\n")
    (folder / "heard").mkdir()
    (folder / "heard" / "me.png").write_text("a face")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of "voice-run", the run of a narrow voice encoder, and "face-run", that of a face decoder."""
    folder, rng = tmp_path_factory.mktemp("own-runs"), np.random.default_rng(2)
    encoder = model.voice_encoder(D, 0.03)
    write_voice_run(folder / "voice-run", encoder, encoder="conv", width=0.03, embedding=None)
    write_decoder_run(small_decoder(rng, D, 5), folder / "face-run")
    options = json.loads((folder / "face-run" / utils.OPTIONS).read_text())
    more = {"run": str(folder / "face-run"), "data": str(folder / "my-data")}
    utils.write_json(folder / "face-run" / utils.OPTIONS, {**options, **more})
    utils.write_json(folder / "face-run" / utils.CLIPS, CLIPS)
    feature_files.save_array(folder / "face-run" / utils.CENTRE, np.full(D, 3, np.float32))
    return folder


def run_share(run, decoder, out):
    return share.main([*map(str, ["--run", run, "--decoder", decoder, "--out", out])])


@pytest.fixture(scope="module")
def shared(folder):
    assert run_share(folder / "voice-run", folder / "face-run", folder / "mine") == 0
    return folder / "mine"


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def test_what_is_shared(shared):
    assert {*files_in(shared)} == FILES | {f"decoder/{name}" for name in DECODER_FILES}
    assert not list(shared.parent.glob(".part-*"))
    options = json.loads((shared / utils.OPTIONS).read_text())
    assert (options["model"], options["encoder"], options["width"], options["seed"]) == ("voice", "conv", 0.03, 0)
    assert not {*options} & {"data", "split", "names", "run", "decoder", "resume", "readers", "save_minutes"}
    assert json.loads((shared / share.MEASURED).read_text()) == {"parts": {"test": {"matching": 0.75}}, "craniofacial": {}}


def test_sizes_and_the_paths_that_are_printed(shared, folder, tmp_path, capsys):
    """Weights of voices have two bytes a number, the components of pictures one."""
    assert run_share(folder / "voice-run", folder / "face-run", tmp_path / "again") == 0
    lines = capsys.readouterr().out.splitlines()
    files = sorted(files_in(tmp_path / "again").values())
    assert lines == [f"{path.stat().st_size / 1e6:6.1f} MB  {path}" for path in files]
    n_voice = model.voice_encoder(D, 0.03).count_params()
    assert 2 * n_voice < (shared / utils.COMPACT_WEIGHTS).stat().st_size < 2 * n_voice + 20_000
    network = runs.load_decoder(folder / "face-run", runs.read_run(folder / "face-run", "decoder"))
    n_components = int(np.prod(network.get_layer("texture_basis").kernel.shape))
    expected = n_components + 4 * n_components // compact.STRETCH + 2 * (network.count_params() - n_components)
    assert expected < (shared / "decoder" / utils.COMPACT_WEIGHTS).stat().st_size < expected + 10_000
    for name, path in files_in(shared).items():
        if not name.endswith("npz"):
            assert path.read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_no_file_tells_paths_or_names(shared, folder):
    """In all bytes of all files: neither folders nor the names of clips and videos."""
    names = [clip for part in CLIPS.values() for clip in part]
    secret = [*names, *map(utils.person_of, names), str(folder), "my-data", "voice-run", "face-run", "me.png"]
    secret += ["secret-person", "Xyz", "my-split.csv", "my-names.csv"]
    for path in files_in(shared).values():
        content = path.read_bytes()
        assert [text for text in secret if text.encode() in content] == []
    options = (folder / "voice-run" / utils.OPTIONS).read_text()
    assert "my-data" in options and "my-split.csv" in options and "my-names.csv" in options  # where they are


def test_the_split_is_shared_by_hashes(shared):
    """Patterns of more than a letter are left out."""
    run = runs.read_run(shared)
    hashes = {utils.hash_of("some-video7"): "train", utils.hash_of("secret-person"): "test"}
    assert run["split"] == splits.Split(0, hashes, (("C*", "test"),), hashed=True) and run["split_name"] is None
    assert not (shared / "decoder" / utils.SPLIT_FILE).exists()


def test_clips_are_known_by_their_hashes(shared):
    for of, kind in ((shared, "voice"), (shared / "decoder", "decoder")):
        run = runs.read_run(of, kind)
        assert run["hashed"] and run["data"] is None
        assert {part: set(names) for part, names in run["clips"].items()} == {
            part: set(map(utils.hashed, names)) for part, names in CLIPS.items()
        }
        assert run["clips"]["train"] == sorted(run["clips"]["train"]) != list(map(utils.hashed, CLIPS["train"]))
        assert runs.seen_clips(run, ["new_0-6", *CLIPS["train"][3:5]]) == {
            "train": sorted(CLIPS["train"][3:5], key=utils.hashed),
            "val": [],
        }


def answer(loaded, speech):
    direction, length, halves = loaded._predict(speech)
    return direction, loaded.face_decoder.from_voices(direction[None])[0].astype(int), loaded.voices.judge(halves, length)


def test_a_shared_run_answers_as_the_run(shared, folder, rng, no_named_runs):
    """With the decoder in its folder, which need not be named."""
    ours, theirs = listener.load(shared), listener.load(folder / "voice-run", str(folder / "face-run"))
    for seconds in (6, 15):
        speech = (0.1 * rng.normal(size=seconds * utils.SAMPLE_RATE)).astype(np.float32)
        (direction, picture, sure), (expected, expected_picture, expected_sure) = (answer(of, speech) for of in (ours, theirs))
        assert direction @ expected > 0.9999
        difference = np.abs(picture - expected_picture)
        assert difference.mean() < 1.5 and np.quantile(difference, 0.99) <= 12  # random components are far from smooth
        assert expected_picture.std() > 40
        assert sure.matching == pytest.approx(expected_sure.matching, abs=5e-3)
        assert sure.agreement == pytest.approx(expected_sure.agreement, abs=5e-3)
    np.testing.assert_array_equal(ours.centre, theirs.centre)


def test_a_shared_run_is_shared_again(shared, tmp_path, no_named_runs):
    """The second copy is that of the first: hashes are not hashed once more, and no weight is rounded once more."""
    assert run_share(shared, shared / "decoder", tmp_path / "second") == 0
    assert {*files_in(tmp_path / "second")} == {*files_in(shared)}
    for name, path in files_in(shared).items():
        if not name.endswith("npz"):
            assert path.read_bytes() == (tmp_path / "second" / name).read_bytes(), name
            continue
        with np.load(path) as ours, np.load(tmp_path / "second" / name) as theirs:
            for array in ours:
                np.testing.assert_allclose(ours[array], theirs[array], rtol=1e-6)


def test_the_packages_of_the_speaker_networks_are_not_needed(folder, tmp_path, monkeypatch, rng, no_named_runs):
    encoder = model.speaker_encoder(D, "both")
    run = write_voice_run(tmp_path / "speaker", encoder, encoder="speaker", embedding="both")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="expected the weights of"):
        model.load_pretrained(encoder)
    assert run_share(run, folder / "face-run", tmp_path / "out") == 0
    speech = (0.1 * rng.normal(size=6 * utils.SAMPLE_RATE)).astype(np.float32)
    ours, theirs = (listener.load(of).predict(speech) for of in (tmp_path / "out", run))
    assert ours @ theirs > 0.9999 and np.linalg.norm(ours) == pytest.approx(1)


def test_a_run_without_an_evaluation_or_certainty(folder, tmp_path, no_named_runs):
    """Of an earlier version."""
    run = shutil.copytree(folder / "voice-run", tmp_path / "run")
    (run / "metrics.json").unlink()
    (run / utils.CERTAINTY).unlink()
    assert run_share(run, folder / "face-run", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - {share.MEASURED, utils.CERTAINTY} | {"decoder"}
    assert listener.load(tmp_path / "out").voices is None


def test_runs_are_named_as_in_the_other_scripts(folder, tmp_path, no_named_runs, monkeypatch):
    shutil.copytree(folder / "voice-run", no_named_runs / utils.VOICE_RUN)
    shutil.copytree(folder / "face-run", no_named_runs / utils.DECODER_RUN)
    assert share.main(["--out", str(tmp_path / "new" / "out")]) == 0
    assert runs.read_run(tmp_path / "new" / "out")["width"] == 0.03


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def fails(folder, tmp_path, capsys):
    """Return a function: share with these runs, and return the error; nothing may be left behind."""

    def run(run=folder / "voice-run", decoder=folder / "face-run", out=tmp_path / "out"):
        before = {path: path.read_bytes() for path in files_in(tmp_path).values()}
        assert run_share(run, decoder, out) == 1
        assert {path: path.read_bytes() for path in files_in(tmp_path).values()} == before
        assert not (tmp_path / "out").is_dir() and not list(tmp_path.glob(".part-*"))
        return error_of(capsys)

    return run


def test_a_folder_that_exists_is_kept(fails, tmp_path):
    for out in (tmp_path / "kept", tmp_path / "kept.txt"):
        out.mkdir() if not out.suffix else out.write_text("kept")
        assert fails(out=out) == f"error: {out}: expected a new folder, found one that exists; name another --out"


def test_a_missing_run_is_told(fails, tmp_path):
    for name in ("run", "decoder"):
        expected = f"error: {tmp_path / 'none'}: expected a run of train.py, found none"
        assert fails(**{name: tmp_path / "none"}).startswith(expected)


def test_runs_in_the_place_of_each_other_are_told(fails, folder):
    assert "expected a run of python train.py decoder, found a run of python train.py" in fails(decoder=folder / "voice-run")
    assert "expected a run of python train.py, found a run of python train.py decoder" in fails(run=folder / "face-run")


def test_a_decoder_for_other_features_is_told(fails, wide_decoder_run):
    expected = f"error: {wide_decoder_run}: expected a decoder for face features of {D} numbers, found one for 4096; train one"
    assert fails(decoder=wide_decoder_run).startswith(expected)


@pytest.mark.parametrize("name", [utils.BEST_WEIGHTS, utils.OPTIONS, utils.CLIPS, utils.CENTRE])
@pytest.mark.parametrize("part", ["voice-run", "face-run"])
def test_a_broken_file_is_named(name, part, fails, folder, tmp_path):
    """Also one of the decoder, when the voice encoder is written already."""
    broken = shutil.copytree(folder / part, tmp_path / part)
    (broken / name).write_text("[]")
    assert f"{broken / name}: expected" in fails(**{"run" if part == "voice-run" else "decoder": broken})


def test_weights_that_are_missing_are_named(fails, folder, tmp_path):
    run = shutil.copytree(folder / "voice-run", tmp_path / "run", ignore=shutil.ignore_patterns(utils.BEST_WEIGHTS))
    assert f"{run / utils.BEST_WEIGHTS}: expected the weights of a run, found no such file" in fails(run=run)
