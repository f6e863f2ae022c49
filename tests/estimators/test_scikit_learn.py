"""What scikit-learn asks of its estimators."""

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from supercm_lightning.estimators import ASDClusterer, SuperCMAdapter, SuperCMClassifier

# Short trainings of a small network with a high learning rate.
SMALL: dict[str, Any] = {"lr": 0.05, "backbone_options": {"hidden_features": 16, "num_features": 16}}
FAST: dict[str, Any] = {"max_steps": 12, "batch_size": 32, "device": "cpu", "method_options": SMALL}
# Without a map of its own, ASD learns the clusters of k-means.
CLUSTERER = ASDClusterer(**FAST | {"method": "ASDSuperCM", "method_options": SMALL | {"asd_warmup": 0.99}})
UNLABELED = (
    "-1 means unlabeled, as in scikit-learn's own semi-supervised estimators, which the check exempts by name; "
    "test_classifier.py has its part with strings"
)


def exemptions(estimator: Any) -> dict[str, str]:
    return {} if isinstance(estimator, ASDClusterer) else {"check_classifiers_classes": UNLABELED}


@parametrize_with_checks([SuperCMClassifier(**FAST), CLUSTERER], expected_failed_checks=exemptions)
def test_scikit_learn_accepts_the_estimators(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow  # it shares what is checked with the classifier
@parametrize_with_checks([SuperCMAdapter(**FAST)], expected_failed_checks=exemptions)
def test_scikit_learn_accepts_the_adapter(estimator: Any, check: Any) -> None:
    check(estimator)
