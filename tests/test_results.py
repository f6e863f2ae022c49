"""Measured tables fit their schema, and the documentation says what they say."""

import json

import pandas as pd
import pytest

from benchmarks import results
from supercm_lightning.utils.options import SuperCMError


@pytest.fixture(scope="module")
def every():
    """All tables, which therefore fit the schema."""
    return results.tables()


@pytest.fixture(scope="module")
def known(every):
    return {pair for table in every.values() for pair in table.numbers()}


@pytest.mark.parametrize(
    "change",
    [{"task": "many labels"}, {"rows": [{"name": "a"}]}, {"unknown": 1}, {"columns": ["another"]}, {"name": "another"}],
    ids=str,
)
def test_wrong_tables_are_refused(tmp_path, change):
    file = tmp_path / "digits_20.json"
    file.write_text(json.dumps(json.loads((results.RESULTS / "digits_20.json").read_text(encoding="utf-8")) | change))
    with pytest.raises(SuperCMError, match=r"digits_20\.json"):
        results.read(file)


def test_a_cell_without_seeds_has_a_mean():
    with pytest.raises(SuperCMError, match="per_seed"):
        results.Cell(None)


@pytest.mark.parametrize("page", results.pages(), ids=lambda page: page.name)
def test_writing_the_blocks_again_changes_nothing(page, every):
    assert results.written(page, every) == page.read_text(encoding="utf-8"), "python benchmarks/results.py write"


def test_the_page_of_results_has_no_table_of_its_own():
    text = results.BLOCK.sub("", (results.ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    assert [line for line in text.splitlines() if line.startswith("|")] == []


@pytest.mark.parametrize("page", results.pages(), ids=lambda page: page.name)
def test_every_mean_with_deviation_was_measured(page, known):
    assert results.unknown_numbers(page, known) == []


def test_a_number_that_nobody_measured_is_found(tmp_path, known):
    page = tmp_path / "page.md"
    page.write_text("SuperCM has 86.1 ± 7.6, cross-entropy 12.3 ± 4.5.\n", encoding="utf-8")
    assert results.unknown_numbers(page, known) == ["12.3 ± 4.5"]


def test_a_table_is_made_from_a_benchmark(tmp_path, monkeypatch):
    """Roles follow from methods; a gain is over the better of two rows."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    grid = results.ROOT / "configs" / "bench" / "small" / "methods.yaml"
    values = {"supervised": (0.5, 0.6), "SuperCM": (0.7, 0.9), "SuperCM + FreeMatch": (0.9, 1.0)}
    lines = [
        {"row": row, "column": "digits", "seed": seed, "test/acc": value, "device": "cpu", "torch": "2.14.1"}
        for row, pair in values.items()
        for seed, value in enumerate(pair)
    ]
    pd.DataFrame(lines).to_csv(tmp_path / "results.csv", index=False)
    arguments = (grid, tmp_path, "few labels", "digits, 20 labels", "short", "none")
    results.add("made", *arguments)
    table = results.read(tmp_path / "made.json")
    assert [row.role for row in table.rows] == ["supervised", "supercm", "combination"]
    assert str(table.cell(table.row("SuperCM"), "digits")) == "80.0 ± 14.1"
    gain, over = table.gain(table.row("SuperCM"), "digits")
    assert (round(gain["mean"], 6), over) == (25.0, "supervised")
    with pytest.raises(SuperCMError, match="--replace"):
        results.add("made", *arguments)


def test_a_table_of_free_methods_has_pairs_of_domains_as_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    runs = [
        {"data": {"source": "a", "target": target}, "seed": 0, "rows": [{"method": "coral", "test/acc": accuracy}]}
        for target, accuracy in (("b", 0.5), ("c", 0.7))
    ]
    (tmp_path / "baselines").write_text(json.dumps({"runs": runs}))
    given = {"name": "free", "file": tmp_path / "baselines", "task": "two domains", "data": "three domains"}
    results.main(
        ["add_free", *(f"--{name}={value}" for name, value in given.items()), '--command=["supercm-baselines"]']
    )
    table = results.read(tmp_path / "free.json")
    assert table.columns == ["a → b", "a → c"]
    assert str(table.cell(table.row("coral"), "mean")) == "60.0"


def test_the_summary_shows_the_best_row_of_each_kind(every):
    line = next(line for line in results.summary([every["usps_100"]]).splitlines() if "USPS, 100 labels" in line)
    assert "|VAT **96.6 ± 0.1**|" in line
    assert "88.8 ± 0.4" in line
