"""Options that a checkpoint holds, beside those that are given with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supercm_lightning.utils.options import SuperCMError

MACHINE = ("backbone_checkpoint", "channels_last", "compile")
"""Options of a method that do not change what it computes from a checkpoint on."""


def agreed_options(
    section: str, given: Mapping[str, Any], saved: Mapping[str, Any], resumed: bool, path: Any
) -> dict[str, Any]:
    """The options of a checkpoint, where those that are given for a section, `model` or `data`, agree with them.

    When a training is resumed, weights, rates and thresholds may change: options of a method that are fractional
    numbers on both sides take effect. Options that may be, and are, given otherwise are left out; others are an error.

    Examples:
        >>> agreed_options("model", {"beta": 9.0}, {"beta": 1.0, "backbone": "mlp"}, resumed=True, path="a.ckpt")
        {'backbone': 'mlp'}
    """
    changed = {name for name in saved if name in given and not _agree(given[name], saved[name])}
    free = {name for name in changed if name in MACHINE}
    if resumed and section == "model":
        free |= {name for name in changed if isinstance(given[name], float) and isinstance(saved[name], float)}
    for name in sorted(changed - free):
        raise SuperCMError(
            f"{section}.{name}={_plain(given[name])}: the checkpoint {path} was trained with {_plain(saved[name])}. "
            "Leave the option out, or give that value" + (" (fit may change fractional numbers)." if resumed else ".")
        )
    return {name: value for name, value in saved.items() if name not in free}


def _agree(given: Any, saved: Any) -> bool:
    """Whether a value is what was saved; of the options of a nested class only some need to be given."""
    given, saved = _plain(given), _plain(saved)
    if isinstance(given, dict) and isinstance(saved, dict):
        return all(name in saved and _agree(value, saved[name]) for name, value in given.items())
    return bool(given == saved)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
