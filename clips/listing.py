"""The names of the clips that are ready, by the manifest or by listing folders: millions of them in seconds.

Never imports TensorFlow.
"""

import os
from pathlib import Path

MANIFEST = "manifest.csv"
HEADER = b"clip,status,"  # how the first line of a manifest begins


def names_with(data: Path, files: dict[str, Path]) -> list[str]:
    """Return the sorted names that have several files each.

    The manifest knows them, unless one of the folders has changed since its last line was written, as when a file was deleted
    by hand, or there is no manifest. Then the folders are listed.

    Args:
        data: folder that preprocess.py wrote.
        files: by column of the manifest that holds the file's size, the path with * in place of the name.
    """
    folders = [pattern.parent for pattern in files.values()]
    try:
        recorded = os.stat(data / MANIFEST).st_mtime_ns
        if all(os.stat(folder).st_mtime_ns <= recorded for folder in folders):
            return sorted(_in_manifest(data / MANIFEST, list(files)))
    except FileNotFoundError:
        pass
    return sorted(_in_folders(files.values()))


def _in_manifest(path: Path, columns: list[str]) -> set[str]:
    """Return the names whose last line is `ready` and has a size in each of the columns."""
    names = set()
    with open(path, "rb") as file:
        header = file.readline().rstrip(b"\n")
        if not header.startswith(HEADER) or not all(column.encode() in header.split(b",") for column in columns):
            raise FileNotFoundError(path)  # of an earlier version: the folders know
        places = [header.split(b",").index(column.encode()) for column in columns]
        for line in file:
            clip, status, *_ = values = line.rstrip(b"\n").split(b",", max(places) + 1)
            if status == b"ready" and all(place < len(values) and values[place] for place in places):
                names.add(clip.decode())
            else:
                names.discard(clip.decode(errors="replace"))
    return names


def _in_folders(patterns) -> list[str]:
    """Return the names that have a file in each of several folders, each a path with * in place of the name."""
    names = {}
    for number, pattern in enumerate(patterns):
        suffix = pattern.suffix
        try:
            entries = os.scandir(pattern.parent)
        except FileNotFoundError:
            return []
        with entries:
            for entry in entries:
                name = entry.name
                if not name.endswith(suffix) or name[0] == ".":
                    continue
                name = name[: -len(suffix)]
                if names.get(name, 0) == number:
                    names[name] = number + 1  # a count, not a set for each folder: the names of millions fill the memory
        names = {name: count for name, count in names.items() if count > number}
    return list(names)
