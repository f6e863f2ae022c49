"""Checks of what an author of a method writes, and of the data that a method meets."""

import math
from typing import Any

import torch
from torch import Tensor

from supercm_lightning.data import ViewDataModule
from supercm_lightning.utils.options import SuperCMError, check_choice, check_range


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


def check_balance(model: Any) -> None:
    """Checks the options of a method for classes of unequal size.

    Raises:
        SuperCMError: If the method has no labels, or the weights are not one per class, each positive.
    """
    weight, shift = model.hparams.class_weight, model.hparams.logit_adjustment
    if not model.needs_labeled and (weight is not None or shift):
        raise SuperCMError(
            f"{'class_weight' if weight is not None else 'logit_adjustment'}: {type(model).__name__} learns without "
            "labels, whose classes could be counted. Leave it out; asd_reuse suits clusters of unequal size."
        )
    if isinstance(weight, str):
        check_choice(class_weight=(weight, ("balanced", "a list of one weight per class")))
    elif weight is not None and (len(weight) != model.num_classes or not all(0 < one < math.inf for one in weight)):
        raise SuperCMError(f"class_weight={weight}: give {model.num_classes} positive numbers, one per class.")
    check_range(0, logit_adjustment=shift)


def labeled_counts(data: Any, num_classes: int) -> Tensor:
    """Number of labeled samples of each class (K,), in which a training sees them.

    Raises:
        SuperCMError: If the data module does not tell, or balances its batches itself.
    """
    if not isinstance(data, ViewDataModule):
        raise SuperCMError("class_weight, logit_adjustment: need a data module of supercm_lightning.data.")
    if data.hparams.get("balanced_batches"):
        raise SuperCMError(
            "balanced_batches: balances the classes already; leave out class_weight or logit_adjustment."
        )
    return torch.bincount(data.samples["labeled"].labels.cpu(), minlength=num_classes)
