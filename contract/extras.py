"""Optional packages: imported where they are used, and named with their remedy where they are missing."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
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
        raise _missing(module, extra, field, str(error)) from None


def check_extra(module: str, extra: str, field: str) -> None:
    """The same without importing it.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec(module) is None:
        raise _missing(module, extra, field, "it is not installed")


def _missing(module: str, extra: str, field: str, found: str) -> ConfigError:
    package = module.split(".")[0]
    return ConfigError(
        f"This needs the package {package}.",
        field=field,
        found=found,
        expected=f"an installed {package}",
        remedy=f"pip install --constraint constraints.txt '.[{extra}]'",
    )
