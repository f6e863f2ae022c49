"""Errors and checks of options: one line that names the option, its value and the remedy."""

import math
import re
from collections.abc import Iterable
from typing import Any

from supercm_lightning.utils.text import printable


class SuperCMError(ValueError):
    """Input that cannot be used; the message names the option or the file and the remedy, and needs no traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())  # names of files are not the user's words alone


class MissingFileError(SuperCMError, FileNotFoundError):
    """A file or folder that does not exist; the message names it and says what is expected there."""


def user_error(error: BaseException) -> SuperCMError | None:
    """The `SuperCMError` among an exception and its causes, without the traceback that a loader's worker adds, or None.

    Examples:
        >>> try:
        ...     raise RuntimeError("parser") from SuperCMError("lr=-1: must be positive.")
        ... except RuntimeError as error:
        ...     user_error(error)
        SuperCMError('lr=-1: must be positive.')
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, SuperCMError):
        if isinstance(cause, ModuleNotFoundError) and "pip install" in str(cause):
            return SuperCMError(" ".join(str(cause).split()))
        cause = cause.__cause__
    if cause is None or not str(cause).startswith("Caught "):
        return cause
    *_, message = re.split(rf"^[\w.]*{type(cause).__name__}: ", str(cause), flags=re.MULTILINE)
    return type(cause)(message.strip())


def check_choice(**options: tuple[Any, Iterable[Any]]) -> None:
    """Checks options, each given with its allowed values; the error names the option and the values."""
    for name, (value, allowed) in options.items():
        if value not in (allowed := tuple(allowed)):
            raise SuperCMError(f"{name}={value!r}: choose one of {', '.join(map(str, allowed))}.")


def check_range(low: float, high: float = math.inf, **options: float | None) -> None:
    """Checks that options lie in a closed range; None passes, and what is not a number does not."""
    for name, value in options.items():
        if value is not None and not low <= value <= high:
            expected = f"between {low} and {high}" if math.isfinite(high) else f"at least {low}"
            raise SuperCMError(f"{name}={value}: must be {expected}.")


def check_positive(**options: float | None) -> None:
    """Checks that options are larger than zero; None passes."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise SuperCMError(f"{name}={value}: must be positive.")


def check_decay(**options: float) -> None:
    """Checks that decays of running means lie in [0, 1)."""
    for name, value in options.items():
        if not 0 <= value < 1:
            raise SuperCMError(f"{name}={value}: must be in [0, 1); a running mean never changes with 1.")
