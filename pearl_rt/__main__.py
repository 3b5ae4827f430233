"""`python -m pearl_rt`."""

import sys

from pearl_rt.errors import ResourceError, within_limits

if __name__ == "__main__":
    try:
        with within_limits():
            from pearl_rt.cli.commands import main
    except ResourceError as error:  # too little memory for numpy alone
        sys.stderr.write(f"pearl_rt: {error}\n")
        sys.exit(2)
    sys.exit(main())
