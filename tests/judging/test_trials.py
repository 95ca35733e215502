import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from judging import parts, trials
from judging.trials import Scores, read_trials
from utils import InputError

CLIPS = ["English_00000", "English_00001", "id10270_5r0dWxy17C8-00001", "id10270_8jEAjG6SegY-00008", "Ann_0001"]


def read(tmp_path, text, clips=CLIPS):
    path = tmp_path / "English_test.txt"
    path.write_text(text)
    return read_trials(path, clips, tmp_path / "data")


def test_trials_of_the_challenge(tmp_path):
    """Their folders voices and faces are above those of people; lines may end in a space and a carriage return."""
    text = "ysuvkz41 voices/English/00000.wav faces/English/00001.jpg \r\n"
    text += "tog3zj45 voices/English/00001.wav faces/English/00001.jpg\r\n"
    found = read(tmp_path, text)
    assert found.keys == ["ysuvkz41", "tog3zj45"] and found.same is None
    assert found.voices == ["English_00000", "English_00001"] and found.faces == ["English_00001"] * 2
    assert found.clips == ["English_00000", "English_00001"]


def test_trials_with_labels(tmp_path):
    """As VoxCeleb's; a label is no key."""
    first, second = "id10270/5r0dWxy17C8/00001.wav", "id10270/8jEAjG6SegY/00008.wav"
    found = read(tmp_path, f"1 {first} {second}\n0 {second} data/photos/Ann/0001.jpg\n")
    assert found.keys == [f"{first} {second}", f"{second} data/photos/Ann/0001.jpg"] and found.same.tolist() == [True, False]
    assert found.voices == CLIPS[2:4] and found.faces == [CLIPS[3], "Ann_0001"]


def test_trials_of_two_columns_and_names_of_clips(tmp_path):
    """Between tabs, commas or spaces; Windows' paths too."""
    found = read(tmp_path, "English_00000,Ann_0001\nAnn_0001.wav,x\\English\\00001.jpg\n")
    assert found.keys == ["English_00000 Ann_0001", "Ann_0001.wav x\\English\\00001.jpg"] and found.same is None
    assert found.voices == ["English_00000", "Ann_0001"] and found.faces == ["Ann_0001", "English_00001"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "found an empty file"),
        ("a\n", "expected two or three values a line, found 1 in line 1"),
        ("k Ann_0001 Ann_0001\n\nk Ann_0001\n", "expected 3 values a line, found 2 in line 3"),
        (
            "".join(f"k{n} voices/Urdu/{n}.wav Ann_0001\n" for n in range(5)),
            "found none for 5 of 6 voices and faces, such as voices/Urdu/0.wav, voices/Urdu/1.wav, voices/Urdu/2.wav; run ",
        ),
        ("k 00000.wav Ann_0001\n", "found none for 1 of 2"),
    ],
)
def test_bad_files_are_refused_in_one_line(text, said, tmp_path):
    with pytest.raises(InputError, match=r"English_test\.txt: expected ") as raised:
        read(tmp_path, text)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_scores_are_distances_of_voice_and_face(tmp_path, rng):
    """Of the voice's prediction and the face's feature as seen from the centre; clips of a part are not predicted again."""
    centre = np.full(4, 2, np.float32)
    voices, faces = (dict(zip(CLIPS, (centre + rng.normal(size=(5, 4))).astype(np.float32))) for _ in range(2))
    inside, asked = CLIPS[:2], []
    of_part = (np.stack([of[clip] for clip in [*inside, "Ann_0001"]]) for of in (voices, faces, faces))
    part = parts.part_of([*inside, "Bo_1"], *of_part, centre)

    def predict(clips):
        asked.extend(clips)
        return np.stack([[*voices[clip], *faces[clip]] for clip in clips]), np.stack([faces[clip] for clip in clips])

    of_trials = read(tmp_path, "key1 English_00000 Ann_0001\nkey2 Ann_0001 English_00001\n")
    (found,) = trials.score([of_trials], {"test": part}, predict, centre)
    assert asked == ["Ann_0001"] and found.file_name == "scores-English_test.txt"
    lines = [line.split(" ") for line in found.as_text().splitlines()]
    assert [key for key, _ in lines] == ["key1", "key2"]
    for (_, score), voice, face in zip(lines, of_trials.voices, of_trials.faces):
        a, b = ((of - centre) / np.linalg.norm(of - centre) for of in (voices[voice], faces[face]))
        assert float(score) == pytest.approx(np.linalg.norm(a - b), abs=2e-6) and len(score.partition(".")[2]) == 6


def scores_with(same, similarities):
    names = [str(n) for n in range(len(similarities))]
    of = trials.Trials("trials.txt", names, same, names, names)
    return Scores(of, np.asarray(similarities, np.float32))


def test_labelled_trials_are_judged(rng, tmp_path):
    """As sklearn does; the less the score in the file, the more similar."""
    same, similarities = rng.random(200) < 0.3, rng.uniform(-1, 1, 200)
    similarities[same] = np.minimum(1, similarities[same] + 0.4)
    found = scores_with(same, similarities)
    figures = found.figures
    assert (figures["trials"], figures["positives"], figures["negatives"]) == (200, same.sum(), 200 - same.sum())
    assert figures["auc"] == pytest.approx(roc_auc_score(same, similarities), abs=1e-5) and 0 < figures["eer"] < 0.5
    distances = np.array([float(line.split()[1]) for line in found.as_text().splitlines()])
    assert roc_auc_score(same, -distances) == pytest.approx(figures["auc"], abs=1e-4)
    assert scores_with(np.ones(3, bool), [0, 1, -1]).figures == scores_with(None, [0, 1, -1]).figures == {"trials": 3}
    assert scores_with(None, [0, 1, -1]).as_text() == "0 1.414214\n1 0.000000\n2 2.000000\n"


def test_the_line_about_trials(tmp_path):
    of_trials = read(tmp_path, "1 Ann_0001 Ann_0001\n0 Ann_0001 English_00000\n")
    said = Scores(of_trials, np.array([1, 0], np.float32)).headline()
    assert said == "English_test.txt: 2 trials, AUC 100.0 % (chance 50.0), EER 0.0 % (chance 50.0)"
    unlabelled = read(tmp_path, "k Ann_0001 Ann_0001\n")
    assert Scores(unlabelled, np.ones(1, np.float32)).headline() == "English_test.txt: 1 trials"
