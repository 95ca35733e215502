"""Connect to the workers of a Dask cluster, for preprocess.py --scheduler."""

import logging
import tempfile
import zipfile
from pathlib import Path

import distributed

from utils import InputError

SCHEDULER_SECONDS = 30  # s to wait for a Dask scheduler and its first worker


def pack(folder: Path) -> Path:
    """Write a zip of utils.py and clips/, from which the workers import them, whatever folder they run in.

    Returns:
        The path of the zip in `folder`.
    """
    root = Path(__file__).resolve().parent.parent
    path = folder / "speech2face.zip"
    with zipfile.ZipFile(path, "w") as file:
        for module in (root / "utils.py", *sorted((root / "clips").glob("*.py"))):
            file.write(module, module.relative_to(root))
    return path


def connect(address: str):
    """Connect to a Dask scheduler.

    Args:
        address: such as tcp://host:8786.

    Returns:
        Its client, and the number of threads of all workers.

    Raises:
        InputError: if there is no scheduler, or it has no workers.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are reported below
    client = None
    try:
        client = distributed.Client(address, timeout=SCHEDULER_SECONDS)
        client.wait_for_workers(1, timeout=SCHEDULER_SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            client.upload_file(str(pack(Path(folder))))
        return client, sum(client.nthreads().values())
    except (OSError, ValueError, TimeoutError) as error:
        if client:
            client.close(timeout=1)
        raise InputError(
            f"--scheduler: expected a Dask scheduler with workers at {address}, found {'no worker' if client else 'none'}; "
            f"start some: dask scheduler, dask worker {address}; {' '.join(str(error).split())}"
        ) from None
