"""Help of the command `supercm` that is read from the source, so that nobody waits for torch."""

import ast
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from supercm_lightning.utils.configs import answer_configs, shipped_configs
from supercm_lightning.utils.options import SuperCMError

HELP = """supercm COMMAND [options]: learning from few labels, across domains, or with none

  supercm fit --model SuperCM --data SemiSupervisedDataModule --data.num_labeled 20 --trainer.max_epochs 3
                                          trains on the digits of scikit-learn with 20 labels, and tests
  supercm fit --config FILE.yaml          options from a file
  supercm test --config FILE.yaml --ckpt_path FILE.ckpt
  supercm predict --run FOLDER photo.jpg  classes of new files, by the run in that folder
  supercm configs WORD                    configs of the package; supercm configs copy NAME

supercm --help lists methods and data; supercm fit --model.help SuperCM the options of one."""


_PACKAGE = Path(__file__).parents[1]
_SECTIONS = (("model", "methods", "Method"), ("data", "data/modules", "ViewDataModule"))
_OPTIONS = (
    *("--config", "--model", "--data", "--ckpt_path", "--seed_everything", "--print_config", "--run", "--help"),
    *("--model.help", "--data.help"),
    *(f"--trainer.{name}" for name in ("max_epochs", "max_steps", "accelerator", "devices", "precision", "logger")),
    *(f"--trainer.{name}" for name in ("callbacks+=", "default_root_dir", "log_every_n_steps", "limit_test_batches")),
)
_COMPLETION = """[ -z "$ZSH_VERSION" ] || {{ autoload -U +X bashcompinit && bashcompinit; }}
_supercm() {{
  local words word=${{COMP_WORDS[COMP_CWORD]}}
  case ${{COMP_WORDS[COMP_CWORD-1]}} in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"; compgen -f -- "$word"))
}}
complete -F _supercm supercm"""


def answer(arguments: Sequence[str]) -> str | None:
    """What `supercm` prints without arguments, with `--help`, `configs` and the like; None for other arguments."""
    if list(arguments[:1]) == ["configs"]:
        try:
            return answer_configs(arguments[1:])
        except SuperCMError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    if list(arguments) == ["--version"]:
        from supercm_lightning import __version__

        return f"supercm_lightning {__version__}"
    if list(arguments) == ["completion"]:
        return completion()
    return overview() if list(arguments) in (["-h"], ["--help"]) else None if arguments else HELP


def overview() -> str:
    """Commands, methods and data modules of the package."""
    lines = [
        "supercm fit|validate|test|predict [options]",
        "supercm configs [WORD ...] | copy NAME",
        'eval "$(supercm completion)", in ~/.bashrc or ~/.zshrc',
        "",
    ]
    for section, folder, base in _SECTIONS:
        lines += [f"--{section}, with options by --{section}.help NAME:"]
        lines += [line_of(name, text, 36) for name, text in sorted(_classes(folder, base))] + [""]
    lines += [
        "--config FILE takes options from a file, --trainer.NAME sets those of Lightning's trainer, and",
        "supercm fit --help lists all. Other commands: supercm-baselines, -bench, -export, -features, -tune.",
    ]
    return "\n".join(lines)


def completion() -> str:
    """A script by which bash and zsh complete commands, options, methods, data modules and configs.

    Examples:
        >>> "FreeMatch" in completion()
        True
    """
    words = {"--config": " ".join(shipped_configs()), "supercm": "fit validate test predict configs completion"}
    options = [*_OPTIONS]
    for section, folder, base in _SECTIONS:
        words[f"--{section}|--{section}.help"] = " ".join(sorted(name for name, _ in _classes(folder, base)))
        files = (ast.parse(file.read_text(encoding="utf-8")) for file in _PACKAGE.joinpath(folder).glob("*.py"))
        found = {
            argument.arg
            for node in itertools.chain.from_iterable(map(ast.walk, files))
            if isinstance(node, ast.FunctionDef) and node.name == "__init__"
            for argument in node.args.args
        }
        options += [f"--{section}.{name}" for name in sorted(found - {"self", "num_classes", "input_shape"})]
    words["*"] = " ".join(options)
    cases = "\n".join(f'    {before}) words="{some}";;' for before, some in words.items())
    return _COMPLETION.format(cases=cases)


def line_of(name: str, text: str, column: int, most: int = 1) -> str:
    """A name and, from a column on, at most so many lines of text."""
    start = f"  {name}  ".ljust(column)
    lines = textwrap.wrap(" ".join(text.split()), 120 - len(start), max_lines=most, placeholder=" …")
    return start + f"\n{' ' * len(start)}".join(lines)


def _classes(folder: str, base: str) -> Iterator[tuple[str, str]]:
    """Public classes below a class, with the first line of what they say of themselves."""
    listed = "".join(
        _PACKAGE.joinpath(file).read_text(encoding="utf-8") for file in ("methods/__init__.py", "public.py")
    )
    names, kinds = set(re.findall(r"\w+", listed)), dict[str, ast.ClassDef]()
    for file in (_PACKAGE / folder).glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                kinds[node.name] = node
                names |= {node.name} if file.stem == "combinations" else set()  # which is imported as a whole

    def is_below(name: str) -> bool:
        bases = [ast.unparse(each) for each in kinds[name].bases] if name in kinds else []
        return base in bases or any(map(is_below, bases))

    for name in filter(is_below, names & kinds.keys()):
        yield name, (ast.get_docstring(kinds[name]) or "").partition("\n")[0]
