"""Splits, samplers, readers of lists and losses under arguments that nobody thought of."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from supercm_lightning import losses
from supercm_lightning.data import CyclingSampler
from supercm_lightning.data.manifest import Manifest
from supercm_lightning.data.sources.stores import ArrayStore
from supercm_lightning.data.splits import make_split, split_of, stratified_draw

SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
labels = st.lists(st.integers(-1, 6), min_size=1, max_size=80).map(torch.tensor)


def classes(y: Tensor) -> int:
    return len(y[y >= 0].unique())


@SETTINGS
@given(labels, st.one_of(st.none(), st.integers(0, 40)), st.integers(-1, 30), st.integers(0, 30), st.integers(0, 3))
def test_a_split_is_a_partition_or_refused(
    y: Tensor, num_labeled: int | None, num_val: int, num_test: int, seed: int
) -> None:
    possible = num_val >= 0 and num_val + num_test + (num_labeled or classes(y)) <= int((y >= 0).sum())
    if not possible or (num_labeled is not None and num_labeled < classes(y)):
        with pytest.raises(ValueError, match="num_"):  # names the option
            make_split(y, num_labeled, num_val, num_test, seed)
        return
    split = make_split(y, num_labeled, num_val, num_test, seed)
    rows = split.indices(labeled_in_unlabeled=False)
    assert torch.cat(list(rows.values())).sort().values.tolist() == list(range(len(y)))
    assert (len(rows["val"]), len(rows["test"])) == (num_val, num_test)
    assert len(rows["labeled"]) == int((y >= 0).sum()) - num_val - num_test if num_labeled is None else num_labeled
    assert all((y[rows[part]] >= 0).all() for part in ("labeled", "val", "test"))
    again = make_split(y, num_labeled, num_val, num_test, seed)
    assert again == split
    assert make_split(y, num_labeled, num_val, num_test, seed + 1).test == split.test


@SETTINGS
@given(labels, st.data())
def test_a_balanced_draw_differs_by_one_between_classes_that_reach(y: Tensor, data: st.DataObject) -> None:
    known = torch.arange(len(y))[y >= 0]
    count = data.draw(st.integers(0, len(known)))
    drawn = stratified_draw(y, torch.arange(len(y)), count, torch.Generator().manual_seed(0), balanced=True)
    assert len(drawn.unique()) == count
    taken, size = (torch.bincount(y[rows], minlength=7) for rows in (drawn, known))
    left = taken < size
    if left.any():
        assert int(taken.max()) - int(taken[left].min()) <= 1


@SETTINGS
@given(
    st.integers(1, 30), st.integers(1, 8), st.integers(1, 6), st.integers(0, 5), st.integers(1, 3), st.integers(0, 40)
)
def test_a_walk_visits_every_row_once_before_any_again(
    num_rows: int, batch_size: int, steps: int, seed: int, world: int, start: int
) -> None:
    def walk(first: int, length: int) -> list[int]:
        ranks = [
            list(CyclingSampler(num_rows, batch_size, length, seed, "fuzz", rank, world, lambda: first))
            for rank in range(world)
        ]
        return [row for together in zip(*ranks, strict=True) for row in together]

    whole = walk(0, start + steps)
    # A run that starts again at any step goes on in the same walk.
    assert walk(start, steps) == whole[start * batch_size * world :]
    for first in range(0, len(whole), num_rows):
        passed = whole[first : first + num_rows]
        assert len(set(passed)) == len(passed)
        assert set(passed) <= set(range(num_rows))


STORE = ArrayStore(torch.arange(9.0).view(9, 1), torch.arange(9) % 3)


@SETTINGS
@given(st.binary(max_size=60))
def test_bytes_are_no_split_but_an_error_that_names_the_file(content: bytes) -> None:
    Path("split.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"split_file=split\.json: not a split"):
        Manifest.read(Path("split.json"), STORE, "x")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 12) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
rows = st.integers(0, 9) | st.lists(st.integers(-1, 9), max_size=4)
NAMES = ("num_rows", "seed", "known", "labeled", "val", "test", "unlabeled")
ABOUT = {"dataset": "x", "num_rows": 9, "seed": 0, "known": 9, "classes": None, "labeled": [0], "val": [], "test": [8]}


@SETTINGS
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, rows | values)), st.booleans())
def test_a_split_file_is_sound_or_refused(content: dict[str, object], named: bool) -> None:
    store = STORE if not named else replace(STORE, names=list("abcdefghi"))
    number = None if named else f"{store.content() & (2**64 - 1):016x}"
    Path("split.json").write_text(json.dumps(ABOUT | {"content": number} | content))
    try:
        saved = Manifest.read(Path("split.json"), store, "x")
    except ValueError as error:
        message = str(error)
    else:
        message = "split_file=split.json: "
        parts = split_of(store, store.labels, {}, {"val": 0, "test": 0}, named, saved).indices()
        assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(9))
    assert message.startswith("split_file=split.json: ")


# ------------------------------------------------------------------------------------------------------------ losses
def numbers(rows: int, columns: int, seed: int, scale: float) -> Tensor:
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


logits = st.builds(
    numbers,
    st.integers(1, 7),
    st.shared(st.integers(2, 5), key="K"),
    st.integers(0, 9),
    st.sampled_from([0.0, 1.0, 1e4]),
)


def finite(loss: Tensor, *inputs: Tensor) -> None:
    """The loss is a finite number, and so is its gradient."""
    assert loss.ndim == 0
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, inputs, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@SETTINGS
@given(logits, st.integers(1, 6), st.sampled_from([0.0, 1.0, 1e4]), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_clustering_loss_is_finite_and_the_sum_of_its_terms(
    z: Tensor, width: int, scale: float, alpha: float
) -> None:
    x = numbers(len(z), width, 1, scale).requires_grad_()
    assignments = z.requires_grad_().softmax(dim=1)
    centroids = numbers(z.shape[1], width, 2, scale)
    loss = losses.clustering_loss(x, assignments, centroids, alpha)
    finite(loss, x, z)
    terms = losses.clustering_loss_terms(x, assignments, centroids, alpha)
    torch.testing.assert_close(sum(terms.values()), loss, rtol=1e-3, atol=1e-5 * max(1.0, scale**2))


@SETTINGS
@given(logits, st.floats(0, 1))
def test_consistency_losses_are_finite_and_not_negative(z: Tensor, threshold: float) -> None:
    target = z.flip(0).detach()
    z.requires_grad_()
    for loss in (losses.consistency_loss(z, target), losses.pseudo_label_loss(z, target, threshold)):
        finite(loss, z)
        assert loss >= 0
    assert losses.consistency_loss(z, z.detach()) == 0
