"""The page of hear.py --page in a container, where it must answer on all addresses: python -m space.app."""

import hear
import utils
from listening import page


@utils.reporting_errors
def main(_=None) -> int:
    page.serve(hear.load(), None, hear.Options.port, host="0.0.0.0")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
