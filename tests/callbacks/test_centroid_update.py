"""When and from which rows the centroids move."""

import pytest
import torch
from lightning.pytorch import Callback

from supercm_lightning.callbacks import CentroidUpdate
from supercm_lightning.methods import Supervised


class Watcher(Callback):
    """Keeps what the centroids should be, moved by a loop over classes, and what batch norm counted."""

    def __init__(self, mode):
        self.mode = mode
        self.centroids = torch.zeros(10, 8)
        self.updates = torch.zeros(10)
        self.at_loss = []

    def move(self, features, labels):
        for number in labels.unique():
            self.updates[number] += 1
            mean = features[labels == number].mean(dim=0)
            self.centroids[number] += (mean - self.centroids[number]) / self.updates[number]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.mode == "eval_forward":
            assert pl_module.backbone.training
            pl_module.eval()
            x, y = batch["clean"]
            with torch.no_grad():
                self.move(pl_module.features(x), y)
            pl_module.train()

    def observe(self, trainer, pl_module, step):
        if self.mode == "reuse":
            self.move(step.labeled_features.detach(), step.y)
        self.at_loss.append(torch.allclose(pl_module.head.centroids, self.centroids, atol=1e-5))


@pytest.mark.parametrize("mode", ["reuse", "eval_forward"])
def test_centroids_follow_the_restated_rule_before_every_loss(short, mode):
    watcher = Watcher(mode)
    _, model, recorder = short.run([CentroidUpdate(mode=mode), watcher], max_steps=5)
    torch.testing.assert_close(model.head.centroids, watcher.centroids)
    assert watcher.at_loss == [True] * 5
    # The extra forward leaves no trace: batch norm counts the training forwards, and modes are as they were.
    assert [int(state["backbone.norm1.num_batches_tracked"]) for state in recorder.trained.values()] == [1, 2, 3, 4, 5]


def test_the_extra_forward_changes_no_statistics_and_no_modes(short):
    model = short.make_model()
    model.backbone.norm1.eval()
    model.backbone.norm2.running_mean += 0.3
    before = short.snapshot(model.backbone)
    trainer = short.make_trainer()
    batch = {"clean": (torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 1]))}
    random_state = torch.get_rng_state()
    update = CentroidUpdate(mode="eval_forward")
    update.on_train_batch_start(trainer, model, batch, 0)
    update.observe(trainer, model, None)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], value) for name, value in model.backbone.state_dict().items())
    assert model.backbone.norm2.training
    assert not model.backbone.norm1.training
    assert model.head.updates.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert not model.head.centroids.requires_grad


def test_only_the_published_rule_asks_for_clean_rows(short):
    assert CentroidUpdate().needs_clean_labeled is False
    assert CentroidUpdate(mode="eval_forward").needs_clean_labeled is True
    with pytest.raises(ValueError, match="mode=reuse"):
        CentroidUpdate(mode="eval_forward").on_train_batch_start(None, None, {"labeled": ()}, 0)


def test_unknown_mode_and_a_head_without_centroids_are_errors(short):
    with pytest.raises(ValueError, match="mode='sometimes'"):
        CentroidUpdate(mode="sometimes")
    with pytest.raises(ValueError, match="Supervised has no centroids"):
        short.run([CentroidUpdate()], model=short.make_model(Supervised))
