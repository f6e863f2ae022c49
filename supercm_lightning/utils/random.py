"""Randomness as a function of named numbers, so that an interrupted run can draw again what it drew before."""

import hashlib

import torch


def seed_of(*key: int | str) -> int:
    """A seed, in [0, 2^63), that depends on `key` alone.

    Args:
        *key: Numbers and names, such as (seed, "weak", step, rank).
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends on `key` alone.

    Args:
        *key: Numbers and names, such as (seed, "weak", step, rank).
        device: Device of the generator.

    Returns:
        The generator, freshly seeded.
    """
    return torch.Generator(device).manual_seed(seed_of(*key))
