"""Files in a folder of people: which there are, whom they show, and the names of the clips made of them.

Never imports TensorFlow. Paths are text, for there may be millions.
"""

import collections
import functools
import hashlib
import os
import re
import unicodedata
from pathlib import Path

import utils

MAX_NAME_BYTES = 100  # of a person's name and of the rest of a clip's: together they become a file name
HASH_LETTERS = 8  # of the hash that tells names apart whose letters were replaced
# Words before the number in names that cameras and programs give: such names say nothing about people.
FILE_WORDS = """
    at audio bild camera cimg clip copy dcim dji dsc dscf dsci dscn face faces file fig figure film foto frame gopr gx id im
    image images img imgp item kopie memo mg mov movie mvi new no number pano people person photo photos pic pict picture
    portrait pxl rec recording sam sample scan screen screenshot shot snapshot sound speech subject take test thumb track
    train untitled user val vid video voice wa whatsapp wp
"""
# Words of folders above those of people, as data sets have them: dev/mp4/<person>, vox1_test_wav/wav/<person>.
WRAPPER_WORDS = """
    aac all audio audios clips data dataset dev face faces flac frames frontal image images m4a mp3 mp4 photos raw test
    train txt unzippedfaces val vgg video videos voice voices vox1 vox2 voxceleb voxceleb1 voxceleb2 wav
"""
_AUTHORS_NAME = re.compile(r"(.+)_(\d{3,}\.\d{6}-\d{3,}\.\d{6})")  # of a clip, as utils.clip_name forms it


# ----------------------------------------------------------------------------------------------------------------------
# Files.


def files_under(folder: Path, suffixes) -> tuple[list[str], str]:
    """Find the files with certain suffixes in a folder and its subfolders. Links are followed; hidden ones do not count.

    Args:
        folder: the folder.
        suffixes: in lower case, with their dots.

    Returns:
        Their paths below the folder, sorted part by part, each file under one path; and in words what was left out and why,
        "" if nothing was.
    """
    files, linked_files, listed, seen, suffixes = [], [], [], None, frozenset(suffixes)
    other_kinds, left_out = collections.Counter(), collections.defaultdict(list)
    folders, linked_folders = [""], []  # a folder is listed under its own path rather than that of a link to it
    while folders or linked_folders:
        if seen is None and not folders:  # now for the links: only these lead to a folder again
            seen = {_key_of(folder / path) for path in listed}
        here = folders.pop() if folders else linked_folders.pop(0)
        if seen is None:
            listed.append(here)
        elif _is_again(folder / here, seen):
            left_out["links to folders already listed"].append(here)
            continue
        try:
            listing = os.scandir(f"{folder}/{here}")
        except PermissionError:
            left_out["folders that may not be read"].append(here)
            continue
        prefix, found_links = f"{here}/" if here else "", []
        with listing:
            for entry in listing:
                name = entry.name
                if name.startswith("."):
                    continue
                path, is_link = prefix + name, entry.is_symlink()
                if _leads_to(os.DirEntry.is_dir, entry) if is_link else entry.is_dir(follow_symlinks=False):
                    (found_links if is_link else folders).append(path)
                elif not (_leads_to(os.DirEntry.is_file, entry) if is_link else entry.is_file(follow_symlinks=False)):
                    left_out["links to nothing" if is_link else "special files"].append(path)
                elif (suffix := _suffix_of(name).lower()) not in suffixes:
                    other_kinds[suffix or "no suffix"] += 1
                else:
                    (linked_files if is_link else files).append(path)
        linked_folders += sorted(found_links)
    if linked_files:
        seen = {_key_of(folder / path) for path in files}
        for path in sorted(linked_files, key=_by_parts):
            (left_out["links to files already listed"] if _is_again(folder / path, seen) else files).append(path)
    words = [f"{reason} {len(paths)} ({min(paths, key=_by_parts)})" for reason, paths in left_out.items()]
    if other_kinds:
        of_kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(other_kinds.items(), key=lambda item: (-item[1], item[0])))
        words.insert(0, f"files of other kinds {other_kinds.total()} ({of_kinds})")
    return sorted(files, key=_by_parts), utils.printable(", ".join(words))


def _leads_to(kind, entry) -> bool:
    """Tell whether an entry, or what a link leads to, is of a kind, os.DirEntry.is_dir or is_file; a ring of links is not."""
    try:
        return kind(entry)
    except OSError:
        return False


def _by_parts(path: str) -> str:
    """Return a key that sorts paths by their parts: what is in the folder `a` before what is in `a b`."""
    return path.replace("/", "\0")


def _key_of(path: Path) -> tuple[int, int]:
    """Return what a file or folder has in common with a link to it."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_again(path: Path, seen: set) -> bool:
    """Tell whether a file or folder, or what a link leads to, is among those seen; add it to them."""
    key = _key_of(path)
    again = key in seen
    seen.add(key)
    return again


# ----------------------------------------------------------------------------------------------------------------------
# People.


def without_suffix(path: str) -> str:
    """Return a path below a folder without its suffix, with accents as NFC composes them: what people are told apart by."""
    stem = path[: -len(suffix)] if (suffix := _suffix_of(path)) else path
    return stem if stem.isascii() else unicodedata.normalize("NFC", stem)


def _suffix_of(path: str) -> str:
    """Return the suffix of a path with its dot, as os.path.splitext does in more time; "" without one."""
    dot = path.rfind(".")
    return path[dot:] if dot > path.rfind("/") + 1 else ""


def people_of(names):
    """Tell the people in a folder apart, or those in two folders that belong together.

    A subfolder holds what there is of one person; folders such as dev/mp4 above those of people are passed over. A file beside
    the subfolders is of the person that it is named for. Several such files named `<person>_<number>`, or `<person>__<name>`,
    are of one person, and so are those of one id that are named as the clips of a csv.

    Args:
        names: paths, of `without_suffix`.

    Returns:
        A function from one of the paths to the person and the rest of the path, "" if that is all; and lines that say what was
        assumed.
    """
    heads, wrappers, flat, before = set(), set(), [], None
    for name in names:
        folder, _, _ = name.rpartition("/")
        if folder and folder == before:  # the same person as the path before
            continue
        before = folder
        head, rest, passed = _without_wrappers(name)
        wrappers.update(passed)
        if rest or _AUTHORS_NAME.fullmatch(head):
            heads.add(head)
        else:
            flat.append((head, *_split_number(head)))
    counts = collections.Counter(name for _, name, number in flat if number)
    heads.update(head for head, _, number in flat if not number)
    shared = {name: n for name, n in counts.items() if n > 1 or name in heads}
    of_people = {name: n for name, n in shared.items() if _says_who(name)}

    def person_and_rest(name: str) -> tuple[str, str]:
        head, rest, _ = _without_wrappers(name)
        if rest:
            return head, rest
        if authors := _AUTHORS_NAME.fullmatch(head):
            return authors.groups()
        person, number = _split_number(head)
        return (person, number) if person in of_people else (head, "")

    advice, notes = "where this is wrong, put the files of each person into a folder of their own", []
    if of_people:
        example = next(head for head, name, number in flat if number and name in of_people)
        n = sum(of_people.values())
        notes.append(f"{n} files named <person>_<number>, such as {example}, are of {len(of_people)} people; {advice}")
    if len(shared) > len(of_people):
        example = next(head for head, name, number in flat if number and name in shared and name not in of_people)
        n = sum(shared.values()) - sum(of_people.values())
        notes.append(f"{n} files with a number and no person's name, such as {example}, are of a person each; {advice}")
    if wrappers:
        found = ", ".join(sorted(wrappers))
        notes.append(f"folders named {found} are taken for parts of a data set, and the folders in them for people")
    return person_and_rest, notes + _notes_on_case({*heads, *of_people, *(head for head, *_ in flat)})


def below(name: str, depth: int) -> str:
    """Return a path without its first `depth` folders; as it is if it has fewer."""
    parts = name.split("/", depth)
    return parts[-1] if len(parts) > depth else name


def possible_people(name: str) -> set[str]:
    """Return whom a path may be of, as long as the other paths in its folder are not known, see `people_of`."""
    head, rest, _ = _without_wrappers(name)
    if rest:
        return {head}
    authors = _AUTHORS_NAME.fullmatch(head)
    return {head, authors[1] if authors else _split_number(head)[0]}


def _without_wrappers(name: str):
    """Split a path into the first folder that is no part of a data set, or the file's name; the rest; and what was passed."""
    folder, slash, last = name.rpartition("/")
    if not slash:
        return name, "", ()
    head, rest, passed = _in_folder(folder)
    return head, rest + last, passed


@functools.lru_cache(maxsize=1000)
def _in_folder(folder: str):
    """Return what `_without_wrappers` does for the files of a folder, the rest without their names."""
    passed, (head, _, rest) = [], f"{folder}/".partition("/")
    while "/" in rest and _is_wrapper(head):
        passed.append(head)
        head, _, rest = rest.partition("/")
    return head, rest, tuple(passed)


@functools.lru_cache(maxsize=1000)
def _is_wrapper(folder: str) -> bool:
    return set(re.findall(r"[^\W_]+", folder.casefold())) <= set(WRAPPER_WORDS.split())


def _split_number(name: str) -> tuple[str, str]:
    """Split the name of a file into a name and the number after it: `Ann_0002`, `Ann-2`, `Ann 2` or `Ann (2)`.

    In `Ann__beach` anything after two underscores counts as a number. Without a number, that is "".
    """
    name_before, underscores, rest = name.partition("__")
    if name_before and underscores and rest.strip("_"):
        return name_before, rest.lstrip("_")
    found = re.fullmatch(r"(.*[^\W_])(?:[_ -]+(\d+)| *\((\d+)\))", name, re.S)
    return (found[1], found[2] or found[3]) if found else (name, "")


def _says_who(name: str) -> bool:
    """Tell whether a name may be a person's: it has a word that is not one of FILE_WORDS."""
    return bool(set(re.findall(r"[^\W\d_]+", name.casefold())) - set(FILE_WORDS.split()))


def _notes_on_case(people) -> list[str]:
    """Return a line if names of people differ only in case, as files on some drives may not; none otherwise."""
    spellings = collections.defaultdict(list)
    for person in sorted(people):
        spellings[person.casefold()].append(person)
    same = [names for names in spellings.values() if len(names) > 1]
    if not same:
        return []
    return [f"{' and '.join(same[0])} are taken for different people; where they are one, move their files into one folder"]


# ----------------------------------------------------------------------------------------------------------------------
# Names.


def clip_name(person: str, rest: str) -> str:
    """Return the name of the clip made of a file: `<person>_<rest>`, from which `utils.person_of` takes the person.

    Args:
        person, rest: of `people_of`. In the rest, letters, digits, dots and hyphens stay; runs of others become a hyphen.
    """
    kept = rest if "." in rest and _AUTHORS_NAME.fullmatch(f"x_{rest}") else re.sub(r"[\W_]+", "-", rest)
    return f"{person_name(person)}_{_cut(kept)}"


def clip_of_window(clip: str, window: int) -> str:
    """Return the name of a recording's clip: from the second on with a number, after a dot, which names of files lose."""
    return clip if window == 1 else f"{clip}.{window}"


def recording_of(clip: str) -> str:
    """Return the name of the first clip of a clip's recording."""
    return re.sub(r"\.\d{1,4}$", "", clip)


def hashed_name(name: str, path: str) -> str:
    """Return the name of a clip whose own name another file's clip has, such as 1.png beside 1.jpg: a hash is added."""
    return f"{name}-{_hash(path)}"


@functools.lru_cache(maxsize=100_000)
def person_name(person: str) -> str:
    """Return the name of a person as a part of file names: the same for the same person, and another one for each other.

    Letters of all scripts with their marks, digits, dots, hyphens and underscores stay. Where others were replaced, or a long
    name was cut, the name ends in a hash of the whole. Names that differ only in how Unicode composes their accents are one.
    """
    person = unicodedata.normalize("NFC", person)
    kept = "".join(
        letter if re.match(r"[\w.-]", letter) or unicodedata.category(letter)[0] == "M" else "\0" for letter in person
    )
    name = _cut(re.sub("\0+", "-", kept))
    return name if name == person else f"{name.rstrip('-')}-{_hash(person)}"


def _cut(name: str) -> str:
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:HASH_LETTERS]
