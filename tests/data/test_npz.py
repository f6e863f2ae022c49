"""Arrays mapped from .npz files are those that NumPy reads."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from supercm_lightning.data.sources.npz import load_npz

ARRAYS = {
    "features": np.random.default_rng(0).normal(size=(7, 3)).astype("f4"),
    "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "labels": np.arange(7),
    "classes": np.array(["a", "ünï"]),
    "empty": np.zeros((0, 3), "f4"),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_numpy_reads(save: object) -> None:
    assert callable(save)
    save("file.npz", **ARRAYS)
    loaded, found = load_npz(Path("file.npz"), [*ARRAYS, "missing"])
    assert found == set(ARRAYS)
    assert loaded.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype
    mapped = {name for name, array in loaded.items() if isinstance(array, np.memmap)}
    assert mapped == ({"features", "columns", "labels", "classes"} if save is np.savez else set())


def test_changes_stay_in_memory() -> None:
    np.savez("file.npz", **ARRAYS)
    before = Path("file.npz").read_bytes()
    loaded = load_npz(Path("file.npz"), ["features"])[0]["features"]
    loaded += 1
    np.testing.assert_array_equal(loaded, ARRAYS["features"] + 1)
    loaded.flush()
    assert Path("file.npz").read_bytes() == before


def test_objects_and_truncated_files_are_refused() -> None:
    np.savez("objects.npz", features=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_npz(Path("objects.npz"), ["features"])
    np.savez("file.npz", **ARRAYS)
    whole = Path("file.npz").read_bytes()
    Path("cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(zipfile.BadZipFile):
        load_npz(Path("cut.npz"), ["features"])


def test_a_flipped_bit_is_found_before_it_is_believed() -> None:
    np.savez("file.npz", **ARRAYS)
    content = bytearray(Path("file.npz").read_bytes())
    content[content.index(ARRAYS["features"].tobytes()) + 9] ^= 1
    Path("flipped.npz").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match=r"checksum|CRC"):
        load_npz(Path("flipped.npz"), ["features"])
    load_npz(Path("flipped.npz"), ["labels"])


def test_a_large_member_is_compared_too() -> None:
    features = np.arange(1 << 20, dtype="f4").reshape(-1, 16)
    np.savez("file.npz", features=features)
    content = bytearray(Path("file.npz").read_bytes())
    content[len(content) // 2] ^= 1
    Path("flipped.npz").write_bytes(content)
    load_npz(Path("file.npz"), ["features"])
    with pytest.raises(zipfile.BadZipFile, match=r"checksum|CRC"):
        load_npz(Path("flipped.npz"), ["features"])


@pytest.mark.parametrize("shape", [(9, 3), (-7, 3), (1 << 40, 3)])
def test_a_header_that_claims_another_size_is_refused(shape: tuple[int, int]) -> None:
    with zipfile.ZipFile("lying.npz", "w") as archive, archive.open("features.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
        member.write(ARRAYS["features"].tobytes())
    with pytest.raises(zipfile.BadZipFile, match="header"):
        load_npz(Path("lying.npz"), ["features"])
