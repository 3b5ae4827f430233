"""`python -m pearl_rt`."""

import sys

from pearl_rt.cli import main

if __name__ == "__main__":
    sys.exit(main())
