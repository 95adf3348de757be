"""Optional packages: imported where they are used, and named with their remedy where they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fusionx.contract.errors import ConfigError


def import_extra(module: str, extra: str, field: str) -> Any:
    """The module `module`, which the extra `extra` installs; `field` is the setting that asks for it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ConfigError(
            f"This needs the package {package}.",
            field=field,
            found=str(error),
            expected=f"an installed {package}",
            remedy=f"pip install --constraint constraints.txt '.[{extra}]'",
        ) from None
