"""`python -m fusionx.train.distributed.agent --end-with-parent=PID ...`: torchrun, which ends with its command.

What torchrun starts asks for a stop signal at torchrun's death; torchrun itself has to ask for one at its command's.
"""

from __future__ import annotations

import sys

from fusionx.train.distributed.parent import END_WITH_PARENT, end_with_parent


def main(arguments: list[str]) -> None:
    """Of a stop signal torchrun tells its processes, and waits until they have saved."""
    first, *others = arguments
    end_with_parent(int(first.removeprefix(f"{END_WITH_PARENT}=")))
    from torch.distributed.run import main as torchrun

    torchrun(others)


if __name__ == "__main__":
    main(sys.argv[1:])
