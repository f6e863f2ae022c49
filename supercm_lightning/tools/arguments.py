"""How the commands beside `supercm` read their arguments and report errors."""

import inspect
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import get_loader

from supercm_lightning.utils.configs import found_configs
from supercm_lightning.utils.parser import CommandParser


def check_installed(extra: str, *packages: str) -> None:
    """Checks that the packages of an extra are installed; the error names the extra."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ModuleNotFoundError(f"{', '.join(missing)} not found: pip install 'supercm-lightning[{extra}]'.")


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Answers SIGTERM like Ctrl-C, and then as before."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(
    function: Callable[..., Any],
    given: Sequence[str] | None,
    several: Sequence[str] = (),
    skip: Sequence[str] = (),
    positional: bool = False,
    **texts: Any,
) -> dict[str, Any]:
    """Reads the arguments of a function, from those given or those of the process.

    The options `several` add to a list each time they are given, and `skip` are none; with `positional`, what has no
    default is given without its name. `prog` and `description` are texts of the help, the latter by default what the
    function says of itself.
    """
    purpose = (inspect.getdoc(function) or "").partition("\n\n")[0]
    # auto_cli would keep the name --config for itself
    parser = CommandParser(**{"description": purpose} | texts, allow_abbrev=False)
    parser.add_function_arguments(function, as_group=False, as_positional=positional, skip=set(skip))
    # jsonargparse spells that with a plus sign.
    repeated = re.compile(rf"--({'|'.join(several)})(?==|$)")
    arguments = [
        repeated.sub(r"--\1+", argument) if several else argument
        for argument in found_configs(sys.argv[1:] if given is None else given)
    ]
    return vars(parser.instantiate_classes(parser.parse_args(arguments)))


def read_config(file: Path) -> dict[str, Any]:
    """Content of a YAML file, with the content of the files that it names as its sections."""
    content: dict[str, Any] = get_loader("yaml")(file.read_text(encoding="utf-8"))
    for name in {"model", "data", "trainer", "rows"} & content.keys():
        if isinstance(content[name], str) and (named := file.parent / content[name]).is_file():
            content[name] = read_config(named)
    return content
