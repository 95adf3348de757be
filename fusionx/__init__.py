"""Fusion-X: make one language model learn what several others know.

The packages lie at the repository's top, where a person looks for them; here are links to them, so that type checkers,
the wheel and Python see one import name, `fusionx`, that holds everything.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

if (_HERE / "contract").is_symlink():
    # In a checkout modules are loaded from where they really lie: tracebacks name, and breakpoints hit, these files.
    __path__.insert(0, str(_HERE.parent))
