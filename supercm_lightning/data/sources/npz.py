"""Arrays of an .npz file, mapped from the disk, and files written array by array."""

import struct
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.options import SuperCMError


def load_npz(path: Path, names: Collection[str]) -> tuple[dict[str, np.ndarray], set[str]]:
    """Arrays of an .npz file by name; those stored without compression, as by `np.savez`, are mapped from the disk.

    A mapped array takes no memory but for what is touched, and changes to it stay in memory. Nothing is unpickled.

    Args:
        path: The file.
        names: Names of the wanted arrays; those that the file lacks are left out.

    Returns:
        The arrays, and the names of all that the file has.

    Raises:
        ValueError: If a wanted array holds Python objects.
        zipfile.BadZipFile: If the file is none of this kind, or cut off.

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
    if dtype.hasobject or not np.prod(shape):
        return None
    with path.open("rb") as file:
        # A member follows its local header: 30 bytes, of which the last four are the lengths of name and extra field.
        file.seek(info.header_offset + 26)
        start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))) + header
    return np.memmap(path, dtype, "c", start, shape, "F" if fortran else "C")


def save_npz(
    path: Path, name: str, shape: tuple[int, ...], blocks: Iterable[np.ndarray], arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes an .npz file as `np.savez` does, one of its arrays block by block, so that it need not fit into memory.

    A reader never sees half a file.

    Args:
        path: The file.
        name: Name of the array that comes in blocks.
        shape: Its shape, (n, …).
        blocks: Its samples, n in all, written as float32.
        arrays: The other arrays by name.

    Raises:
        ValueError: If an array holds Python objects.
        SuperCMError: If the blocks have another number of samples.
    """

    def write(stream: object) -> None:
        with zipfile.ZipFile(stream, "w") as archive:  # type: ignore[call-overload]
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
                count = 0
                for block in blocks:
                    member.write(np.ascontiguousarray(block, dtype="<f4").tobytes())
                    count += len(block)
            if count != shape[0]:
                raise SuperCMError(f"{path}: {count} samples of {name}, where {shape[0]} were expected.")
            for other, array in arrays.items():
                with archive.open(f"{other}.npy", "w", force_zip64=True) as member:
                    npy.write_array(member, array, allow_pickle=False)

    write_atomically(path, write)
