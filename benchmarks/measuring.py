"""What the benchmarks share."""

import os
import time
from pathlib import Path

from faces import vggface

ROOT = Path(__file__).resolve().parent.parent


def random_vggface(home: Path) -> None:
    """Write random weights to where VGG-Face's are expected."""
    os.environ["KERAS_HOME"] = str(home)
    vggface.weights_path().parent.mkdir(parents=True)
    vggface._keras_vggface()[0].VGG16(weights=None).save_weights(vggface.weights_path())


def seconds_of(function, repeats: int = 3) -> float:
    """Return the shortest time that a function takes, in s, after one call that does not count."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)
