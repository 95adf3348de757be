"""`python -m fusionx`: the command line, wherever a launcher wants a module (`torchrun ... -m fusionx train`)."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the working directory, which `-m` puts first; a user's own torch.py or train.py lies there

from fusionx.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
