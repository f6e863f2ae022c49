"""The adaptor without a trainer: it finds groups, its losses have no side effects, it goes on after loading."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supercm_lightning.self_labeling import ASDOptions, SelfLabeler

QUICK = ASDOptions(hold=3, map_every=4, warmup=0.2, prototype_start=0.5, pool=4)


def groups(n: int = 90, k: int = 3) -> tuple[Tensor, Tensor]:
    """Features of k separate groups, and the group of each sample."""
    group = torch.arange(n) % k
    return 3 * torch.eye(k, 6)[group] + torch.randn(n, 6, generator=torch.Generator().manual_seed(0)), group


def batches(n: int, steps: int, size: int = 45) -> Iterator[tuple[int, Tensor, torch.Generator]]:
    for step in range(steps):
        stream = torch.Generator().manual_seed(step)
        yield step, torch.randperm(n, generator=stream)[:size], stream


def run(labeler: SelfLabeler, features: Tensor, steps: range, total: int, learn: bool = True) -> None:
    """Training on given features: the instance head alone learns."""
    optimizer = torch.optim.SGD(labeler.parameters(), 0.5)
    for step, index, stream in batches(len(features), total):
        if step not in steps:
            continue
        labeler.tracker.resize(labeler.options.window_steps(total))
        if labeler.starts_set(step):
            labeler.sample(lambda positions: features[positions], stream, step / total)
        if labeler.merges(step, step / total):
            labeler.merge(lambda positions: features[positions], stream)
        chosen, _ = labeler.samples.shard
        noise = 0.3 * torch.randn(2 * len(chosen) + 2 * len(index), 6, generator=stream)
        inputs = features[torch.cat([chosen, chosen, index, index])] + noise
        unlabeled = inputs[2 * len(chosen) :].chunk(2)[0]
        labeler.observe(inputs[: len(chosen)], unlabeled, index, step, step / total)
        if learn:
            optimizer.zero_grad()
            loss = torch.stack(list(labeler.losses(inputs, num_views=2).values())).sum()
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("by", ["kmedoids", "merge"])
def test_separate_groups_are_found(by: Any) -> None:
    features, group = groups()
    torch.manual_seed(0)
    labeler = SelfLabeler(6, 3, replace(QUICK, map=by), len(features))
    run(labeler, features, range(80), 80)
    cluster = labeler.clusters(labeler.instance_head(features).argmax(dim=1))
    pairs = torch.bincount(3 * group + cluster, minlength=9).view(3, 3)
    assert pairs.max(dim=1).values.sum() >= 0.9 * len(features)
    assert len(pairs.argmax(dim=1).unique()) == 3
    assert bool((labeler.targets >= 0).any())
    assert labeler.label_agreement > 0.8  # also after few steps


def test_merge_gives_instance_classes_without_a_sample_no_new_cluster() -> None:
    """Two large groups and a small one; the last instance class has no sample."""
    sizes = torch.tensor([60, 60, 12])
    features = torch.eye(3, 6).repeat_interleave(sizes, dim=0) + 0.02 * torch.rand(132, 6)
    labeler = SelfLabeler(6, 3, ASDOptions(samples=4, map="merge", warmup=0.0), 132)
    labeler.merge(lambda index: features[index], torch.Generator())
    assert not labeler.clusters.is_known  # nothing was predicted yet
    labeler.tracker.bank.copy_(torch.arange(3).repeat_interleave(sizes))
    labeler.clusters.set_map(torch.tensor([0, 1, 2, 1]))
    labeler.merge(lambda index: features[index], torch.Generator())
    assert labeler.clusters.cluster_of.tolist() == [0, 1, 2, 1]


def test_losses_have_no_side_effects_and_reach_head_and_features() -> None:
    features, _ = groups()
    torch.manual_seed(0)
    labeler = SelfLabeler(6, 3, QUICK, len(features))
    run(labeler, features, range(10), 80)
    inputs = torch.randn(24 + 80, 6, requires_grad=True)
    state = {name: value.clone() for name, value in labeler.state_dict().items()}
    once, again = labeler.losses(inputs, 2), labeler.losses(inputs, 2)
    assert once.keys() == again.keys() == {"instance", "instance_consistency"}
    for name in once:
        assert torch.equal(once[name], again[name])
        assert once[name] > 0
    for name, value in labeler.state_dict().items():
        assert torch.equal(value, state[name]), name
    once["instance"].backward(retain_graph=True)
    assert inputs.grad is not None
    assert bool((inputs.grad[:24].abs().sum(dim=1) > 0).all())
    assert not bool(inputs.grad[24:].any())
    inputs.grad = None
    once["instance_consistency"].backward()
    weak, strong = inputs.grad[24:].chunk(2)  # type: ignore[index]
    assert not bool(weak.any())
    assert bool((strong.abs().sum(dim=1) > 0).all())


def test_no_consistency_and_one_view_where_the_options_say_so() -> None:
    labeler = SelfLabeler(6, 3, ASDOptions(consistency=0.0, strong_labels=False), 30)
    assert labeler.targets.shape == (12,)
    assert labeler.losses(torch.randn(12 + 20, 6), 2).keys() == {"instance"}


@pytest.mark.parametrize("at", [1, 7, 45])
def test_a_loaded_adaptor_goes_on_as_the_saved_one(at: int) -> None:
    features, _ = groups()
    torch.manual_seed(0)
    whole = SelfLabeler(6, 3, QUICK, len(features))
    loaded = SelfLabeler(6, 3, QUICK)  # built before the data is known
    run(whole, features, range(at), 60)
    loaded.load_state_dict(whole.state_dict())
    for labeler in (whole, loaded):
        run(labeler, features, range(at, 60), 60)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    assert torch.equal(loaded.targets, whole.targets)


def test_a_reset_adaptor_keeps_only_its_head() -> None:
    features, _ = groups()
    labeler = SelfLabeler(6, 3, QUICK, len(features))
    run(labeler, features, range(30), 60)
    labeler.reset(50)
    fresh = SelfLabeler(6, 3, QUICK, 50)
    nn.Module.load_state_dict(fresh.instance_head, labeler.instance_head.state_dict())
    for name, value in labeler.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    assert not labeler.has_clusters


def test_initial_clusters_are_the_targets_until_the_first_map_which_takes_their_ids() -> None:
    features, group = groups()
    torch.manual_seed(0)
    labeler = SelfLabeler(6, 3, QUICK, len(features))
    labeler.initial_clusters = torch.tensor([2, 0, 1])[group]
    assert labeler.has_clusters
    run(labeler, features, range(10), 80)
    chosen, _ = labeler.samples.shard
    assert labeler.targets.tolist() == labeler.initial_clusters[chosen].tolist() * 2
    run(labeler, features, range(10, 80), 80)
    assert labeler.clusters.is_known
    predicted = labeler.clusters(labeler.instance_head(features).argmax(dim=1))
    assert (predicted == labeler.initial_clusters).float().mean() > 0.9
