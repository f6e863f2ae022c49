"""The centroid rule against a loop over classes, and what the head stores."""

import math

import pytest
import torch
from torch import Tensor

from supercm_lightning.nn import ClusteringHead


def batches(count: int, k: int = 6, d: int = 5, n: int = 7, ignored: bool = True) -> list[tuple[Tensor, Tensor]]:
    """Batches too small to hold every class, with some unknown labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(n, d, generator=generator),
            torch.randint(-1 if ignored else 0, k, (n,), generator=generator),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("counter", ["per_class", "global"])
def test_update_equals_a_loop_over_classes(counter: str) -> None:
    head = ClusteringHead(5, 6, counter=counter)  # type: ignore[arg-type]
    centroids = [[0.0] * 5 for _ in range(6)]
    seen = [0] * 6
    absences = 0
    for step, (features, labels) in enumerate(batches(60), start=1):
        head.update(features, labels)
        for k in range(6):
            rows = [row.tolist() for row, label in zip(features, labels, strict=True) if label == k]
            if not rows:
                absences += 1
                continue
            seen[k] += 1
            c = seen[k] if counter == "per_class" else step
            for m in range(5):
                mean = sum(row[m] for row in rows) / len(rows)
                centroids[k][m] += (mean - centroids[k][m]) / c
        torch.testing.assert_close(head.centroids, torch.tensor(centroids), rtol=1e-5, atol=1e-6)
    assert absences > 20
    assert head.updates.tolist() == (seen if counter == "per_class" else [60] * 6)


def test_absent_classes_do_not_move_by_a_bit() -> None:
    head = ClusteringHead(5, 6)
    for features, labels in batches(5):
        head.update(features, labels)
    before = head.centroids.clone()
    head.update(torch.randn(3, 5), torch.tensor([2, 2, -1]))
    unchanged = (head.centroids == before).all(dim=1)
    assert unchanged.tolist() == [True, True, False, True, True, True]


def test_rows_without_a_class_change_nothing() -> None:
    with_unknown, without = ClusteringHead(5, 6), ClusteringHead(5, 6)
    features = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    with_unknown.update(features, torch.tensor([0, -1, 3, 6, -100, 3]))
    without.update(features[[0, 2, 5]], torch.tensor([0, 3, 3]))
    torch.testing.assert_close(with_unknown.centroids, without.centroids)
    assert torch.equal(with_unknown.updates, without.updates)
    none_known = ClusteringHead(5, 6)
    none_known.update(features, torch.full((6,), -1))
    assert not none_known.centroids.any()
    assert not none_known.updates.any()


@pytest.mark.parametrize("counter", ["per_class", "global"])
def test_a_batch_without_a_known_label_is_no_update(counter: str) -> None:
    head = ClusteringHead(2, 2, counter=counter)  # type: ignore[arg-type]
    for _ in range(9):
        head.update(torch.ones(4, 2), torch.full((4,), -1))
    head.update(torch.ones(4, 2), torch.tensor([0, 0, 1, 1]))
    assert torch.equal(head.centroids, torch.ones(2, 2))


def test_per_class_counter_is_unbiased_where_the_global_one_falls_short() -> None:
    # A class seen every other step with the constant feature 1: prod (1 - 1/(2i)) short of it under the global counter.
    heads = {counter: ClusteringHead(1, 2, counter=counter) for counter in ("per_class", "global")}  # type: ignore[arg-type]
    for step in range(100):
        for head in heads.values():
            head.update(torch.ones(4, 1), torch.full((4,), step % 2))
    shortfall = 1.0
    for step in range(1, 101, 2):
        shortfall *= 1 - 1 / step if step > 1 else 0
    assert heads["per_class"].centroids.squeeze().tolist() == [1.0, 1.0]
    assert heads["global"].centroids[0].item() == pytest.approx(1 - shortfall)
    late = math.prod(1 - 1 / step for step in range(2, 101, 2))
    assert late > 0.05
    assert heads["global"].centroids[1].item() == pytest.approx(1 - late, rel=1e-5)


def test_state_dict_holds_classifier_centroids_and_counts() -> None:
    head = ClusteringHead(5, 6)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "centroids": (6, 5),
        "updates": (6,),
        "linear.weight": (6, 5),
        "linear.bias": (6,),
    }
    assert {name for name, _ in head.named_parameters()} == {"linear.weight", "linear.bias"}
    assert not head.centroids.any()


def test_a_restored_head_continues_as_the_original() -> None:
    original, restored = ClusteringHead(5, 6), ClusteringHead(5, 6)
    data = batches(20)
    for features, labels in data[:10]:
        original.update(features, labels)
    restored.load_state_dict(original.state_dict())
    for features, labels in data[10:]:
        original.update(features, labels)
        restored.update(features, labels)
    assert torch.equal(original.centroids, restored.centroids)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_assignments_soften_with_temperature_and_logits_do_not(temperature: float) -> None:
    head = ClusteringHead(5, 6, temperature=temperature)
    features = torch.randn(3, 5)
    logits = features @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(features), logits)
    torch.testing.assert_close(head.assignments(features), (logits / temperature).softmax(dim=1))


def test_update_is_in_place_and_keeps_no_graph() -> None:
    head = ClusteringHead(5, 6)
    centroids, updates = head.centroids, head.updates
    source = torch.randn(7, 5, requires_grad=True)
    head.update(source * 2, torch.arange(7) % 6)
    assert head.centroids is centroids
    assert head.updates is updates
    assert centroids.any()
    assert not centroids.requires_grad
    assert centroids.grad_fn is None


def test_update_in_a_bfloat16_module_averages_in_float32() -> None:
    head = ClusteringHead(5, 6).to(torch.bfloat16)
    assert head.updates.dtype == torch.int64
    # 300 rows of 1.0 and one of 256: a bfloat16 sum would stop growing at 256.
    features = torch.ones(301, 5, dtype=torch.bfloat16)
    features[0] = 256
    head.update(features, torch.zeros(301, dtype=torch.int64))
    assert head.centroids.dtype == torch.bfloat16
    assert head.centroids[0].tolist() == [torch.tensor(556 / 301).bfloat16().item()] * 5


def test_update_is_exact_under_autocast() -> None:
    inside, outside = ClusteringHead(5, 6), ClusteringHead(5, 6)
    for features, labels in batches(5):
        outside.update(features, labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside.update(features, labels)
    assert torch.equal(inside.centroids, outside.centroids)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": -1.0}, {"counter": "class"}])
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ClusteringHead(5, 6, **options)
