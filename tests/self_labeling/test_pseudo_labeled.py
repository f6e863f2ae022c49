"""The labelled set: whom it draws, that labels keep their meaning from set to set, and what it remembers."""

import pytest
import torch
from torch import Tensor

from supercm_lightning.self_labeling import PseudoLabeledSamples


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_pass_of_prototypes_ends_when_too_few_candidates_are_left() -> None:
    features = torch.eye(3)[torch.arange(30) % 3] + 0.1 * torch.randn(30, 3, generator=stream())
    drawn, seen = PseudoLabeledSamples(30, 6, 3), []
    for number in range(5):
        assert int(drawn.unused.sum()) == 30 - 6 * number
        drawn.draw_prototypes(3, 60, lambda rows: features[rows], stream(number))
        assert (drawn.rows % 3).bincount().tolist() == [2, 2, 2]
        seen += drawn.rows.tolist()
    assert sorted(seen) == list(range(30))
    drawn.draw_prototypes(3, 60, lambda rows: features[rows], stream(5))
    assert int(drawn.unused.sum()) == 24


def test_prototypes_are_sought_among_the_candidates_alone() -> None:
    asked: list[Tensor] = []

    def features_of(rows: Tensor) -> Tensor:
        asked.append(rows)
        return torch.randn(len(rows), 4, generator=stream())

    drawn = PseudoLabeledSamples(500, 4, 4)
    drawn.draw_prototypes(2, 20, features_of, stream())
    assert len(asked[0].unique()) == 20
    assert set(drawn.rows.tolist()) <= set(asked[0].tolist())


@pytest.mark.parametrize("cost", ["logit", "feature"])
def test_rows_drawn_again_get_their_labels_back(cost: str) -> None:
    features = torch.eye(5) + 0.05 * torch.randn(5, 5, generator=stream())
    logits = 10 * torch.eye(5)[torch.tensor([3, 1, 4, 0, 2])]
    drawn = PseudoLabeledSamples(20, 5, 5)
    for rows in ([10, 11, 12, 13, 14], [14, 13, 12, 11, 10]):
        drawn.rows.copy_(torch.tensor(rows))
        own = torch.tensor(rows) - 10
        if cost == "logit":
            drawn.align(features[own], logits[own], "logit")
            assert drawn.labels.tolist() == logits[own].argmax(1).tolist()
        else:  # logits play no part, and the first labels are whatever they are
            drawn.align(features[own], torch.randn(5, 5, generator=stream()), "feature")
        assert torch.equal(drawn.last_label[drawn.rows], drawn.labels)
        assert bool((drawn.last_label[:10] == -1).all())
    # The second set had all its old labels, and the running share moves a tenth of the way.
    assert drawn.agreement.item() == pytest.approx(0.1)


def test_mean_features_follow_the_labels_slowly_and_have_length_one() -> None:
    drawn = PseudoLabeledSamples(9, 3, 2)
    first, second = torch.eye(3, 2), torch.tensor([[1.0, 1.0], [0.0, 2.0], [-1.0, 0.0]])
    drawn.align(first, 9 * torch.eye(3))
    torch.testing.assert_close(drawn.mean_features, first)
    drawn.align(second, 9 * torch.eye(3))
    blend = 0.9 * first + 0.1 * second / second.norm(dim=1, keepdim=True)
    torch.testing.assert_close(drawn.mean_features, blend / blend.norm(dim=1, keepdim=True))


def test_a_loaded_set_goes_on_as_the_saved_one() -> None:
    saved = PseudoLabeledSamples(23, 5, 2)
    for number in range(3):
        saved.draw_at_random(stream(number))
    loaded = PseudoLabeledSamples(1, 5, 2)  # built before the data is known
    loaded.load_state_dict(saved.state_dict())
    for number in range(3, 6):
        for one in (saved, loaded):
            one.draw_at_random(stream(number))
        assert torch.equal(saved.rows, loaded.rows)
        assert torch.equal(saved.unused, loaded.unused)
