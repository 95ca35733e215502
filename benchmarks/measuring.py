"""What the benchmarks share."""

import os
import sys
import time
from pathlib import Path

from faces import vggface

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def random_vggface(home: Path) -> None:
    """Put random weights where VGG-Face's are looked for."""

    os.environ["KERAS_HOME"] = str(home)
    vggface.weights_path().parent.mkdir(parents=True)
    vggface._keras_vggface()[0].VGG16(weights=None).save_weights(vggface.weights_path())


def seconds_of(function, repeats: int = 3) -> float:
    """Return the least time that a function takes, in s, after one call that does not count."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)
