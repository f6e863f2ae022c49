"""The seed of a run, and seeds derived from it."""

import torch
from lightning.pytorch import Callback, Trainer

from supercm_lightning.callbacks import FeatureProjection
from supercm_lightning.utils.random import generator, run_seed, seed_of


class Owner(Callback):
    run_seed = 11


def test_the_seed_of_a_run_is_that_of_its_owner_and_else_torchs():
    torch.manual_seed(5)
    options = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    # A callback with an option named seed does not own the run's seed.
    other = FeatureProjection(every_n_epochs=1, seed=3)
    assert run_seed(None) == run_seed(Trainer(callbacks=[other], **options)) == 5
    assert run_seed(Trainer(callbacks=[other, Owner()], **options)) == 11


def test_seeds_depend_on_the_whole_key_alone():
    keys = [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1)]
    assert len({seed_of(*key) for key in keys}) == 4
    torch.manual_seed(9)
    assert torch.equal(torch.rand(4, generator=generator(0, "a")), torch.rand(4, generator=generator(0, "a")))
