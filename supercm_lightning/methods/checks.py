"""Checks of what an author of a method writes, and of the data that a method meets."""

from typing import Any

from torch import Tensor

from supercm_lightning.utils.options import SuperCMError


def check_bases(cls: Any, bases: list[Any]) -> None:
    """Gives a class that names no views the longest of its bases' views, and compares its bases.

    Args:
        cls: The new class.
        bases: Its bases that are methods.

    Raises:
        TypeError: If bases need different views at the same place, or two classes add a term of the same name.
    """
    for name in ("views", "target_views"):
        if name not in vars(cls):
            needed = [getattr(base, name) for base in bases]
            longest = max(needed, key=len)
            if any(views != longest[: len(views)] for views in needed):
                raise TypeError(f"{cls.__name__}: its bases need {name} {' and '.join(map(str, needed))}.")
            setattr(cls, name, longest)
    owners: dict[str, type] = {}
    for base in reversed(cls.__mro__):
        for term in vars(base).get("terms", ()):
            if term in owners and not issubclass(base, owners[term]):
                raise TypeError(
                    f"{cls.__name__}: {owners[term].__name__} and {base.__name__} both add a term {term!r}, and one "
                    "would replace the other. Rename one of them."
                )
            owners[term] = base


def check_terms(cls: type, terms: Any) -> dict[str, Tensor]:
    """Checks what `losses` returned.

    Raises:
        TypeError: If it is no dictionary of scalars.
    """
    if not isinstance(terms, dict):
        raise TypeError(f"{cls.__name__}.losses must return a dictionary, super().losses(step) | {{'mine': term}}.")
    for term, value in terms.items():
        if not isinstance(value, Tensor) or value.ndim:
            shape = tuple(value.shape) if isinstance(value, Tensor) else ()
            raise TypeError(
                f"{cls.__name__}.losses: {term!r} must be a tensor without dimensions, the mean over its samples; it "
                f"is a {type(value).__name__} of shape {shape}."
            )
    return terms


def check_data(model: Any, data: Any) -> None:
    """Compares the classes and the input shape of a model with those of a data module, where that knows them.

    Raises:
        SuperCMError: If they differ.
    """
    for name in ("num_classes", "input_shape"):
        found, expected = getattr(data, name, None), getattr(model, name)
        found = tuple(found) if isinstance(found, (list, tuple)) else found
        if found is not None and found != expected:
            raise SuperCMError(f"{name}: the model was built for {expected}, the data has {found}.")
