"""space/: what hosts the page of hear.py as a Space of Hugging Face."""

import re
import subprocess
import sys
from unittest.mock import create_autospec

import pytest
import yaml
from conftest import ROOT

import hear
from listening import page
from space import app

SPACE = ROOT / "space"
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")  # that Hugging Face knows


@pytest.fixture(scope="module")
def instructions():
    """The Dockerfile's: (name, rest of the line)."""
    lines = re.sub(r"\\\n", " ", (SPACE / "Dockerfile").read_text()).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def front_matter():
    empty, matter, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(matter)


def copied(instructions) -> list[str]:
    return [source for name, rest in instructions if name == "COPY" for source in rest.split()[:-1]]


def test_the_front_matter_is_complete(front_matter):
    assert front_matter["title"] == "Speech2Face" and front_matter["sdk"] == "docker" and front_matter["license"] == "mit"
    assert {front_matter["colorFrom"], front_matter["colorTo"]} <= set(COLOURS)
    assert front_matter["emoji"] and not front_matter["emoji"].isascii() and front_matter["pinned"] is False
    assert 0 < len(front_matter["short_description"]) <= 60  # Hugging Face refuses more


def test_there_is_one_port(front_matter, instructions):
    exposed = [rest for name, rest in instructions if name == "EXPOSE"]
    assert exposed == [str(front_matter["app_port"])] == [str(hear.Options.port)]


def test_all_that_is_copied_exists(instructions):
    sources = copied(instructions)
    assert len(sources) > 10 and [source for source in sources if not (ROOT / source).exists()] == []


def test_the_readme_sends_what_is_copied(instructions):
    """And the folder of the Dockerfile: it is copied to the top of the Space, with the README."""
    command = re.search(r"git archive HEAD (.*?) \| tar", (SPACE / "README.md").read_text(), re.DOTALL).group(1)
    sent = set(command.replace("\\\n", " ").split())
    assert sent == {source.removesuffix("/app.py") for source in copied(instructions)}


def test_packages_are_installed_as_by_the_makefile(instructions):
    installing = [rest for name, rest in instructions if name == "RUN" and rest.startswith("pip install")]
    assert len(installing) == 1 and installing[0].endswith("--no-deps -r requirements.txt")
    assert "install --quiet --disable-pip-version-check --no-deps -r $(LOCK)" in (ROOT / "Makefile").read_text()


def test_the_container_has_what_the_page_imports(instructions, tmp_path):
    """In a folder with what is copied and nothing else, each file of the project that is imported is found."""
    for source in copied(instructions):
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / source).symlink_to(ROOT / source)
    code = "import space.app, listening.listener, sys; print(sys.modules['space.app'].__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "space" / "app.py"), done.stderr


def test_the_page_answers_on_all_addresses(monkeypatch):
    serve = create_autospec(page.serve)  # takes what page.serve takes
    monkeypatch.setattr(page, "serve", serve)
    monkeypatch.setattr(hear, "load", lambda: "loaded")
    assert app.main() == 0
    serve.assert_called_once_with("loaded", None, hear.Options.port, host="0.0.0.0")


def test_the_user_is_the_one_of_spaces(instructions):
    assert ("RUN", "useradd --create-home --uid 1000 user") in instructions
    names = [name for name, _ in instructions]
    assert ("USER", "user") in instructions and names.index("USER") < names.index("CMD")
    assert instructions[0] == ("FROM", "python:3.12-slim") and instructions[-1][0] == "CMD"
