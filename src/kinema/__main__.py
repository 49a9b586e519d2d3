"""Run the command `kinema` as `python -m kinema`."""

import sys

from kinema.cli import main

if __name__ == "__main__":
    sys.exit(main())
