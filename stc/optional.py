"""Libraries that not every command needs: imported when asked for, and never older than declared.

The oldest version of each that is tested stands in the project's own metadata, which pip compares
when it installs, and only then: a library that another project replaced is found here.
"""

from __future__ import annotations

import functools
import importlib
import re
from importlib import metadata
from types import ModuleType

from stc.errors import EngineError, StcError


def load(
    module: str, package: str, *, subject: str, fix: str, error: type[StcError] = EngineError
) -> ModuleType:
    """The module called `module`, of the package that pip calls `package`.

    Raises `error` about `subject`, ending in `fix`, when it cannot be imported, or when it is older
    than the project declares. A package that is there but broken (a shared library is missing) is
    told from one that is not.
    """
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise error(subject, f"Python package {missing.name} not found", "", fix) from missing
    except Exception as broken:  # a broken library may raise anything while it is imported
        raise error(subject, f"cannot be loaded ({broken})", "", fix) from broken
    least = oldest(package)
    version = version_of(found, package)
    if least is not None and older(version, least):
        got = f"{package} {version} is too old"
        raise error(subject, got, f"{least} or newer", upgrade(package, least))
    return found


def upgrade(package: str, least: str) -> str:
    """The command that replaces `package` by version `least` or a newer one."""
    return f"pip install --upgrade '{package}>={least}'"


def oldest(package: str) -> str | None:
    """The oldest version of `package` that this project declares and tests; None if it declares
    none, or was not installed by pip, so that nothing tells."""
    return _declared().get(package)


def version_of(module: ModuleType, package: str) -> str:
    """What `module` says its version is, or what pip says of `package`; "unknown" if neither."""
    version = getattr(module, "__version__", None)
    if version is None:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "unknown"
    return str(version)


def older(version: str, least: str) -> bool:
    """Whether `version` ('1.22.0.post1') is older than `least` ('1.23'); "unknown" is not."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return leading is not None and _numbers(leading[0]) < _numbers(least)


def _numbers(version: str) -> list[int]:
    """The numbers of '1.23.0', without the zeros behind which nothing follows: it is 1.23."""
    numbers = [int(number) for number in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


@functools.cache
def _declared() -> dict[str, str]:
    """Package and oldest version of every requirement of the installed project."""
    try:
        requirements = metadata.requires("stc") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)[^;]*>= *([\d.]+)", requirement) for requirement in requirements)
    return {match[1].lower(): match[2] for match in found if match}
