"""Commands, code and links of the documentation are what they claim to be.

Every `bash` block of the README and of `docs/` is read command by command. Each command must parse to its end, by the
parser that would run it, and the files of the repository that it names must exist. Commands of this package then run,
for two steps, unless a comment above their block says what they need that a test has not:

    <!-- needs: data -->

or they name `DATA`, which stands for a folder of data sets that cannot ship. Benchmarks and searches take too long to
run here. The quick starts, `LITERAL`, run from top to bottom exactly as they are printed, commands and Python.
"""

import argparse
import ast
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from textwrap import dedent
from typing import Any

import jsonargparse
import numpy as np
import pytest
from PIL import Image

from supercm_lightning import methods
from supercm_lightning.cli import run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BASES = ("Method", "Clusterer", "Step")
ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "configs" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LITERAL = [ROOT / "docs" / name for name in ("own_images.md", "two_domains.md", "no_labels.md")]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
# Programs of others, of whose options we know nothing.
OTHERS = {".", "bash", "cd", "git", "ls", "mkdir", "mkdocs", "pip", "pytest", "python3", "sbatch", "tensorboard"}
LONG = {"supercm-tune", "supercm-bench"}
SHORT = """--data.steps_per_epoch=2 --trainer.max_epochs=1 --trainer.limit_val_batches=1 --trainer.limit_test_batches=1
    --trainer.limit_predict_batches=1 --trainer.check_val_every_n_epoch=1 --trainer.accelerator=cpu
    --trainer.enable_progress_bar=false --trainer.enable_model_summary=false --trainer.default_root_dir=."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> Iterator[tuple[str, str]]:
    """Fenced blocks of a language, each with the comment on the line above it."""
    pattern = rf"(?:^ *<!-- *(.*?) *-->\n)?^(?P<indent> *)```{language}\n(.*?)\n(?P=indent)```$"
    for match in re.finditer(pattern, page.read_text(encoding="utf-8"), re.M | re.S):
        yield match[1] or "", dedent(match[3])


def files_of(page: Path) -> dict[str, str]:
    """Files that a page asks its reader to write: blocks whose first line is a comment with the name."""
    texts = [text for language in ("python", "yaml") for _, text in blocks(page, language)]
    return {match[1]: text + "\n" for text in texts if (match := re.match(r"# (\w+\.(?:py|yaml))$", text, re.M))}


@dataclass(frozen=True)
class Command:
    """A command of a page, without what the shell does around it."""

    page: Path
    words: tuple[str, ...]
    needs: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}: {' '.join(self.words)[:60]}"

    @property
    def script(self) -> tuple[str, list[str]] | None:
        """Name of the console script of this package, and its arguments; `python -m` and launchers are seen through."""
        if "supercm_lightning" in self.words:
            return "supercm", list(self.words[self.words.index("supercm_lightning") + 1 :])
        name = Path(self.words[0]).name
        return (name, list(self.words[1:])) if name in SCRIPTS else None

    @property
    def can_run(self) -> bool:
        launched = Path(self.words[0]).name in SCRIPTS and Path(self.words[0]).name not in LONG
        return launched and not self.needs and not any("DATA" in word for word in self.words)


def commands(page: Path) -> Iterator[Command]:
    """The commands of the `bash` blocks of a page, those within a loop once."""
    for comment, text in blocks(page, "bash"):
        text = re.sub(r"(^|\s)#.*$", "", text.replace("\\\n", " "), flags=re.M)
        lexer = shlex.shlex(re.sub(r"\$\w+", "0", text), posix=True, punctuation_chars=";&|>\n")
        lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
        words: list[str] = []
        redirected = False
        for word in [*lexer, "\n"]:
            if not set(word) <= set(";&|>\n"):
                if not redirected:
                    words.append(word)
                continue
            words = words[1:] if words[:1] == ["do"] else words
            words = [*dropwhile(re.compile(r"[A-Z_]+=").match, words)]  # what it sets for the environment
            if words and words[0] not in ("for", "done"):
                yield Command(page, tuple(words), comment.partition("needs: ")[2])
            words, redirected = [], word == ">"


COMMANDS = [command for page in PAGES for command in commands(page)]
RUN = list({command.words: command for command in COMMANDS if command.can_run and command.page not in LITERAL}.values())


class Parsed(Exception):
    """Raised after a parser is content, before anything runs."""


@pytest.fixture
def parsers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end where their arguments are parsed."""
    parse = jsonargparse.ArgumentParser.parse_args
    depth = 0  # a parser asks others for subcommands and nested options

    def parse_and_stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        depth += 1
        try:
            parsed = parse(self, *args, **kwargs)
        finally:
            depth -= 1
        if depth:
            return parsed
        raise Parsed

    monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", parse_and_stop)


def arguments_of_benchmark(file: Path, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parses a benchmark's arguments; gives those that it hands on to the command line of its runs."""
    parse = argparse.ArgumentParser.parse_known_args
    left: list[str] = []

    def parse_all(self: Any, *_: Any) -> None:
        if unknown := parse(self)[1]:
            self.error(f"unrecognised: {unknown}")
        raise Parsed

    def parse_known(self: Any, *_: Any) -> None:
        left.extend(parse(self)[1])
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(file), *arguments])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_all)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known)
        with pytest.raises(Parsed):
            runpy.run_path(str(file), run_name="__main__")
    return left


def call(script: str, arguments: Sequence[str]) -> None:
    """Runs a console script in this process."""
    module, _, function = SCRIPTS[script].partition(":")
    getattr(importlib.import_module(module), function)(list(arguments))


def prepare(command: Command, config: str) -> None:
    """Makes the current folder one in which the page's earlier commands have run."""
    for folder in ("configs", "benchmarks"):
        Path(folder).symlink_to(ROOT / folder)
    for name, text in files_of(command.page).items():
        Path(name).write_text(text, encoding="utf-8")
    given = zip(command.words, command.words[1:], strict=False)
    for file in (Path(word) for option, word in given if option == "--config"):
        if not file.exists():
            assert file.parts[0] != "configs", f"{file} does not exist"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(config, encoding="utf-8")


@pytest.fixture(autouse=True)
def forget_modules_of_pages() -> Iterator[None]:
    """Pages may have files of one name."""
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in {file.removesuffix(".py") for page in PAGES for file in files_of(page)} & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_command_parses(command: Command, monkeypatch: pytest.MonkeyPatch, parsers_only: None) -> None:
    prepare(command, (ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    for word in " ".join(command.words).replace("=", " ").split():
        if re.match(r"(configs|benchmarks|docs|notebooks|tests)/[\w./]+$", word):
            assert (ROOT / word).exists(), f"{word} does not exist"
    name = Path(command.words[0]).name
    if command.script is not None:
        with pytest.raises((Parsed, SystemExit)) as stop:
            call(*command.script)
        assert stop.type is Parsed or stop.value.code in (0, None)  # --help and --print_config end by themselves
    elif name == "python" and command.words[1].startswith("benchmarks/"):
        options = arguments_of_benchmark(ROOT / command.words[1], command.words[2:], monkeypatch)
        if options:
            with pytest.raises(Parsed):
                call("supercm", ["fit", "--config", "configs/quickstart.yaml", *options])
    elif name == "python" and command.words[1] == "-c":
        compile(command.words[2], str(command), "exec")
    else:
        written = name == "python" and command.words[1] in files_of(command.page)
        assert written or {name, command.words[0]} & OTHERS, "a program that nobody knows"


def write_images(folder: Path, classes: Sequence[str], count: int) -> None:
    """A few images of noise in the folder of each class."""
    stream = np.random.default_rng(list(str(folder).encode()))  # copies in two folders would be refused
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = stream.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of the quick start, two steps of it, and images and features as a user may have them."""
    folder = tmp_path_factory.mktemp("finished")
    config = ["fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), "--trainer.callbacks=null"]
    run([*config, *SHORT.split(), f"--trainer.default_root_dir={folder}"])
    (folder / "run").symlink_to(folder / "lightning_logs" / "version_0")
    write_images(folder / "my_images" / "labeled", ("cat", "dog", "owl"), 4)
    write_images(folder / "my_images" / "test", ("cat", "dog", "owl"), 4)
    write_images(folder / "my_images" / "unlabeled", ("",), 60)
    for domain in ("front", "side", "night"):
        write_images(folder / "my_cameras" / domain, ("cat", "dog", "owl"), 12)
    features = folder / "data" / "office_caltech10_features"
    features.mkdir(parents=True)
    for seed, domain in enumerate(("amazon", "dslr", "webcam")):
        rows = np.random.default_rng(seed).normal(size=(200, 8)).astype(np.float32)
        np.savez(features / f"{domain}.npz", features=rows, labels=np.arange(200) % 10, classes=[*"abcdefghij"])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN, ids=str)
def test_command_runs(command: Command, finished_run: Path) -> None:
    prepare(command, (finished_run / "run" / "config.yaml").read_text(encoding="utf-8"))
    for folder in ("my_images", "my_cameras", "data"):
        shutil.copytree(finished_run / folder, folder)
    (checkpoint,) = (finished_run / "run" / "checkpoints").glob("*.ckpt")
    for file in (Path(word) for word in command.words if word.endswith(".ckpt")):
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkpoint, file)
    assert command.script is not None
    name, arguments = command.script
    asks = {"configs", "--help", "--print_config", "--model.help", "--data.help"} & {
        argument.partition("=")[0] for argument in arguments
    }
    if asks:
        with pytest.raises(SystemExit) as stop:
            call(name, arguments)
        assert stop.value.code in (0, None)
        return
    before = {file for file in Path.cwd().rglob("*") if file.is_file()}
    call(name, [*arguments, *SHORT.split()] if name == "supercm" else arguments)
    written = {file for file in Path.cwd().rglob("*") if file.is_file()} - before
    expected = {"fit": "summary.json", "predict": "predictions.*", "test": "metrics.csv"}
    assert [file for file in written if name != "supercm" or file.match(expected[arguments[0]])]


@pytest.mark.slow
@pytest.mark.parametrize("page", LITERAL, ids=name_of)
def test_page_runs_as_printed(page: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, target in SCRIPTS.items():
        module, _, function = target.partition(":")
        start = f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        (tmp_path / "bin" / name).write_text(start, encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    work = tmp_path / "checkout"
    work.mkdir()
    (work / "configs").symlink_to(ROOT / "configs")
    for name, text in files_of(page).items():
        (work / name).write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    # Not the link in bin: it would hide the virtual environment from Python.
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = "\n".join(text for comment, text in blocks(page, "bash") if "needs:" not in comment)
    (work / "all.py").write_text("\n".join(text for _, text in blocks(page, "python") if not text.startswith("# ")))
    script = re.sub(r"\bpython\b", shlex.quote(sys.executable), f"{script}\npython all.py")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=work, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    claimed = re.findall(r"lightning_logs/version_\d+/[\w./=-]*\.\w+", page.read_text(encoding="utf-8"))
    assert not [file for file in claimed if not (work / file).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_of_a_page_is_python(page: Path) -> None:
    for _, text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("supercm_lightning"):
                module = importlib.import_module(str(node.module))
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


# ------------------------------------------------------------------------------------------------------------- links
def prose(file: Path) -> str:
    """Text of a page or of a notebook's Markdown cells, without code."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", text, flags=re.M | re.S)


def anchors(file: Path) -> set[str]:
    """Names of the headings of a page, as GitHub and as MkDocs make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", file.read_text(), flags=re.M | re.S), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        for text in (plain, ascii_only):
            words = re.sub(r"[^\w\s-]", "", text).strip().lower()
            found |= {re.sub(r"[-\s]+", "-", words), re.sub(r"\s", "-", words)}
    return found


@pytest.mark.parametrize("file", [*PAGES, *NOTEBOOKS], ids=name_of)
def test_links_lead_somewhere(file: Path) -> None:
    for link in re.findall(r"\]\(\s*([^)\s]+)\s*\)", prose(file)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), f"{link}: no such file"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: no such heading"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r": ([\w/]+\.md)$", text.partition("\nnav:")[2], re.M))
    written = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert written <= listed
    assert {page for page in listed - written if not page.startswith("notebooks/")} == set()


@pytest.mark.parametrize(
    "module", ["methods", "estimators", "data", "callbacks", "losses", "self_labeling", "metrics", "nn"]
)
def test_the_reference_page_lists_the_exports_of_every_module(module: str) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"^::: supercm_lightning\.{module}\.\*$", text, re.M)


def test_every_method_stands_in_the_list_of_methods() -> None:
    table = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    plain = [name for name in methods.__all__ if not name.startswith(("SuperCM", "ASD")) and name not in BASES]
    assert [name for name in plain if f"[`{name}`]" not in table] == []
