"""Material in folders: videos of people talking, or voices and the faces that belong to them.

Never imports TensorFlow. There may be millions of files: paths are text, and of a recording nothing but path and name is kept.
"""

import bisect
import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import utils
from clips import folders, people, photos
from utils import InputError

# Suffixes of videos and recordings; what a file holds is told by its content. The formats are media.FORMATS.
VIDEO_SUFFIXES = """
    .3g2 .3gp .asf .avi .dav .divx .dv .f4v .flv .gxf .ivf .m1v .m2t .m2ts .m2v .m4v .mj2 .mkv .mov .mp4 .mpe .mpeg .mpg
    .mpv .mts .mxf .nsv .nut .ogm .ogv .ogx .qt .rm .rmvb .ts .vob .webm .wmv .wtv
"""
SOUND_SUFFIXES = """
    .3ga .aac .ac3 .adts .aif .aifc .aiff .amr .ape .au .awb .caf .dts .eac3 .flac .gsm .m4a .m4b .m4r .mka .mp2 .mp3 .mpga
    .nist .oga .ogg .opus .qcp .ra .rf64 .snd .sph .spx .tta .voc .w64 .wav .wave .weba .wma .wv
"""
VIDEOS, SOUNDS = VIDEO_SUFFIXES.split(), SOUND_SUFFIXES.split()

# Of several pictures of a speaker, so many are taken, spread over them, and their features averaged: a voice says nothing of
# pose, light and expression, in which single pictures differ.
AVERAGED_FACES = 5
MOST_FOLDERS = 2  # above those of people, whose names say nothing to us
# How pictures belong to a voice.
OWN, OF_FOLDER, OF_PERSON = "faces of its own", "faces of the same folder", "faces of the same person"


@dataclasses.dataclass(frozen=True)
class Recording:
    """A clip of a recording."""

    clip: str
    voice: Path  # a video, or a recording
    faces: tuple[Path, ...] | None  # photos or videos of the speaker; None if the recording is a video of the speaker
    window: int = 1  # number of the clip in the recording

    @property
    def person(self) -> str:
        return utils.person_of(self.clip)


@dataclasses.dataclass(frozen=True)
class Recordings:
    """The recordings in a folder, in the order of their paths."""

    folder: Path  # an absolute path, as `faces`
    paths: list[str]  # below the folder
    clips: list[str]  # the name of each one's first clip; "" where another file is the same recording
    notes: list[str]  # what was left out and what was assumed
    faces: Path | None = None  # folder of the faces; None if the recordings are videos of the speakers
    faces_of: Callable | None = None  # from a path to paths below that folder, and how these belong to it


def find_videos(folder: Path) -> Recordings:
    """Find the videos in a folder, and tell the people in them apart, see `folders.people_of`. Raises InputError for none."""
    paths, notes = _files(folder, "--folder", "videos", VIDEOS)
    person_and_rest, more = folders.people_of(map(folders.without_suffix, paths))
    clips, others = _names(paths, folders.without_suffix, person_and_rest)
    found = {utils.person_of(clip) for clip in clips if clip}
    if len(found) == 1 and len(paths) > 1:
        others.append(f"all videos are of one person, {found.pop()}; where the folders in it are people, name it as --folder")
    return Recordings(folder.absolute(), paths, clips, _printable(notes + more + others))


def pair(voices: Path, faces: Path, names: Path | None = None) -> Recordings:
    """Find the recordings in a folder, and for each of them the faces in another folder that show the speaker.

    A face belongs to a voice of the same person: best with the same path below the person, such as <video>/<n>; or else in the
    same folder, such as that of the video; or else of the same person.

    Args:
        voices: folder of recordings, or of videos for the sake of their sound.
        faces: folder of photos or videos.
        names: csv that gives people their other names, see `people.read_people`; None if they have the same name in both.

    Raises:
        InputError: if there are no recordings or no faces, or none belong together.
    """
    voice_paths, notes = _files(voices, "--voices", "recordings", [*SOUNDS, *VIDEOS])
    face_paths, more = _files(faces, "--faces", "photos or videos", [*photos.SUFFIXES, *VIDEOS])
    aliases = _aliases(names) if names else {}

    @functools.lru_cache(maxsize=100_000)
    def same_person(person):
        name = folders.person_name(person)
        return aliases.get(name, name)

    depths = _depths(voice_paths, face_paths, same_person)
    name_of_voice, name_of_face = (_name_below(depth) for depth in depths)
    every_name = itertools.chain(map(name_of_voice, voice_paths), map(name_of_face, face_paths))
    person_and_rest, assumed = folders.people_of(every_name)
    passed = (
        _empty_levels(map(name_of_voice, voice_paths), face_paths, person_and_rest),
        _empty_levels(map(name_of_face, face_paths), voice_paths, person_and_rest),
    )

    def key_of(name, levels):
        person, rest = person_and_rest(name)
        if levels and rest:
            *within, last = rest.split("/")
            rest = "/".join([folder for level, folder in enumerate(within) if level not in levels] + [last])
        return f"{same_person(person)}/{rest}" if rest else same_person(person)

    keys = [key_of(name_of_face(path), passed[1]) for path in face_paths]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    keys, face_paths = [keys[number] for number in order], [face_paths[number] for number in order]

    def faces_of(path):
        key = prefix = key_of(name_of_voice(path), passed[0])
        while True:
            first, last = bisect.bisect_left(keys, prefix), bisect.bisect_right(keys, prefix)
            if first == last:  # none of this name: all in the folder of this name; "0" follows "/"
                first, last = bisect.bisect_left(keys, f"{prefix}/"), bisect.bisect_left(keys, f"{prefix}0")
            above, slash, _ = prefix.rpartition("/")
            if first < last:
                n, most = last - first, AVERAGED_FACES
                chosen = range(first, last) if n <= most else [first + i * (n - 1) // (most - 1) for i in range(most)]
                how = OWN if prefix == key else OF_FOLDER if slash else OF_PERSON
                return [face_paths[number] for number in chosen], how
            if not slash:
                return [], ""
            prefix = above

    clips, others = _names(voice_paths, name_of_voice, person_and_rest, same_person)
    people_of_voices = {aliases.get(name, name) for name in {utils.person_of(clip) for clip in clips if clip}}
    people_of_faces = {key.partition("/")[0] for key in keys}
    if not people_of_voices & people_of_faces:
        raise InputError(
            f"{faces}: expected faces of the people in {voices}, such as {min(people_of_voices)}, found others, such as "
            f"{min(people_of_faces)}; name the folders alike, or pass a csv of both names as --names"
        )
    for folder, depth in zip((voices, faces), depths):
        if depth:
            others.append(
                f"people are told by the folders on level {depth + 1} of {folder}: none on a level above is on both sides"
            )
    if alone := people_of_faces - people_of_voices:
        others.append(f"without a voice in {voices}: {_counted_people(len(alone))} in {faces}, such as {min(alone)}")
    notes = _printable([*notes, *more, *assumed, *others])
    return Recordings(voices.absolute(), voice_paths, clips, notes, faces.absolute(), faces_of)


# ----------------------------------------------------------------------------------------------------------------------
# Files and names.


def _files(folder: Path, option: str, kind: str, suffixes) -> tuple[list[str], list[str]]:
    """Return the paths of files below a folder, and lines on what was left out. Raises InputError for none."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "none"
        raise InputError(f"{folder}: expected a folder of {kind}, found {found}; pass another {option}")
    paths, left_out = folders.files_under(folder, suffixes)
    if not paths:
        found = f"none but {left_out}" if left_out else "none"
        raise InputError(f"{folder}: expected {kind}, found {found}; pass another {option}")
    return paths, [f"left out of {folder}: {left_out}"] if left_out else []


def _names(paths: list[str], name_of, person_and_rest, same_person=str) -> tuple[list[str], list[str]]:
    """Name the first clip of each recording.

    Args:
        paths: of the recordings.
        name_of: function from a path to what `person_and_rest` takes.
        person_and_rest: of `folders.people_of`.
        same_person: function from a person to the same name for all names of that person, of which the first here is used.

    Returns:
        The names, "" where another recording has the same path below the same person; and lines on what was assumed.
    """
    clips, known, same, alone, spelled = [], {}, [], [], {}
    for path in paths:
        person, rest = person_and_rest(name_of(path))
        person = spelled.setdefault(same_person(person), person)
        name, key = folders.clip_name(person, rest or "clip"), hash((person, rest))
        if known.get(name) == key:
            same.append(path)
            name = ""
        elif name in known:  # a_b.wav beside a-b.wav
            name = folders.hashed_name(name, path)
        known[name] = key
        clips.append(name)
        if not rest:
            alone.append(path)
    notes = []
    if len(alone) > 1:
        advice = "put the files of one person into a folder"
        notes.append(f"{len(alone)} files are of a person each, such as {alone[0]}; {advice}")
    if same:
        notes.append(f"left out, for another file has the same person and name: {len(same)}, such as {same[0]}")
    return clips, notes


def _printable(notes) -> list[str]:
    return [utils.printable(note) for note in notes]


def _counted_people(n: int) -> str:
    return "1 person" if n == 1 else f"{n} people"


# ----------------------------------------------------------------------------------------------------------------------
# People and levels of folders.


def _aliases(path: Path) -> dict[str, str]:
    """Return one name for all names of each person in a csv. Raises InputError if a name is that of two people."""
    expected = "a csv with two columns of names, such as vox1_meta.csv"
    aliases = {}
    for person in people.read_people(path, expected):
        names = people.spellings(person.names)
        for name in names:
            if aliases.setdefault(name, names[0]) != names[0]:
                raise InputError(
                    f"{path}: expected {expected}, found {name} for both {aliases[name]} and {names[0]}; correct the file"
                )
    return aliases


def _name_below(depth: int):
    """Return the function from a path to its name below so many folders."""
    if depth == 0:
        return folders.without_suffix
    return lambda path: folders.below(folders.without_suffix(path), depth)


def _depths(voices: list[str], faces: list[str], same_person) -> tuple[int, int]:
    """Return how many folders, in which all else lies, stand above those of people: the fewest by which a person is on both.

    A level with several folders is never passed over: these may be people, and videos below them of one name on both sides.
    """
    most = []
    for paths in (voices, faces):
        first = paths[0].split("/")[:-1]
        alone = next((n for n, _ in enumerate(first) if not _all_in("/".join(first[: n + 1]), paths)), len(first))
        most.append(min(alone, MOST_FOLDERS))
    some_voices, some_faces = (
        set(_possible_people(paths[:: 1 + len(paths) // 1000], 0, same_person)) for paths in (voices, faces)
    )
    if some_voices & some_faces:
        return 0, 0
    for depths in sorted(itertools.product(*(range(n + 1) for n in most)), key=sum):
        of_voices, of_faces = (_possible_people(*of, same_person) for of in zip((voices, faces), depths))
        if not set(of_faces).isdisjoint(of_voices):
            return depths
    return 0, 0


def _possible_people(paths: list[str], depth: int, same_person):
    """Yield whom paths may be of, if so many folders stand above those of people."""
    name_of = _name_below(depth)
    for path in paths:
        yield from map(same_person, folders.possible_people(name_of(path)))


def _all_in(folder: str, paths: list[str]) -> bool:
    return all(path.startswith(f"{folder}/") for path in paths)


def _empty_levels(names, others: list[str], person_and_rest) -> set[int]:
    """Return the levels of folders below the person that say nothing, as 1.6 in <person>/1.6/<video>.

    Such a folder is in all the paths of one side, and is in none of the other side's, nor the name of a file there.
    """
    alike = None
    for name in names:
        within = person_and_rest(name)[1].split("/")[:-1]
        alike = within if alike is None else [name if name == other else None for name, other in zip(alike, within)]
        if not any(alike):
            return set()

    def is_known(name):
        return any(f"/{name}/" in path or f"/{name}." in path for path in others)

    return {level for level, name in enumerate(alike) if name and not is_known(name)}


# ----------------------------------------------------------------------------------------------------------------------
# The dry run.


def listed(found: Recordings, limit: int | None = None):
    """Say what would become of recordings, for a dry run.

    Yields:
        For each of the first `limit` recordings a line of its path, the name of its first clip or why it gives none, and, where
        faces are apart, how these belong to it and their paths, separated by tabs; at last a line that sums up.
    """
    counts, people_found = collections.Counter(), set()
    for path, clip in list(zip(found.paths, found.clips))[:limit]:
        pictures, how = found.faces_of(path) if found.faces_of else ((), "")
        if not clip:
            said = "left out: another recording has its person and name"
        elif found.faces_of and not pictures:
            said = "unpaired: no face of its speaker"
        else:
            said = clip
            people_found.add(utils.person_of(clip))
        counts[how if said == clip else said.partition(":")[0]] += 1
        yield "\t".join(map(utils.printable, [path, said, *([how, *pictures] if pictures and said == clip else ())]))
    n, paired = counts.total(), sum(counts[how] for how in (OWN, OF_FOLDER, OF_PERSON, ""))
    kinds = ", ".join(f"{counts[how]} with {how}" for how in (OWN, OF_FOLDER, OF_PERSON) if counts[how])
    rest = ", ".join(f"{counts[how]} {how}" for how in ("unpaired", "left out") if counts[how])
    yield f"{n} recordings, {paired} of {_counted_people(len(people_found))} to be used" + "".join(
        f"; {words}" for words in (kinds, rest) if words
    )
