"""One sentence that follows from the rows."""

from collections.abc import Sequence
from typing import Any

from supercm_lightning.baselines.registry import NO_LABELS, TWO_DOMAINS


def advise(rows: Sequence[dict[str, Any]], num_labeled: int) -> str:
    """Says with what to start.

    Args:
        rows: Rows of `run_baselines`, of one seed or several.
        num_labeled: Number of labeled samples.

    Returns:
        The sentence.

    Examples:
        >>> few = {"protocol": "few labels"}
        >>> rows = [{"method": "logistic_regression", "test/acc": 0.93, **few}]
        >>> print(advise([*rows, {"method": "label_spreading", "test/acc": 0.935, **few}], 200))
        200 labels: logistic regression (93.0 %) is within a point of label spreading (93.5 %); start with it.
    """
    accuracy = mean_accuracy(rows)
    best, protocol = max(accuracy, key=accuracy.__getitem__), rows[0]["protocol"]
    simple = "kmeans" if protocol == NO_LABELS else "logistic_regression"
    number = f"{num_labeled:,} labels"
    start = {NO_LABELS: "No labels", TWO_DOMAINS: f"{number} in the source"}.get(protocol, number)

    def named(method: str) -> str:
        return f"{'k-means' if method == 'kmeans' else method.replace('_', ' ')} ({100 * accuracy[method]:.1f} %)"

    if simple not in accuracy or best == simple:
        text = f"{start}: {named(best)} is the best of the free methods; start with it."
    elif accuracy[best] - accuracy[simple] <= 0.01:
        text = f"{start}: {named(simple)} is within a point of {named(best)}; start with it."
    else:
        text = f"{start}: {named(best)} is {100 * (accuracy[best] - accuracy[simple]):.1f} points above {named(simple)}"
        text += "; start with it." if protocol == NO_LABELS else ": the unlabeled samples pay; start with it."
    if accuracy[best] >= 0.98:
        return f"{text[:-1]}: scikit-learn is enough."
    return text


def mean_accuracy(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean accuracy of each method over its rows."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["method"], []).append(row["test/acc"])
    return {method: sum(found) / len(found) for method, found in values.items()}
