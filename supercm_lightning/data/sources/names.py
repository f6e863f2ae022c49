"""Names and contents of samples as numbers, by which samples are known again whatever their order."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Keys = npt.NDArray[np.int64]
"""One number per sample, (n,) int64."""

_BLOCK = 2**14
_WHOLE = 2**26


def normalized(name: str) -> str:
    """A name in Unicode's composed form: systems write one and the same name in different bytes."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _number(data: bytes, *more: bytes) -> int:
    digest = blake2b(data, digest_size=8)
    for part in more:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little", signed=True)


def keys_of(names: Iterable[str]) -> Keys:
    """A number per name, (n,) int64, that depends on the name alone."""
    encoded = (normalized(name).encode("utf-8", "surrogateescape") for name in names)
    return np.frombuffer(b"".join(blake2b(name, digest_size=8).digest() for name in encoded), dtype="<i8")


def relative_names(files: Sequence[str], root: str | os.PathLike[str]) -> list[str]:
    """Paths below a folder, with slashes; a file that lies elsewhere keeps its path."""
    prefix = os.path.join(os.fspath(root), "")
    prefix = "" if prefix == os.path.join(".", "") else prefix
    return [file.removeprefix(prefix).replace(os.sep, "/") for file in files]


def fingerprint(file: str | os.PathLike[str]) -> int:
    """A number for the contents of a file: its size, and its first, middle and last 16 KiB; 0: it cannot be read."""
    try:
        with open(file, "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            parts = []
            for start in (0,) if size <= 3 * _BLOCK else (0, size // 2, size - _BLOCK):
                stream.seek(start)
                parts.append(stream.read(_BLOCK if start or size > 3 * _BLOCK else size))
    except OSError:  # whoever decodes it says so
        return 0
    return _number(str(size).encode(), *parts)


def content_number(data: Tensor, *more: Any) -> int:
    """A number for an array: for its shape and its values, of large arrays for a thousand evenly spaced samples."""
    step = 1 if data.nbytes <= _WHOLE else max(1, len(data) // 1000)
    values = data[::step].detach().cpu().contiguous()
    return _number(
        repr((tuple(data.shape), str(data.dtype), more)).encode(), values.view(torch.uint8).numpy().tobytes()
    )


def order_of(keys: Keys, seed: int) -> Keys:
    """A random order of samples with these keys, (n,) int64, in which one that comes or goes moves no other."""
    # The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
    x = keys.astype(np.uint64) + np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return np.lexsort((keys, x ^ (x >> np.uint64(31))))
