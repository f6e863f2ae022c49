"""Measured tables as data: `results/*.json`, and what the documentation says of them.

    python benchmarks/results.py add --name NAME --grid configs/bench/small/methods.yaml --output runs/methods \
      --column '[digits]' --task "few labels" --data "digits, 20 labels" --settings "1,000 steps …" --choice "…"
    python benchmarks/results.py write

`add` makes the JSON of a table from the folder of a `supercm-bench`. `write` fills the blocks between
`<!-- generated: … -->` and `<!-- end -->` in the README and in `docs/`; results/README.md lists them.
"""

import inspect
import json
import math
import platform
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import pandas as pd
from docstring_parser import parse
from jsonargparse import ArgumentParser, auto_cli

from supercm_lightning.tools.bench.grid import Grid
from supercm_lightning.tools.bench.tables import paired
from supercm_lightning.utils.options import SuperCMError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
BLOCK = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"([-+−]?\d+\.\d+)\s±\s(\d+\.\d+)")
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)

HEADINGS = {"test/acc": "accuracy", "test/nmi": "NMI", "test/ari": "ARI"}

Task = Literal["few labels", "two domains", "no labels"]
Role = Literal["free", "supervised", "supercm", "recipe", "method", "combination", "variant"]


@dataclass(frozen=True)
class Cell:
    """One metric of one row in one column.

    Attributes:
        per_seed: Values by seed; None: only mean and deviation were kept.
        mean: Mean, only where `per_seed` is None.
        std: Standard deviation (n - 1), likewise.
    """

    per_seed: dict[str, float] | None
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if (self.per_seed is None) != (self.mean is not None):
            raise SuperCMError("A cell has either per_seed or, where that is null, a mean.")

    @property
    def series(self) -> pd.Series:
        """Values by seed; empty where only mean and deviation were kept."""
        return pd.Series(self.per_seed or {}, dtype=float)

    @property
    def center(self) -> float:
        """The mean."""
        return statistics.fmean(self.per_seed.values()) if self.per_seed else float(self.mean or 0)

    @property
    def spread(self) -> float | None:
        """The standard deviation; None for one seed."""
        values = [*(self.per_seed or {}).values()]
        return statistics.stdev(values) if len(values) > 1 else self.std

    def __str__(self) -> str:
        return with_std(self.center, self.spread)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: Its name.
        role: What it is to the summary: free of training, cross-entropy, SuperCM as published, the recommended recipe,
            another method, a combination with SuperCM, or a variant that the summary leaves out.
        cells: By column and metric.
        over: Rows that it is compared with; of several, the one with the best mean.
    """

    name: str
    role: Role
    cells: dict[str, dict[str, Cell]]
    over: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """A measured table.

    Attributes:
        name: Name of the file.
        title: Heading.
        task: Which of the three problems.
        data: Data and number of labels; tables of equal data share a line of the summary.
        command: What was typed, one line each.
        settings: Length, network, batches, and whatever a reader must know of the runs.
        choice: How the settings were chosen, and on what data.
        machine: Processor or GPU.
        versions: Versions of torch and others.
        columns: Columns in their order.
        metrics: Heading of each metric; the first is compared.
        rows: The rows.
        average: Whether columns are tasks of one problem, whose mean counts.
        summary: Whether its rows stand for their methods in the summary.
    """

    name: str
    title: str
    task: Task
    data: str
    command: list[str]
    settings: str
    choice: str
    machine: str
    versions: dict[str, str]
    columns: list[str]
    metrics: dict[str, str]
    rows: list[Row]
    average: bool = False
    summary: bool = False

    def __post_init__(self) -> None:
        names = {row.name for row in self.rows}
        for row in self.rows:
            if wrong := (set(row.over) - names) | (row.cells.keys() - {*self.columns, "mean"}):
                raise SuperCMError(f"{self.name}: row {row.name!r} names {wrong}, no rows or columns of the table.")
            if len(names) < len(self.rows):
                raise SuperCMError(f"{self.name}: two rows have one name.")

    @property
    def first(self) -> str:
        """The metric that is compared."""
        return next(iter(self.metrics))

    @property
    def scopes(self) -> list[str]:
        """The columns in which rows are compared."""
        return ["mean"] if self.average else self.columns

    def row(self, name: str) -> Row:
        """A row by its name."""
        return next(row for row in self.rows if row.name == name)

    def cell(self, row: Row, column: str, metric: str | None = None) -> Cell | None:
        """A cell; `mean`: that of the columns by seed, where all have it."""
        metric = metric or self.first
        given = row.cells.get(column, {}).get(metric)
        if given or column != "mean":
            return given
        parts = [cell for name in self.columns if (cell := self.cell(row, name, metric)) and cell.per_seed]
        values = pd.concat([cell.series for cell in parts], axis=1, join="inner").mean(axis=1) if parts else []
        return Cell({str(k): v for k, v in values.items()}) if len(parts) == len(self.columns) and len(values) else None

    def gain(self, row: Row, column: str, over: Sequence[str] | None = None) -> tuple[dict[str, float], str] | None:
        """The gain over the best of some rows, and the name of that row.

        Args:
            row: The row.
            column: The column.
            over: Names of the rows to choose from; None: those that it is over.
        """
        names = row.over if over is None else over
        known = {name: cell for name in names if (cell := self.cell(self.row(name), column))}
        mine = self.cell(row, column)
        best = max(known, key=lambda name: known[name].center, default=row.name)
        if mine is None or best == row.name:
            return None
        gain = paired(mine.series, known[best].series)
        if math.isnan(gain["mean"]):  # no seeds were kept
            gain["mean"] = mine.center - known[best].center
        return gain, best

    def numbers(self) -> Iterator[tuple[float, float]]:
        """Mean and deviation of every cell and of every gain, over the best free row too."""
        free = [row.name for row in self.rows if row.role == "free"]
        for row in self.rows:
            for column in {*row.cells, "mean"}:
                for cell in (self.cell(row, column, metric) for metric in self.metrics):
                    if cell and cell.spread is not None:
                        yield cell.center, cell.spread
                for bases in [[base] for base in row.over] + ([free] if free and row.role != "free" else []):
                    if found := self.gain(row, column, bases):
                        yield found[0]["mean"], found[0]["std"]


def read(file: Path) -> Table:
    """A table from its JSON.

    Raises:
        SuperCMError: If the file has another form than `Table`, or another name.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Table)
    try:
        table = Table(**parser.instantiate_classes(parser.parse_object(json.loads(file.read_text(encoding="utf-8")))))
    except Exception as error:  # jsonargparse has one kind for all
        raise SuperCMError(f"{file}: {error}") from error
    if table.name != file.stem:
        raise SuperCMError(f"{file}: name={table.name}, which is the name of another file.")
    return table


def tables() -> dict[str, Table]:
    """All tables by name."""
    return {file.stem: read(file) for file in sorted(RESULTS.glob("*.json"))}


# ----------------------------------------------------------------------------------------------------- as Markdown
def with_std(mean: float, std: float | None, sign: str = "") -> str:
    """`84.0 ± 4.0`, or the mean alone."""
    text = f"{mean:{sign}.1f}" + ("" if std is None or math.isnan(std) else f" ± {std:.1f}")
    return text.replace("-", "−")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"|{'|'.join(line)}|" for line in (head, ["---"] * len(head), *lines)) + "\n"


def described(shared: Sequence[Table]) -> str:
    """Settings and choice of some tables, and their commands; once where they are equal or differ in numbers alone."""
    texts: dict[str, list[str]] = {}
    for table in shared:
        texts.setdefault(f"{table.settings} {table.choice}".strip(), []).append(table.name)
    notes = [f"- `{'`, `'.join(names)}`: {text}" for text, names in texts.items()] if len(texts) > 1 else [*texts]
    commands: dict[str, str] = {}
    for line in (line for table in shared for line in table.command):
        commands.setdefault(re.sub(r"\d+", "0", line), line)
    return "\n".join([*notes, "", "```bash", *commands.values(), "```", ""])


def rows_of(shared: Sequence[Table]) -> str:
    """All rows of a table with gain, p-value and seeds, or in its columns; of several tables, one below the other."""
    table = shared[0]
    if len(table.columns) > 1:
        return columns_of(shared)
    if len(shared) > 1:
        return stacked(shared)
    lines = []
    for row in table.rows:
        cell, gain = table.cell(row, table.scopes[0]), table.gain(row, table.scopes[0])
        seeds = str(len(cell.per_seed)) if cell and cell.per_seed else ""
        others = (table.cell(row, table.scopes[0], metric) for metric in [*table.metrics][1:])
        compared = [tested(gain[0]), gain[1]] if gain else ["", ""]
        lines.append([row.name, str(cell or ""), seeds, *compared, *(str(cell or "") for cell in others)])
    first, *more = table.metrics.values()
    return markdown(["", first, "seeds", "gain", "over", *more], lines)


def stacked(shared: Sequence[Table]) -> str:
    """Rows of several tables, one below the other; of metrics but the first the mean alone."""
    metrics = dict(pair for table in shared for pair in table.metrics.items())
    lines = []
    for table in shared:
        for row in table.rows:
            others = (table.cell(row, table.scopes[0], metric) for metric in [*metrics][1:])
            means = [with_std(cell.center, None) if cell else "" for cell in others]
            data = table.data if row is table.rows[0] else ""
            lines.append([data, row.name, marked(table, row.name, table.scopes[0]), *means])
    return markdown(["data", "", *metrics.values()], lines)


def columns_of(shared: Sequence[Table]) -> str:
    """Rows of one name side by side: the columns of some tables, or the mean over them."""
    scopes = [(table, scope) for table in shared for scope in table.scopes]
    heads = [table.data if scope == "mean" or len(table.columns) == 1 else scope for table, scope in scopes]
    names = dict.fromkeys(row.name for table in shared for row in table.rows)
    return markdown(["", *heads], [[name, *(marked(table, name, scope) for table, scope in scopes)] for name in names])


def pairs_of(shared: Sequence[Table]) -> str:
    """Each method alone and with SuperCM, for several data; the first line is cross-entropy and SuperCM."""
    scopes = [(table, table.scopes[-1]) for table in shared]
    head = ["", *(text for table in shared for text in (table.data, "with SuperCM"))]
    names = dict.fromkeys(row.name for table in shared for row in table.rows if row.role in ("supervised", "method"))
    lines = []
    for name in names:
        pair = "SuperCM" if name in ("supervised", "source only") else f"SuperCM + {name}"
        lines.append([name, *(marked(table, row, scope) for table, scope in scopes for row in (name, pair))])
    return markdown(head, lines)


def marked(table: Table, name: str, scope: str) -> str:
    """A cell; with a star where the paired t-test tells it from the row that it extends at the level of 5 %."""
    row = next((row for row in table.rows if row.name == name), None)
    if row is None or (cell := table.cell(row, scope)) is None:
        return ""
    gain = table.gain(row, scope)
    return f"{cell}{' *' if gain and gain[0]['p'] < 0.05 else ''}"


def one_method(every: Sequence[Table], name: str) -> str:
    """A method in all tables of the summary: the row that it extends, itself, and with SuperCM."""
    lines = []
    for table in (table for table in every if table.summary):
        for row in (row for row in table.rows if row.name == name):
            scope, gain = table.scopes[-1], table.gain(row, table.scopes[-1])
            rows = (gain[1] if gain else "", name, f"SuperCM + {name}")
            lines.append([table.data, *(marked(table, each, scope) for each in rows)])
    paired_too = any(line[-1] for line in lines)
    head = ["data", "cross-entropy", name, *(["with SuperCM"] if paired_too else [])]
    return markdown(head, lines if paired_too else [line[:-1] for line in lines])


def tested(gain: dict[str, float]) -> str:
    """A gain, and the p-value of the paired t-test."""
    p = gain["p"]
    test = "" if math.isnan(p) else f", p = {p:.3f}" if p >= 0.001 else ", p < 0.001"
    return with_std(gain["mean"], gain["std"], "+") + test


def summary(every: Sequence[Table]) -> str:
    """One line for each data: the best row of each kind, with its number of seeds, the best of all in bold."""
    kinds: dict[str, Role] = {
        "best free method": "free",
        "cross-entropy": "supervised",
        "SuperCM": "supercm",
        "recommended recipe": "recipe",
        "best other method": "method",
        "best with SuperCM": "combination",
    }
    lines = []
    for task in ("few labels", "two domains", "no labels"):
        for data in dict.fromkeys(table.data for table in every if table.task == task and table.summary):
            shared = [table for table in every if table.data == data and table.summary]
            found: dict[str, tuple[str, Cell]] = {}
            for table in shared:
                for row in table.rows:
                    cell = table.cell(row, table.scopes[-1])
                    if cell and (row.role not in found or cell.center > found[row.role][1].center):
                        found[row.role] = row.name.removeprefix("SuperCM + ").replace("_", " "), cell
            best = max(found[role][1].center for role in kinds.values() if role in found)
            line = [task if task not in {line[0] for line in lines} else "", data]
            for role in kinds.values():
                name, cell = found.get(role, ("", None))
                text = str(cell) if cell else ""
                text = f"**{text}**" if cell and cell.center == best else text
                line.append(text if role in ("supercm", "recipe", "supervised") or not cell else f"{name} {text}")
            lines.append(line)
    return markdown(["task", "data", *kinds], lines)


def methods() -> str:
    """One line for each method that has a page: the first sentence of its docstring."""
    from supercm_lightning import methods as package

    found = {page.stem.replace("_", ""): page for page in (ROOT / "docs" / "methods").glob("*.md")}
    lines = []
    for name in (name for name in package.__all__ if name.lower() in found):
        page = found[name.lower()].relative_to(ROOT / "docs").as_posix()
        sentence = re.split(r"(?<=\.)\s|\n\n", inspect.getdoc(getattr(package, name)) or "")[0]
        lines.append([f"[`{name}`]({page})", sentence.replace("\n", " ").rstrip(".")])
    return markdown(["method", "what it is"], lines)


def options(name: str) -> str:
    """The options that a method adds to those of its base, with default and meaning, from the code."""
    from supercm_lightning import methods as package
    from supercm_lightning.self_labeling import ASDOptions

    kind = getattr(package, name)
    documented = (param for one in (ASDOptions, *reversed(kind.__mro__)) for param in parse(one.__doc__ or "").params)
    meanings = {param.arg_name: " ".join((param.description or "").split()) for param in documented}
    lines = []
    for option, parameter in inspect.signature(kind).parameters.items():
        meaning = meanings.get(option) or meanings.get(option.removeprefix("asd_"))
        if parameter.kind is not parameter.VAR_KEYWORD:
            default = str(parameter.default).lower()
            lines.append(f"- `{option}` ({default}): {meaning}")
    return "\n".join([*lines, ""])


def block(name: str, every: dict[str, Table]) -> str:
    """The text of a block.

    Raises:
        SuperCMError: If the name is none of those in results/README.md.
    """
    kind, _, rest = name.partition(" ")
    kinds = {"table": rows_of, "columns": columns_of, "pairs": pairs_of}
    if kind in kinds and every.keys() >= {*rest.split("; ")}:
        shared = [every[each] for each in rest.split("; ")]
        return f"{described(shared)}\n{kinds[kind](shared)}"
    if kind == "options":
        return options(rest)
    if kind == "method":
        return one_method([*every.values()], rest)
    if name == "summary":
        return summary([*every.values()])
    if name == "methods":
        return methods()
    raise SuperCMError(f"generated: {name}: there is no such block; see results/README.md.")


def pages() -> list[Path]:
    """Pages that may have generated blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def written(page: Path, every: dict[str, Table]) -> str:
    """A page with its blocks as they must be."""
    text = page.read_text(encoding="utf-8")
    return BLOCK.sub(lambda found: f"{found[1]}\n{block(found[2], every)}\n{found[3]}", text)


def unknown_numbers(page: Path, known: set[tuple[float, float]]) -> list[str]:
    """What a page prints as `mean ± deviation` outside of code, and is not among the known numbers of all tables."""
    found = []
    for match in NUMBER.finditer(CODE.sub("", page.read_text(encoding="utf-8"))):
        mean, std = match[1].replace("−", "-"), match[2]
        half = 0.5 * 10 ** -len(std.partition(".")[2]) + 1e-6
        if not any(abs(abs(m) - abs(float(mean))) < half and abs(s - float(std)) < half for m, s in known):
            found.append(match[0])
    return found


# -------------------------------------------------------------------------------------------------------- commands
def write() -> None:
    """Writes the generated blocks of all pages."""
    every = tables()
    for page in pages():
        if (text := written(page, every)) != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(page.relative_to(ROOT))


def add(
    name: str,
    grid: Path,
    output: Path,
    task: Task,
    data: str,
    settings: str,
    choice: str,
    title: str | None = None,
    column: list[str] | None = None,
    command: list[str] | None = None,
    machine: str | None = None,
    summary: bool = True,
    replace: bool = False,
) -> None:
    """Makes the JSON of a table from the folder of a `supercm-bench`, finished or not.

    Args:
        name: Name of the file in `results/`.
        grid: The table's YAML file.
        output: The folder that has its `results.csv`.
        task: Which of the three problems.
        data: Data and number of labels; tables of equal data share a line of the summary.
        settings: What a reader must know of the runs.
        choice: How the settings were chosen, and on what data.
        title: Heading; None: that of the grid.
        column: Columns to take; None: all.
        command: What was typed; None: `supercm-bench GRID` with the columns.
        machine: Processor or GPU; None: what the runs say, and this machine's processor.
        summary: Whether its rows stand for their methods in the summary.
        replace: Replace a table of this name.

    Raises:
        SuperCMError: If there is such a table, or no finished run.
    """
    file = RESULTS / f"{name}.json"
    if file.exists() and not replace:
        raise SuperCMError(f"{file} is there; give --replace true, or another name.")
    spec = Grid.read(grid)
    runs = pd.read_csv(output / "results.csv", keep_default_na=False, dtype={"column": str})
    runs = runs[runs["column"].isin(column or [*spec.columns])]
    if runs.empty:
        raise SuperCMError(f"{output}: results.csv has no run of these columns.")
    rows = []
    for row, kind in ((row, kind) for row, kind in spec.rows.items() if (runs["row"] == row).any()):
        cells: dict[str, dict[str, Cell]] = {}
        for (place, _), found in runs[runs["row"] == row].groupby(["column", "row"], sort=False):
            cells[str(place)] = {
                metric: Cell({str(seed): round(factor * float(value), 4) for seed, value in values})
                for metric, factor in spec.metrics.items()
                if (values := [(s, v) for s, v in zip(found["seed"], found[metric], strict=True) if v != ""])
            }
        over = [kind.over] if isinstance(kind.over, str) else [*(kind.over or [])]
        rows.append(Row(row, role_of(kind.method, kind.options), cells, over))
    present = {row.name for row in rows}
    rows = [Row(row.name, row.role, row.cells, [name for name in row.over if name in present]) for row in rows]
    columns = [place for place in spec.columns if (runs["column"] == place).any()]
    chosen = "".join(f' --columns "{place}"' for place in column or [])
    table = Table(
        name=name,
        title=title or spec.title,
        task=task,
        data=data,
        command=command or [f"supercm-bench {grid} --root DATA{chosen}"],
        settings=settings,
        choice=choice,
        machine=machine or f"{', '.join(sorted(set(runs['device'])))} ({platform.processor() or platform.machine()})",
        versions={"torch": ", ".join(sorted(set(runs["torch"].astype(str))))},
        columns=columns,
        metrics={metric: HEADINGS.get(metric, metric) for metric in spec.metrics},
        rows=rows,
        average=spec.average and len(columns) > 1,
        summary=summary,
    )
    save(table)


def add_free(
    name: str,
    file: Path,
    task: Task,
    data: str,
    command: list[str],
    settings: str = "Everything on the samples, split and preprocessing of the other tables.",
    choice: str = "Settings are those of `supercm_lightning.baselines`, chosen without test labels.",
    title: str | None = None,
    summary: bool = True,
    replace: bool = False,
) -> None:
    """Makes the JSON of a table from the file of `supercm-baselines`.

    Args:
        name: Name of the file in `results/`.
        file: The JSON file of `supercm-baselines`; pairs of domains are its columns.
        task: Which of the three problems.
        data: Data and number of labels; tables of equal data share a line of the summary.
        command: What was typed.
        settings: What a reader must know of the runs.
        choice: How the settings were chosen, and on what data.
        title: Heading; None: `data`, free methods.
        summary: Whether its rows stand for their methods in the summary.
        replace: Replace a table of this name.

    Raises:
        SuperCMError: If there is such a table.
    """
    if (RESULTS / f"{name}.json").exists() and not replace:
        raise SuperCMError(f"{name}.json is there; give --replace true, or another name.")
    values: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for run in json.loads(file.read_text(encoding="utf-8"))["runs"]:
        column = f"{run['data']['source']} → {run['data']['target']}" if "source" in run["data"] else data
        for row in run["rows"]:
            metrics = values.setdefault(row["method"], {}).setdefault(column, {})
            for metric in (metric for metric in row if metric.startswith("test/")):
                metrics.setdefault(metric, {})[str(run["seed"])] = round(100 * row[metric], 4)
    rows = [
        Row(method, "free", {c: {m: Cell(v) for m, v in metrics.items()} for c, metrics in columns.items()})
        for method, columns in values.items()
    ]
    columns = [*dict.fromkeys(column for row in rows for column in row.cells)]
    found = {metric for row in rows for cells in row.cells.values() for metric in cells}
    save(
        Table(
            name=name,
            title=title or f"{data}, free methods",
            task=task,
            data=data,
            command=command,
            settings=settings,
            choice=choice,
            machine=f"cpu ({platform.processor() or platform.machine()})",
            versions={package: version(package) for package in ("scikit-learn", "torch")},
            columns=columns,
            metrics={metric: heading for metric, heading in HEADINGS.items() if metric in found},
            rows=rows,
            average=len(columns) > 1,
            summary=summary,
        )
    )


def role_of(method: str, options: Mapping[str, object]) -> Role:
    """What a row of a grid is to the summary, by its configuration and the model that takes its place.

    Examples:
        >>> role_of("supercm_recommended", {}), role_of("supercm_recommended", {"model": "SuperCMFlexMatch"})
        ('recipe', 'combination')
    """
    if method.startswith("baseline:"):
        return "free"
    model = str(options.get("model", method)).lower()
    if options.keys() - {"model", "model.use_unlabeled"} or "." in model:
        return "variant"
    known: dict[str, Role] = {"supervised": "supervised", "supercm": "supercm", "supercm_recommended": "recipe"}
    return known.get(model, "combination" if "supercm" in model else "method")


def save(table: Table) -> None:
    """Writes the JSON of a table; what fits on a line stands on one."""
    text = json.dumps(asdict(table), indent=1, ensure_ascii=False)
    text = re.sub(r',\s+"(mean|std)": null', "", text)
    for _ in range(3):  # objects and lists, from within
        text = re.sub(r"[{\[](\s+[^\s{}\[\]][^{}\[\]]*|\s+\S.{,99}\s+)[}\]]", _on_one_line, text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{table.name}.json").write_text(text + "\n", encoding="utf-8")


def _on_one_line(found: re.Match[str]) -> str:
    line = found[0][0] + re.sub(r"\s*\n\s*", " ", found[0][1:-1]).strip() + found[0][-1]
    return line if len(line) < 160 else found[0]


def main(args: list[str] | None = None) -> None:
    """The command line."""
    auto_cli({"add": add, "add_free": add_free, "write": write}, args=args, as_positional=False)


if __name__ == "__main__":
    main()
