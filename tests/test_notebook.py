"""docs/hear.ipynb runs, and shows what it did when it was stored.

`python tests/test_notebook.py` runs the notebook, and stores what it shows now.
"""

import base64
import io
import re
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "hear.ipynb"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
LARGEST = 700_000  # bytes
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'(=\[])(?:/\w|~/|[A-Za-z]:\\)""", re.MULTILINE)
ROUNDED = re.compile(r"-?\d+\.\d+|\d+(?= %)")  # numbers that may differ a little on another machine; others may not


def execute() -> nbformat.NotebookNode:
    """Run the notebook in its own folder, and return it; the file stays as it is."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": NOTEBOOK.parent}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources, record_timing=False).execute()
    notebook.metadata = METADATA  # without the version of Python
    return notebook


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed():
    return execute()  # raises CellExecutionError where a cell does


def text_of(cell) -> str:
    """Return what a cell shows as text."""
    return "".join(output.text if output.output_type == "stream" else output.data["text/plain"] for output in cell.outputs)


def pictures_of(notebook) -> list[np.ndarray]:
    """Return all pictures that a notebook shows, uint8 (height, width, 3), RGB."""
    data = (output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))
    encoded = (base64.b64decode(shown["image/png"]) for shown in data if "image/png" in shown)
    return [np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in encoded]


def test_the_cells_print_what_is_stored(stored, executed):
    assert len(executed.cells) == len(stored.cells) and 8 <= len(stored.cells) <= 12
    for now, then in zip(executed.cells, stored.cells):
        if then.cell_type == "code":
            shown, expected = text_of(now), text_of(then)
            assert ROUNDED.sub("number", shown) == ROUNDED.sub("number", expected)
            numbers = [[float(number) for number in ROUNDED.findall(text)] for text in (shown, expected)]
            assert numbers[0] == pytest.approx(numbers[1], rel=0.05, abs=0.02), then.id


def test_the_pictures_are_those_that_are_stored(stored, executed):
    pictures = pictures_of(executed)
    assert [picture.shape for picture in pictures] == [(256, 256, 3), (160, 640, 3), (256, 512, 3)]
    assert pictures[0].std() > 20 and (pictures[2][:, :256] == pictures[0]).all()  # the woman's face, twice
    for now, then in zip(pictures, pictures_of(stored), strict=True):
        assert np.abs(now.astype(float) - then).mean() < 1


def test_no_cell_shows_an_error_or_a_warning(stored, executed):
    for notebook in (stored, executed):
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        assert len(outputs) > 8
        assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []


def test_the_refusal_gives_advice(executed):
    refused = next(cell for cell in executed.cells if cell.id == "refused")
    assert text_of(refused).startswith("directions: expected (N, D), each of length 1") and "normalise" in text_of(refused)


def test_the_cell_for_colab_does_nothing_elsewhere(executed):
    colab = next(cell for cell in executed.cells if cell.cell_type == "code")
    assert colab.source.startswith("# For Colab; not tested there.") and colab.outputs == []


def test_the_file_is_small_and_tells_nothing_of_the_machine(stored):
    assert NOTEBOOK.stat().st_size < LARGEST
    assert stored.metadata == METADATA
    assert {str(cell.metadata) for cell in stored.cells} == {"{}"}
    texts = [cell.source + "\n" + (text_of(cell) if cell.cell_type == "code" else "") for cell in stored.cells]
    assert [found for text in texts for found in ABSOLUTE_PATH.findall(text)] == []
    counts = [cell.execution_count for cell in stored.cells if cell.cell_type == "code"]
    assert counts == [*range(1, len(counts) + 1)]


@pytest.mark.parametrize("path", ["/home/a", "see '/var/a.png'", "~/a", r"C:\a", 'cd "/content"'])
def test_what_counts_as_an_absolute_path(path):
    assert ABSOLUTE_PATH.search(path)


@pytest.mark.parametrize("text", ["data/voices/woman.m4a", "https://a.b/c", "1 / 2", "and/or", "len(samples) // 2"])
def test_what_counts_as_no_absolute_path(text):
    assert not ABSOLUTE_PATH.search(text)


if __name__ == "__main__":
    nbformat.write(execute(), NOTEBOOK)
