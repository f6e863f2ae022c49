"""Short help of the command line: the options of a method or data module."""

import inspect
import pydoc
from collections.abc import Iterator
from typing import Any

from docstring_parser import parse
from lightning.pytorch import LightningDataModule, LightningModule

import supercm_lightning
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.overview import line_of, overview
from supercm_lightning.utils.parser import did_you_mean, subclasses_of

_BASES = {"model": LightningModule, "data": LightningDataModule}


def class_help(section: str, name: str) -> str:
    """The options of a method or data module (section `model` or `data`), with defaults and meaning.

    A class of the user is named with its module; without a name it is an overview.
    """
    if not name or name.startswith("-"):
        return overview()
    base = _BASES[section]
    known = {kind.__name__: kind for kind in _public(base)}
    found = known.get(name.rpartition(".")[2]) if name.startswith("supercm_lightning.") else known.get(name)
    kind = found or pydoc.locate(name)
    if not isinstance(kind, type) or not issubclass(kind, base):
        raise SuperCMError(f"{section}.help={name}: there is no such class{did_you_mean(name, known)}")
    meanings: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    hands_on = True
    for one in inspect.getmro(kind):
        if "__init__" not in vars(one) or one in inspect.getmro(base):
            continue
        for text in (vars(one).get("__doc__"), vars(one)["__init__"].__doc__):
            for each in parse(text or "").params:
                meanings.setdefault(each.arg_name, each.description or "")
        own = inspect.signature(vars(one)["__init__"]).parameters.values() if hands_on else ()
        hands_on = any(taken.kind is taken.VAR_KEYWORD for taken in own)
        for taken in own:
            if taken.name != "self" and taken.kind not in (taken.VAR_POSITIONAL, taken.VAR_KEYWORD):
                defaults.setdefault(taken.name, taken.default)
    lines = [f"{kind.__name__}: {(inspect.getdoc(kind) or '').partition(chr(10))[0]}", ""]
    for option, value in defaults.items():
        if section == "data" or option not in ("num_classes", "input_shape"):  # the data gives them
            default = "" if value is inspect.Parameter.empty else f"={_shown(value)}"
            lines.append(line_of(f"--{section}.{option}{default}", meanings.get(option, ""), 36, most=2))
    return "\n".join(lines)


def asked_help(arguments: Any) -> Iterator[tuple[str, str]]:
    """Section and class of each `--model.help NAME` or `--data.help NAME` of a command line.

    Examples:
        >>> list(asked_help(["fit", "--model.help", "SuperCM", "--data.help=ClusteringDataModule"]))
        [('model', 'SuperCM'), ('data', 'ClusteringDataModule')]
    """
    words = [str(word) for word in arguments] if isinstance(arguments, list) else []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, given, name = word.partition("=")
        if option in ("--model.help", "--data.help"):
            yield option[2:].partition(".")[0], name if given else following


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _public(base: type[Any]) -> Iterator[type[Any]]:
    for kind in dict.fromkeys(subclasses_of(base)):
        if getattr(supercm_lightning, kind.__name__, None) is kind:
            yield kind
