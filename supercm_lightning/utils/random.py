"""Randomness as a function of named numbers, so that a resumed run draws what the interrupted one would have drawn."""

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def seed_of(*key: int | str) -> int:
    """A seed in [0, 2^63) that depends on `key` alone, numbers and names such as (seed, "weak", step, rank).

    Examples:
        >>> seed_of(0, "weak", 3) == seed_of(0, "weak", 3) != seed_of(0, "weak", 4)
        True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on a device whose stream depends on `key` alone, as in `seed_of`.

    Examples:
        >>> one, other = (torch.rand(3, generator=generator(0, "weak", 3)) for _ in range(2))
        >>> torch.equal(one, other)
        True
    """
    return torch.Generator(device).manual_seed(seed_of(*key))


def run_seed(trainer: "Trainer | None") -> int:
    """Seed of the run, the same on every rank and after a resume: that of the trainer's `SeedOwner`.

    Where there is none (a module of another library, or no run yet), it is the seed of torch's generator.

    Examples:
        >>> _ = torch.manual_seed(7)
        >>> run_seed(None)
        7
    """
    # Imported here: losses and transforms use this module and need no Lightning.
    from supercm_lightning.contracts import SeedOwner
    from supercm_lightning.utils.trainer import callbacks_of

    owners = (c for c in callbacks_of(trainer) if isinstance(c, SeedOwner)) if trainer is not None else iter(())
    owner = next(owners, None)
    return owner.run_seed if owner is not None else torch.initial_seed()
