"""The examples in docstrings give what they print, and every public class has one."""

import doctest
import importlib
from pathlib import Path

import pytest

import supercm_lightning
from supercm_lightning.methods import combinations

PACKAGE = Path(supercm_lightning.__file__).parent
MODULES = [
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_print(module: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testmod(importlib.import_module(module), optionflags=flags)
    assert found.attempted
    assert not found.failed, "the output above says what differs"


@pytest.mark.parametrize("name", supercm_lightning.__all__)
def test_every_public_class_has_an_example(name: str) -> None:
    kind = getattr(supercm_lightning, name)
    # A combination is used as its bases are.
    assert kind.__module__ == combinations.__name__ or "\n    Examples:\n        >>> " in (kind.__doc__ or "")
