"""The configs that are part of the package: found by name, listed and copied by `supercm configs`."""

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from supercm_lightning.utils.options import SuperCMError

FOLDER = Path(__file__).parents[1] / "configs"  # in a checkout a link to the folder beside the package
HELP = """supercm configs [WORD ...]             lists the configs of the package in whose line all words occur
supercm configs copy NAME [FILE]       writes one, complete in one file, to be edited
supercm fit --config NAME              runs one as it stands"""


def config_file(name: str | Path) -> Path:
    """The file that `--config` names: one that exists, else one of the package, such as `ssl/mnist/supercm`.

    Examples:
        >>> config_file("quickstart").name
        'quickstart.yaml'
    """
    given = Path(name).expanduser()
    shipped = FOLDER / re.sub(r"^configs/|\.yaml$", "", str(name))
    shipped = shipped.with_name(f"{shipped.name}.yaml")
    return given if given.is_file() or not shipped.is_file() else shipped


def found_configs(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command, in which `--config NAME`, `--data NAME.yaml` and the like name files that exist."""
    found: list[str] = []
    for argument in arguments:
        option, given, value = argument.partition("=")
        value = value if given and option.startswith("--") else argument
        is_config = "--config" in (option, *found[-1:]) or value.endswith(".yaml")
        file = str(config_file(value)) if is_config else value
        found.append(f"{option}={file}" if given and option.startswith("--") else file)
    return found


def answer_configs(arguments: Sequence[str]) -> str:
    """What `supercm configs` prints.

    Raises:
        SuperCMError: If there is no such config, or the copy would replace a file.
    """
    if arguments[:1] == ["copy"]:
        return _copy(*arguments[1:3])
    files = shipped_configs()
    if not arguments or arguments[0].startswith("-"):
        counts = Counter(name.rpartition("/")[0] for name in files)
        lines = [f"  {folder or 'quickstart':30} {count}" for folder, count in counts.items()]
        return "\n".join([*lines, "", HELP])
    lines = [f"  {name:44} {_first_line(file)}" for name, file in files.items()]
    chosen = [line for line in lines if all(word.lower() in line.lower() for word in arguments)]
    if not chosen:
        raise SuperCMError(f"configs: none with {' and '.join(arguments)}. `supercm configs` lists their folders.")
    return "\n".join(chosen)


def shipped_configs() -> dict[str, Path]:
    """The configs of `supercm` in the package, by name."""
    files = {file.relative_to(FOLDER).with_suffix("").as_posix(): file for file in sorted(FOLDER.rglob("*.yaml"))}
    return {name: file for name, file in files.items() if not name.startswith(("_", "bench"))}


def _first_line(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _copy(name: str = "", target: str = ".") -> str:
    source = config_file(name)
    if FOLDER not in source.parents:
        close = " or ".join(get_close_matches(name, shipped_configs(), n=2))
        hint = f"Did you mean {close}?" if close else "`supercm configs WORD` lists some."
        raise SuperCMError(f"configs copy {name}: there is no such config. {hint}")
    file = Path(target).expanduser()
    file = file / source.name if file.is_dir() or target.endswith("/") else file
    if file.exists():
        raise SuperCMError(f"configs copy: {file} exists. Name another file.")
    file.parent.mkdir(parents=True, exist_ok=True)
    text = _complete(source).replace(f"configs/{source.relative_to(FOLDER).as_posix()}", str(file))
    file.write_text(text, encoding="utf-8")
    return f"{file}, to be run by: supercm fit --config {file}"


def _complete(file: Path) -> str:
    """Text of a config, with that of the files that it names in their places."""

    def inserted(match: re.Match[str]) -> str:
        return f"{match[1]}:\n{textwrap.indent(_complete(file.parent / match[2]), '  ').rstrip()}"

    return re.sub(r"^(\w+): (\S+\.yaml)$", inserted, file.read_text(encoding="utf-8"), flags=re.MULTILINE)
