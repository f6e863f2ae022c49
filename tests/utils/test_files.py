"""Files written in one piece."""

from pathlib import Path

import pytest

from supercm_lightning.utils.files import write_atomically


@pytest.mark.parametrize("content", ["né\r\n", "né\r\n".encode(), lambda stream: stream.write("né\r\n".encode())])
def test_text_bytes_and_writers_give_the_same_file(content):
    file = Path("new/folder/file.txt")
    write_atomically(file, content)
    assert file.read_bytes() == b"n\xc3\xa9\r\n"
    assert [path.name for path in file.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_file_alone(error):
    def fail(stream):
        stream.write(b"half")
        raise error

    file = Path("file.txt")
    write_atomically(file, "whole")
    with pytest.raises(error):
        write_atomically(file, fail)
    assert file.read_text() == "whole"
    assert list(Path().iterdir()) == [file]
