"""Files that are written in one piece."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile


def write_atomically(path: Path, content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    """Writes a file beside its place and renames it: readers see the old file or the new one, never half of one.

    Folders that do not exist are made. The contents (text in UTF-8, bytes, or a function that writes to a binary
    stream) are on the disk before the rename, so that a loss of power leaves no empty file. If writing fails, the old
    file stays and nothing else is left.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "runs", "note.txt")
        >>> write_atomically(file, "three epochs")
        >>> file.read_text()
        'three epochs'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process number: several ranks may write the same file.
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_sums(file: Path) -> None:
    """Compares the checksums of a file of `torch.save` with its contents; torch itself does not."""
    with ZipFile(file) as archive:
        if damaged := archive.testzip():
            raise BadZipFile(f"{damaged} does not have its checksum")
