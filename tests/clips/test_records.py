import functools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, valid_rows, write_csv

from clips import records, workers
from clips.reasons import FACE_REASONS, REASONS, RETRIED

# ---------------------------------------------------------------- the csv


def test_a_row_of_avspeech(tmp_path):
    rows, bad = valid_rows(write_csv(tmp_path / "a.csv", ("-1nRm4tQL0A", "24.76", "29.96", "0.5", "0.25")))
    assert rows == [records.Row("-1nRm4tQL0A_024.760000-029.960000", "-1nRm4tQL0A", 24.76, 29.96, 0.5, 0.25)]
    assert bad == {}


@pytest.mark.parametrize(
    "line, problem",
    [
        (b"../../etc/passwd,1,2,0.5,0.5", "expected an id"),
        (b"--exec=touch x,1,2,0.5,0.5", "expected an id"),
        (b",1,2,0.5,0.5", "expected an id"),
        (b"a\0c,1,2,0.5,0.5", "expected an id"),
        (b"abc\xff,1,2,0.5,0.5", "expected an id"),
        (b'a"c,1,2,0.5,0.5', "expected an id"),
        (b"a" * 10_000_000 + b",1,2,0.5,0.5", "expected an id"),
        (b"abc,2,2,0.5,0.5", "expected 0 <= start < end"),
        (b"abc,3,2,0.5,0.5", "expected 0 <= start < end"),
        (b"abc,-1,2,0.5,0.5", "expected 0 <= start < end"),
        (b"abc,1,inf,0.5,0.5", "expected 0 <= start < end"),
        (b"abc,nan,2,0.5,0.5", "expected 0 <= start < end"),
        (b"abc,NaN,2,0.5,0.5", "expected 0 <= start < end"),
        (b"abc,,2,0.5,0.5", "expected 0 <= start < end"),
        (b"abc,1,2\0,0.5,0.5", "expected 0 <= start < end"),
        (b"abc,1:30,2,0.5,0.5", "expected 0 <= start < end"),
        (b"YouTube ID,start,end,X,Y", "expected"),
        (b"abc,1,2,1.97,0.5", "expected a face centre"),
        (b"abc,1,2,0.5,-0.1", "expected a face centre"),
        (b"abc,1,2,0.5,nan", "expected a face centre"),
        (b"abc,1,2,0.5", "expected a face centre"),
        (b"abc,1", "expected 0 <= start < end"),
        (b"abc", "expected 0 <= start < end"),
        (b"abc,1,2,0.5,0.5,0.5", "expected five values"),
        (b"," * 10_000_000, "expected five values"),
    ],
    ids=lambda value: str(value[:30]),
)
def test_a_bad_row_is_reported_and_affects_no_other(line, problem, tmp_path):
    path = tmp_path / "a.csv"
    for number in (2, 1):
        lines = [b"one,1,2,0.5,0.5", b"two,1,2,0.5,0.5"]
        lines.insert(number - 1, line)
        path.write_bytes(b"\n".join(lines) + b"\n")
        if number == 1 and line.count(b",") != 4:
            continue  # the first line determines the number of columns
        rows, bad = valid_rows(path)
        assert [row.video_id for row in rows] == ["one", "two"]
        assert list(bad) == [number] and bad[number].startswith(problem)


def test_bom_crlf_blank_lines_and_ids_like_na(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf-a,1.50,2,0.5,0.5\r\nNA,3,4,0.5,0.5\r\n\r\nnan,5,6,0.5,1e-1\r\n")
    rows, bad = valid_rows(path)
    assert [(row.video_id, row.start, row.y) for row in rows] == [("-a", 1.5, 0.5), ("NA", 3, 0.5), ("nan", 5, 0.1)]
    assert bad == {}
    assert [row.video_id for row in valid_rows(path, 1)[0]] == ["-a"]


def test_the_limit_counts_lines(tmp_path):
    rows = [(f"v{i}", 1, 2, 0.5, 0.5) for i in range(10)]
    rows[2] = (*rows[2], 0.5)
    rows[4] = ("v4", 1, 2, 0.5, 5)
    good, bad = valid_rows(write_csv(tmp_path / "a.csv", *rows), 6)
    assert [row.video_id for row in good] == ["v0", "v1", "v3", "v5"] and list(bad) == [3, 5]


def test_rows_are_grouped_by_video_in_the_order_of_their_first_rows(tmp_path):
    rows = [("b", 1, 2), ("a", 1, 2), ("b", 0, 1), ("c", 1, 2), ("a", 5, 6)]
    path = write_csv(tmp_path / "a.csv", *((*row, 0.5, 0.5) for row in rows))
    assert [(row.video_id, row.start) for row in valid_rows(path)[0]] == [("b", 1), ("b", 0), ("a", 1), ("a", 5), ("c", 1)]


def test_a_csv_of_two_and_a_half_million_rows(tmp_path):
    """In bounded time and memory, measured in a separate process."""
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 600, 260_000)
    ids = np.char.add("video", rng.integers(0, 270_000, len(start)).astype(str))
    frame = pd.DataFrame({"id": ids, "start": start, "end": start + 5.2, "x": 0.5, "y": 0.5})
    text = frame.to_csv(header=False, index=False, float_format="%.6f")
    (tmp_path / "a.csv").write_text(text * 10)
    code = (
        "import sys, time, psutil; from pathlib import Path; from clips import records\n"
        "before = psutil.Process().memory_info().rss; started = time.time()\n"
        "ids, rows = records.read_rows(Path(sys.argv[1]))\n"
        "first = next(records.rows_by_video(ids, rows))\n"
        "grown = psutil.Process().memory_info().rss - before\n"
        "print(len(rows), len(ids), len(first), time.time() - started, grown)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.csv"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    n_rows, n_ids, n_first, seconds, grown = map(float, done.stdout.split())
    assert (n_rows, n_ids, n_first) == (2_600_000, len(set(ids)), 10_000)
    assert seconds < 30  # 3 s on an idle machine
    assert grown < 600e6  # 230 bytes a row; as Python objects they take a gigabyte


# ---------------------------------------------------------------- shards


def test_every_video_is_in_one_shard():
    shards = [records.shard_of(f"video{i}", 8) for i in range(8000)]
    assert set(shards) == set(range(1, 9)) and min(map(shards.count, range(1, 9))) > 850
    assert [records.shard_of(video_id, 8) for video_id in ("-1nRm4tQL0A", "abc", "")] == [8, 3, 5]  # must never change


# ---------------------------------------------------------------- the manifest


def test_the_last_line_of_a_clip_counts(tmp_path):
    first = records.Line("a_1", "network", 'said "x, y"\r\nand more\0', "dlib", "hog")
    ready = records.Line("a_1", "ready", "", "dlib", "hog", 0, 1, 2, 3, 4, 5, 5.5, 614910, 663, 9000, 15000, 697)
    records.append_lines(tmp_path, [first, records.Line("b_1", "no-face", "", "dlib", "hog")])
    records.append_lines(tmp_path, [ready])
    assert (tmp_path / "manifest.csv").read_text().splitlines() == [
        ",".join(records.MANIFEST_COLUMNS),
        "a_1,network,said x y and more ,dlib,hog" + "," * 14,
        "b_1,no-face,,dlib,hog" + "," * 14,
        "a_1,ready,,dlib,hog,0,1,2,3,4,5,5.5,614910,663,9000,15000,697,,",
    ]
    manifest = records.read_manifest(tmp_path)
    assert len(manifest) == 3  # with the header, which belongs to no clip
    known = manifest.reindex(records.hash_names(["b_1", "a_1", "c_1"]))
    assert known.status.tolist()[:2] == ["no-face", "ready"] and pd.isna(known.status.iloc[2])
    assert known[[*records.SIZES]].iloc[1].tolist() == [614910, 663, 9000, 15000, 697]


def test_a_manifest_with_fewer_columns_is_read(tmp_path):
    """Its clips lack the files that were introduced later, and are not ready."""
    (tmp_path / "manifest.csv").write_text("clip,status,detail,face_model\na_1,ready,,dlib\nb_1,no-face,,dlib\n")
    known = records.read_manifest(tmp_path).reindex(records.hash_names(["a_1", "b_1"]))
    assert known.status.tolist() == ["ready", "no-face"] and known[[*records.SIZES]].isna().all(axis=None)


def test_without_a_manifest_no_clip_is_known(tmp_path):
    assert records.read_manifest(tmp_path).reindex(records.hash_names(["a"])).status.isna().all()


def test_a_manifest_cut_at_any_byte_is_read_and_continued(tmp_path):
    records.append_lines(tmp_path, [records.Line(f"clip_{i}", "ready", "", "dlib", "hog", 0, *range(11)) for i in range(3)])
    whole = (tmp_path / "manifest.csv").read_bytes()
    names = records.hash_names([f"clip_{i}" for i in range(5)])
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        for rubbish in [b"", b"\0" * 7][: 1 + (cut % 10 == 0)]:  # a power failure may leave zeros
            (tmp_path / "manifest.csv").write_bytes(whole[:cut] + rubbish)
            records.append_lines(tmp_path, [records.Line("clip_4", "no-face")])
            known = records.read_manifest(tmp_path).reindex(names)
            complete = sum(end <= cut for end in ends) - 1
            assert known.status.iloc[4] == "no-face"
            assert known.status.iloc[: max(0, complete)].tolist() == ["ready"] * max(0, complete)
            assert known.status.iloc[max(0, complete) + 1 : 4].isna().all()


def test_many_processes_append_whole_lines(tmp_path):
    lines = [[records.Line(f"clip_{i}", "ready", "x" * 200)] for i in range(400)]
    with workers.start_pool(2) as pool:
        list(pool.map(functools.partial(records.append_lines, tmp_path), lines))
    written = (tmp_path / "manifest.csv").read_text().splitlines()
    assert sorted(line.split(",")[0] for line in written) == sorted(["clip", *(f"clip_{i}" for i in range(400))])
    assert {line.count(",") for line in written} == {len(records.MANIFEST_COLUMNS) - 1}


def test_a_photo_is_ready_without_a_spectrogram(tmp_path):
    sizes = {column: 3 + number for number, column in enumerate(records.PHOTO_SIZES)}
    for column, size in sizes.items():
        path = records.FILES[column](tmp_path, "a_photo")
        path.parent.mkdir()
        path.write_bytes(b"x" * size)
    assert records.is_ready(tmp_path, "a_photo", sizes)
    assert not records.is_ready(tmp_path, "a_photo", {**sizes, "spectrogram_bytes": 9})
    assert not records.is_ready(tmp_path, "a_photo", {**sizes, "portrait_bytes": 9})
    assert not records.is_ready(tmp_path, "b_photo", sizes)


def test_reasons_are_documented():
    documented = (ROOT / "docs" / "files.md").read_text().replace("`", "")
    for reason, meaning in REASONS.items():
        assert f"| {reason} | {meaning} | {'yes' if reason in RETRIED else 'with --retry'} |" in documented, reason
    assert set(RETRIED) < set(REASONS) and set(FACE_REASONS) < set(REASONS)
