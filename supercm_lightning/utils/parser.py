"""The parser of the command line: an error is one line that names the option and what was probably meant."""

import difflib
import errno
import inspect
import os
import pydoc
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from supercm_lightning.utils.options import user_error
from supercm_lightning.utils.text import printable

_EXPECTED = (OSError, ModuleNotFoundError, FloatingPointError, MisconfigurationException)
_LOGGERS = ("wandb.", "mlflow.")  # whose servers may not be reached, or want a key
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Prints an error of the input, the files or the installation without its traceback, and exits with status 2."""
    try:
        yield
    except Exception as error:
        message: object = user_error(error)
        if isinstance(error, OSError) and error.errno in _DISK:
            message = f"{error.filename or 'a file'}: {error.strerror}. Free the disk, or write elsewhere."
        elif message is None and (isinstance(error, _EXPECTED) or type(error).__module__.startswith(_LOGGERS)):
            message = " ".join(str(error).split()) or repr(error)
        if message is None:
            raise
        print(f"error: {printable(str(message))}", file=sys.stderr)
        sys.exit(2)


class CommandParser(LightningArgumentParser):
    """Lightning's parser with short messages; jsonargparse prints every option of the trainer and nested types."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong and exits with status 2; the parsers of nested options raise."""
        if not self.exit_on_error:
            super().error(message, ex)
        known = (name for name in self.get_defaults().keys() if name not in ("config", "subcommand"))  # noqa: SIM118
        if missing := re.search(r"arguments are required: (.*)", message):
            message = f"{re.sub(r'(?:fit|validate|test|predict)[.]', '', missing[1])}: must be given; "
            message += f"{self.prog} --help says how"
        print(f"error: {explain(message, known)}", file=sys.stderr)
        sys.exit(2)


def explain(message: str, known: Iterable[str] = ()) -> str:
    """A message of jsonargparse in one line: the option, what is wrong, and names close to the one that was given.

    `known` are the options that there are, by default those of `supercm`.

    Examples:
        >>> explain("unrecognized arguments: --trainer.max_epoch 1")
        'there is no option trainer.max_epoch; did you mean trainer.max_epochs?'
    """
    if unknown := re.search(r"unrecognized arguments: -*([\w.]+)|does not accept option '([\w.]+)'", message):
        name = unknown[1] or unknown[2]
        trainer = (f"trainer.{option}" for option in inspect.signature(Trainer).parameters)
        options = ("config", "model", "data", "trainer", "ckpt_path", "seed_everything", "version", *trainer)
        return f"there is no option {name}{did_you_mean(name, tuple(known) or options)}"
    if unknown := re.search(r"invalid choice: '(\S+)' \(choose from (.*)\)", message):
        commands = re.findall(r"\w+", unknown[2])
        return f"there is no command {unknown[1]}{did_you_mean(unknown[1], commands)}; there are {', '.join(commands)}"
    outer = re.search(r'Parser key "([\w.]+)"', message)
    key = outer[1] if outer else ""
    if unknown := re.search(r"class_path '([\w.]+)':\s+Option '(\w+)' is not accepted", message):
        kind, name = unknown[1], unknown[2]
        if kind.startswith("lightning."):
            return f"{key}.{name}: give --{key} NAME before its options"
        return f"{key}.{name}: {kind.rpartition('.')[2]} has no such option{did_you_mean(name, _options(kind))}"
    if unknown := re.search(r"Expected a dot import path string: (\S+)", message):
        base = {"model": LightningModule, "data": LightningDataModule, "trainer.logger": Logger}.get(key, Callback)
        classes = (kind.__name__ for kind in subclasses_of(base))
        return f"{key}={unknown[1]}: there is no such class{did_you_mean(unknown[1], classes)}"
    problem = re.search(r"Problem with given class_path '[\w.]+':\n(.*?)(?=\n    - |\Z)", message, re.DOTALL)
    inner = problem[1] if problem else message
    keys = ([key] if problem else []) + re.findall(r'Parser key "([\w.]+)"', inner)
    value = re.search(r"(?:Got|Given) value: (.*)", inner)
    kinds = re.findall(r"Expected an? (?:<class '([\w.]+)'>|(?:typing\.)?(.*?))(?:\. Got value|$)", inner, re.MULTILINE)
    expected = dict.fromkeys(known or other for known, other in kinds)
    expected.pop("NoneType", None)
    if keys and value and expected:
        return f"{'.'.join(keys)}={value[1]}: expected {' or '.join(expected)}"
    message = textwrap.shorten(message.split(" Given value type:")[0], 500, placeholder=" …")
    return re.sub(r'Parser key "([\w.]+)":', r"\1:", message)


def find_local_modules() -> None:
    """Lets a console script import from the current folder, where users keep their own methods."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message: the known name that is close to the given one, if there is one."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1) or [option for option in names if option.startswith(name)]
    return f"; did you mean {close[0]}?" if close else ""


def _options(class_path: str) -> set[str]:
    """Options of a class and of its bases, to which it hands on those that it does not know."""
    kind = pydoc.locate(class_path)
    bases = inspect.getmro(kind) if isinstance(kind, type) else ()
    signatures = (inspect.signature(vars(base)["__init__"]) for base in bases[:-1] if "__init__" in vars(base))
    return {name for signature in signatures for name in signature.parameters} - {"self", "args", "kwargs"}


def subclasses_of(kind: type[Any]) -> Iterator[type[Any]]:
    """Every class below a class, as far as it is imported."""
    for below in kind.__subclasses__():
        yield below
        yield from subclasses_of(below)
