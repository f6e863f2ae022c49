"""Names of files and classes, as terminals and tables take them."""

from unicodedata import category

_FORMULA = tuple("=+-@\t\r")


def printable(text: str) -> str:
    r"""Escapes control characters, which a terminal would obey, and bytes that are no text; lines stay.

    Examples:
        >>> print(printable("a\x1b[31m.png"))
        a\x1b[31m.png
    """
    return "".join(ascii(c)[1:-1] if category(c) in ("Cc", "Cs") and c != "\n" else c for c in text)


def table_cell(text: str) -> str:
    """Text as a cell of a CSV file, with a quote in front where a spreadsheet would take it for a formula.

    Examples:
        >>> table_cell("=1+1"), table_cell("cat")
        ("'=1+1", 'cat')
    """
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def cell_text(cell: str) -> str:
    """The text that `table_cell` wrote.

    Examples:
        >>> cell_text("'=1+1"), cell_text("'tis")
        ('=1+1', "'tis")
    """
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell
