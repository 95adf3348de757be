"""`python -m fusionx`: the command line."""

import sys

from fusionx.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
