"""The walls of the house: who may import whom, and what never reaches TensorFlow. CONTRIBUTING.md draws the layout."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = ("preprocess", "train", "evaluate", "hear", "share")
# From the top down. A file may import its own wing and all below; a script may import no other script.
LEVELS = (SCRIPTS, ("listening",), ("training",), ("faces",), ("model", "judging"), ("voices",), ("clips",), ("utils",))
JUDGING_IMPORTS = ("judging", "clips", "utils")  # stands beside model and needs no network
WINGS = ("voices", "clips", "faces", "judging", "listening", "training")
NO_TENSORFLOW = ("clips", "judging", "utils", "faces.textures", "faces.decoder_statistics")
# Loaders of slow packages that only some runs need; all other imports inside functions stand in a script.
LOADERS = {
    "clips/detection.py": ("dlib", "face_recognition"),
    "clips/fetch.py": ("yt_dlp",),
    "clips/preprocessing.py": ("clips",),
    "faces/vggface.py": ("tf_keras",),
    "clips/speech.py": ("onnxruntime",),
    "listening/answers.py": ("judging",),
}


def level_of(name):
    return next(number for number, names in enumerate(LEVELS) if name in names)


def imports_of(path):
    """Yield the name of each module that a file imports, its line, and whether the import stands inside a function."""
    tree = ast.parse(path.read_text())
    outer = {id(node) for node in ast.iter_child_nodes(tree)}
    for guarded in (node for node in tree.body if isinstance(node, (ast.Try, ast.With, ast.If))):
        outer |= {id(node) for node in ast.walk(guarded)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in outer
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: expected an absolute import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, id(node) not in outer


def arrows_back_up(root):
    """Return a line for each import that the walls forbid."""
    ours = {name for names in LEVELS for name in names}
    found = []
    for path in sorted(
        [*(root / f"{name}.py" for name in ours), *(file for wing in WINGS for file in (root / wing).glob("*.py"))]
    ):
        if not path.exists():
            continue
        importer = path.relative_to(root).parts[0].removesuffix(".py")
        for module, line, _ in imports_of(path):
            imported = module.partition(".")[0]
            if imported not in ours or imported == importer:
                continue
            allowed = imported in JUDGING_IMPORTS if importer == "judging" else level_of(importer) < level_of(imported)
            if not allowed:
                found.append(f"{path.relative_to(root)}:{line}: {importer} -> {imported}")
    return found


def test_imports_point_down():
    assert arrows_back_up(ROOT) == []


@pytest.mark.parametrize(
    "file, line, arrow",
    [
        ("clips/media.py", "import model", "clips/media.py:1: clips -> model"),
        ("utils.py", "def f():\n    from clips import media", "utils.py:2: utils -> clips"),
        ("judging/ranks.py", "from voices import ge2e", "judging/ranks.py:1: judging -> voices"),
        ("model.py", "from judging.ranks import rank", "model.py:1: model -> judging"),
        ("evaluate.py", "import train", "evaluate.py:1: evaluate -> train"),
        ("faces/decoder.py", "if True:\n    from training import runs", "faces/decoder.py:2: faces -> training"),
    ],
)
def test_a_planted_arrow_is_reported(file, line, arrow, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line + "\n")
    assert arrows_back_up(tmp_path) == [arrow]


def test_imports_inside_functions_are_those_of_scripts_and_loaders():
    for path in (file for wing in WINGS for file in (ROOT / wing).glob("*.py")):
        allowed = LOADERS.get(str(path.relative_to(ROOT)), ())
        inside = [module for module, _, is_inside in imports_of(path) if is_inside]
        assert {module.partition(".")[0] for module in inside} <= set(allowed), path
    for name in SCRIPTS:
        tree = ast.parse((ROOT / f"{name}.py").read_text())
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        importing = {f.name for f in functions if any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(f))}
        assert len(importing) <= 2, (name, importing)


@pytest.mark.parametrize("module", NO_TENSORFLOW)
def test_what_never_reaches_tensorflow(module):
    """Neither by its own imports nor by those of what it imports."""
    root = ROOT / module.replace(".", "/")
    names = [f"{module}.{path.stem}" for path in sorted(root.glob("[!_]*.py"))] or [module]
    code = f"import sys, {', '.join(names)}\nprint({{'tensorflow', 'keras', 'tf_keras'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_worker_processes_stay_small():
    """What a worker imports before its first clip."""
    code = "import sys, clips.extraction, clips.workers, faces.textures\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"tensorflow", "keras", "librosa", "matplotlib", "yt_dlp", "distributed", "sklearn"}
    assert not heavy & set(done.stdout.split())


def test_the_top_level_holds_the_scripts_and_what_all_share():
    assert {path.stem for path in ROOT.glob("*.py")} == {*SCRIPTS, "model", "utils"}


def test_no_file_is_longer_than_450_lines():
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    lengths = {name: (ROOT / name).read_text().count("\n") for name in files if Path(ROOT, name).exists()}
    assert len(lengths) > 50 and {name: n for name, n in lengths.items() if n > 450} == {}
