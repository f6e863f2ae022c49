"""The command `supercm-bench`: methods by data by seeds, and the report of a run (needs the extra `bench`)."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from supercm_lightning.tools.arguments import check_installed, parse
from supercm_lightning.tools.bench.grid import Cell, Column, Grid, Row
from supercm_lightning.utils.options import SuperCMError, check_range
from supercm_lightning.utils.parser import errors_in_one_line

__all__ = ["Cell", "Column", "Grid", "Row", "bench"]


def bench(
    grid: Path,
    root: Path = Path("data"),
    output: Path | None = None,
    only: list[str] | None = None,
    columns: list[str] | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    slurm: dict[str, Any] | None = None,
    dry_run: bool = False,
    more: tuple[str, ...] = (),
) -> bool:
    """Runs a table of methods by data by seeds, and writes the results.

    Every cell is a `supercm fit` in a process of its own, with the same command line as by hand. Finished cells are not
    run again, stopped ones go on where they were, failed ones are reported at the end. Into `output` go `results.json`,
    `results.csv` (every run) and `results.md` (mean and standard deviation, paired differences with their t-test).

    Args:
        grid: YAML file of the table; those of the papers are in `configs/bench`.
        root: Folder of the data.
        output: Folder of runs and results; None: `runs/<name of the file>`.
        only: Rows to run now; may be given several times. None: all.
        columns: Columns to run now, likewise.
        seeds: Number of seeds; None: as the file says.
        jobs: Runs at a time; None: one on each GPU, or one; 16 on SLURM.
        slurm: Submit to SLURM, with these parameters of submitit, such as `{slurm_partition: gpu, timeout_min: 240}`.
        dry_run: Print the commands of the cells that are not finished, and do nothing.
        more: Options of all cells; on the command line those behind `--`.

    Returns:
        Whether no cell failed.

    Raises:
        SuperCMError: If the file, a name or a number is not valid.
    """
    check_range(1, seeds=seeds, jobs=jobs)
    spec = Grid.read(grid)
    spec = replace(spec, seeds=seeds or spec.seeds)
    for name, given, known in (("only", only, spec.rows), ("columns", columns, spec.columns)):
        if unknown := set(given or ()) - set(known):
            raise SuperCMError(f"{name}: {grid} has no {', '.join(sorted(unknown))}; there are {', '.join(known)}.")
    output = output or Path("runs", grid.stem)
    cells = list(spec.cells(output, root, more))
    chosen = [cell for cell in cells if cell.row in (only or spec.rows) and cell.column in (columns or spec.columns)]
    missing = [cell for cell in chosen if cell.summary() is None]
    if dry_run:
        print("".join(f"{shlex.join(cell.command)}\n" for cell in missing), end="")
        return True
    from supercm_lightning.tools.bench.jobs import run_here, submit_array
    from supercm_lightning.tools.bench.tables import Results

    failed: dict[str, str] = {}
    try:
        if slurm is None:
            failed = run_here(missing, jobs)
        else:
            count = submit_array(missing, output, jobs or 16, slurm)
            print(f"{count} of {len(missing)} unfinished cells submitted. Give this command again to collect them.")
    finally:
        results = Results(spec, cells)  # of the other rows too
        results.write(output)
        print(f"{len(results.runs)} of {len(cells)} cells: {output / 'results.md'}")
    for name, end in failed.items():
        print(f"\nFailed: {name}\n{end}", file=sys.stderr)
    return not failed


@errors_in_one_line()
def main(args: list[str] | None = None) -> None:
    """The console script: `supercm-bench FILE`, or `supercm-bench report RUN`."""
    check_installed("bench", "pandas", "submitit")
    given = sys.argv[1:] if args is None else args
    if given[:1] == ["report"]:
        from supercm_lightning.tools.bench.report import report

        print(report(**parse(report, given[1:], positional=True, prog="supercm-bench report")))
        return
    end = given.index("--") if "--" in given else len(given)
    options = parse(
        bench,
        given[:end],
        several=("only", "columns"),
        skip=("more",),
        positional=True,
        prog="supercm-bench",
        description="supercm-bench GRID runs a table of methods by data by seeds; supercm-bench report RUN writes the "
        "report of a run.",
    )
    try:
        good = bench(**options, more=tuple(given[end + 1 :]))
    except KeyboardInterrupt:
        sys.exit(130)
    if not good:
        sys.exit(1)
