"""Pseudo-labeled samples: how they are chosen, that labels keep their meaning from set to set, what is stored."""

import pytest
import torch
from torch import Tensor

from supercm_lightning.self_labeling import PseudoLabeledSamples


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_pass_of_prototypes_ends_when_too_few_candidates_are_unused() -> None:
    features = torch.eye(3)[torch.arange(30) % 3] + 0.1 * torch.randn(30, 3, generator=stream())
    samples, seen = PseudoLabeledSamples(30, 6, 3), []
    for number in range(5):
        assert int(samples.unused.sum()) == 30 - 6 * number
        samples.sample_prototypes(3, 60, lambda index: features[index], stream(number))
        assert (samples.index % 3).bincount().tolist() == [2, 2, 2]
        seen += samples.index.tolist()
    assert sorted(seen) == list(range(30))
    samples.sample_prototypes(3, 60, lambda index: features[index], stream(5))
    assert int(samples.unused.sum()) == 24


def test_prototypes_are_sought_among_the_candidates_alone() -> None:
    asked: list[Tensor] = []

    def features_of(index: Tensor) -> Tensor:
        asked.append(index)
        return torch.randn(len(index), 4, generator=stream())

    samples = PseudoLabeledSamples(500, 4, 4)
    samples.sample_prototypes(2, 20, features_of, stream())
    assert len(asked[0].unique()) == 20
    assert set(samples.index.tolist()) <= set(asked[0].tolist())


@pytest.mark.parametrize("cost", ["logit", "feature"])
def test_samples_chosen_again_get_their_labels_back(cost: str) -> None:
    features = torch.eye(5) + 0.05 * torch.randn(5, 5, generator=stream())
    logits = 10 * torch.eye(5)[torch.tensor([3, 1, 4, 0, 2])]
    samples = PseudoLabeledSamples(20, 5, 5)
    for index in ([10, 11, 12, 13, 14], [14, 13, 12, 11, 10]):
        samples.index.copy_(torch.tensor(index))
        own = torch.tensor(index) - 10
        if cost == "logit":
            samples.align(features[own], logits[own], "logit")
            assert samples.labels.tolist() == logits[own].argmax(1).tolist()
        else:  # logits play no part, and the first labels are whatever they are
            samples.align(features[own], torch.randn(5, 5, generator=stream()), "feature")
        assert torch.equal(samples.last_label[samples.index], samples.labels)
        assert bool((samples.last_label[:10] == -1).all())
    # The second set had all its old labels, and the running fraction moves a tenth of the way.
    assert samples.agreement.item() == pytest.approx(0.1)


def test_mean_features_follow_the_labels_slowly_and_have_length_one() -> None:
    samples = PseudoLabeledSamples(9, 3, 2)
    first, second = torch.eye(3, 2), torch.tensor([[1.0, 1.0], [0.0, 2.0], [-1.0, 0.0]])
    samples.align(first, 9 * torch.eye(3))
    torch.testing.assert_close(samples.mean_features, first)
    samples.align(second, 9 * torch.eye(3))
    blend = 0.9 * first + 0.1 * second / second.norm(dim=1, keepdim=True)
    torch.testing.assert_close(samples.mean_features, blend / blend.norm(dim=1, keepdim=True))


def test_a_loaded_set_goes_on_as_the_saved_one() -> None:
    saved = PseudoLabeledSamples(23, 5, 2)
    for number in range(3):
        saved.sample_randomly(stream(number))
    loaded = PseudoLabeledSamples(1, 5, 2)  # built before the data is known
    loaded.load_state_dict(saved.state_dict())
    for number in range(3, 6):
        for one in (saved, loaded):
            one.sample_randomly(stream(number))
        assert torch.equal(saved.index, loaded.index)
        assert torch.equal(saved.unused, loaded.unused)
