"""What users of scikit-learn pass as X and y."""

import math
from typing import Any

import numpy as np
import torch
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data

from supercm_lightning.utils.options import SuperCMError

DTYPES = (np.float32, np.float64, np.float16, np.uint8)
"""Types that stay as they are; batches are converted one by one. Others become float32 at once."""


def check_samples(estimator: Any, X: Any, reset: bool) -> np.ndarray:
    """Features (n, d) or images (n, c, h, w) as an array of real numbers; a memory map is not copied.

    `n_features_in_` and `input_shape_` of the estimator are set (`reset`, for `fit`) or compared; another shape, or
    values that are not finite, are a `ValueError`.
    """
    if not (isinstance(X, np.ndarray | torch.Tensor) and X.ndim == 4):
        array = validate_data(estimator, X, reset=reset, dtype=DTYPES)
    else:
        array = validate_data(estimator, X, reset=reset, dtype=DTYPES, ensure_2d=False, allow_nd=True)
    shape = array.shape[1:]
    if reset:
        estimator.input_shape_, estimator.n_features_in_ = shape, math.prod(shape)
    elif shape != estimator.input_shape_:
        raise SuperCMError(f"X: samples of shape {shape}, but fit had {estimator.input_shape_}.")
    # torch knows no negative strides, and no bytes in another order.
    simple = min(array.strides, default=0) >= 0 and array.dtype.isnative
    return array if simple else np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def encode_labels(estimator: Any, y: Any, known: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Classes of the labeled samples, sorted, and the number of each sample's class, -1 where it has none.

    Unlabeled are -1, None and NaN, and in arrays of strings "-1", which is what NumPy makes of -1 among strings. Only
    labels of samples that are `known`, (n,) bool, are read; None: all. Labels of no classes are a `ValueError`.
    """
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None.")
    y = column_or_1d(y, warn=True)
    if y.dtype.kind == "f":
        unlabeled = np.isnan(y) | (y == -1)
        assert_all_finite(y[~unlabeled], input_name="y")
    elif y.dtype.kind == "O":
        unlabeled = np.array([one is None or one != one or one in (-1, "-1") for one in y], dtype=bool)
    else:
        unlabeled = y == ("-1" if y.dtype.kind in "US" else -1)
    labeled = ~unlabeled if known is None or len(known) != len(y) else known & ~unlabeled
    if not labeled.any():
        raise ValueError(f"y: none of {len(y)} samples has a label of a class; -1 means unlabeled.")
    labels = np.array(y[labeled].tolist()) if y.dtype.kind == "O" else y[labeled]
    check_classification_targets(labels)
    classes, numbers = np.unique(labels, return_inverse=True)
    codes = np.full(len(y), -1)
    codes[labeled] = numbers
    return classes, codes


def view_tensors(X: np.ndarray, weak: Any, strong: Any) -> list[torch.Tensor]:
    """Stored views as tensors (n, v, d) and (n, s, d), of which one may be empty; nothing where there are none."""
    if weak is None and strong is None:
        return []
    views = [np.empty((len(X), 0, X.shape[1]), np.float32) if view is None else view for view in (weak, strong)]
    for name, view in zip(("weak", "strong"), views, strict=True):
        if X.ndim != 2 or np.ndim(view) != 3 or np.shape(view)[::2] != X.shape:
            raise SuperCMError(f"{name}: views of shape {np.shape(view)}; expected (n, views, d), with X (n, d).")
    return [torch.as_tensor(np.asarray(view)) for view in views]
