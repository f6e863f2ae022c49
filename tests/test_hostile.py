"""The 198 findings of hostile probes of 0.1.0, in `hostile.csv`: each has a test, or a reason why it is open.

`python tests/test_hostile.py` writes their counts and the open ones into docs/reliability.md.
"""

import ast
from pathlib import Path

import pandas as pd

from tests.test_bad_input import CASES, PAGE, written

FINDINGS = pd.read_csv(Path(__file__).with_name("hostile.csv"), keep_default_na=False)
OPEN = FINDINGS[FINDINGS.test == ""]


def names(file: Path) -> set[str]:
    """The tests of a file; those of a table of cases by what was tried."""
    if file.name == "test_bad_input.py":
        return {case.tried for case in CASES}
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_every_finding_has_a_test_that_is_there() -> None:
    root = Path(__file__).parent.parent
    for file, tests in FINDINGS[FINDINGS.test != ""].test.str.split("::", n=1, expand=True).groupby(0)[1]:
        assert set(tests) <= names(root / str(file)), file


def test_only_small_ones_are_open_and_each_has_its_reason() -> None:
    assert FINDINGS.severity.value_counts().to_dict() == {"LOW": 142, "MED": 39, "HIGH": 17}
    assert list(FINDINGS.id) == list(range(1, 199))
    assert len(OPEN) <= 10
    assert set(OPEN.severity) <= {"LOW"}
    assert OPEN.now.str.fullmatch("open: .{7,}").all()


def lines() -> str:
    """How many there are of each severity, and the open ones with their reasons."""
    found = ["| severity | findings | with a test | open |", "|---|---|---|---|"]
    for severity in ("HIGH", "MED", "LOW"):
        rows = FINDINGS[FINDINGS.severity == severity]
        found.append(f"| {severity} | {len(rows)} | {(rows.test != '').sum()} | {(rows.test == '').sum()} |")
    reasons = [f"- {', '.join(rows.probe)}: {str(now).removeprefix('open: ')}." for now, rows in OPEN.groupby("now")]
    return "\n".join([*found, "", *reasons, ""])


def test_the_page_has_these_findings() -> None:
    assert written("findings", lines()) == PAGE.read_text(encoding="utf-8"), "run python tests/test_hostile.py"


if __name__ == "__main__":
    PAGE.write_text(written("findings", lines()), encoding="utf-8")
