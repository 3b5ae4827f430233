"""`python -m pearl_rt`."""

import sys

from pearl_rt.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
