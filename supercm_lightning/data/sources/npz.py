"""Arrays of an .npz file, mapped from the disk."""

import math
import os
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.lib import format as npy


def load_npz(path: Path, names: Collection[str]) -> tuple[dict[str, np.ndarray], set[str]]:
    """The named arrays of an .npz file, and the names of all that it has; nothing is unpickled.

    Those stored without compression, as by `np.savez`, are mapped from the disk: a mapped array takes no memory but for
    what is touched, and changes to it stay in memory. Its checksum is compared once a process. A damaged file is a
    `BadZipFile`.
    """
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
        mapped = {name: _map(path, archive, f"{name}.npy") for name in names if name in file.files}
        arrays = {name: file[name] if array is None else array for name, array in mapped.items()}
        return arrays, set(file.files)


def _map(path: Path, archive: zipfile.ZipFile, member: str) -> np.ndarray | None:
    """The array of a member, or None where it cannot be mapped."""
    info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
        header = stream.tell()
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or not shape or not size:
            return None
        if min(shape) < 0 or header + size != info.file_size:
            raise zipfile.BadZipFile(f"{member} has {info.file_size - header} bytes, and its header says {size}")
        state = os.stat(path)
        known = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, info.header_offset)
        if known not in _checked:
            while stream.read(1 << 22):  # which compares the checksum at the end; two seconds for a gigabyte
                pass
            _checked.add(known)
    with path.open("rb", buffering=0) as file:
        # A member follows its local header: 30 bytes, of which the last four are the lengths of name and extra field.
        file.seek(info.header_offset + 26)
        start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
    return np.memmap(path, dtype, "c", start + header, shape, "F" if fortran else "C")


_checked: set[tuple[int, ...]] = set()
"""Members whose checksum this process has found right."""
