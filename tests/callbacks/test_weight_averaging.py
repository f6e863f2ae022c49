"""Averages of the weights: values, what is validated and saved, resuming, and the statistics that go with them."""

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from supercm_lightning.callbacks import EMA, SWA, averaged_weights
from supercm_lightning.data import move_batch
from supercm_lightning.methods import SuperCM, Supervised
from supercm_lightning.utils.options import SuperCMError

PARAMETERS = [
    *(f"backbone.{layer}.{part}" for layer in ("first", "norm1", "second", "norm2") for part in ("weight", "bias")),
    "head.linear.weight",
    "head.linear.bias",
]


STATISTICS = [
    *(f"backbone.{layer}.{part}" for layer in ("norm1", "norm2") for part in ("running_mean", "running_var")),
    "head.centroids",
]


def running_mean(states, steps):
    average = {}
    for number, step in enumerate(steps):
        for name in PARAMETERS:
            new = states[step][name]
            average[name] = torch.lerp(average[name], new, 1 / (number + 1)) if number else new.clone()
    return average


def assert_same(found, expected, names=None):
    for name in names or expected:
        assert torch.equal(found[name], expected[name]), name


def assert_close(found, expected, names=None):
    for name in names or expected:
        torch.testing.assert_close(found[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


class Stop(Callback):
    """Raises in the middle of a validation."""

    def __init__(self, step):
        self.step = step

    def on_validation_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise RuntimeError("stop")


# ------------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize(
    ("callback", "steps"),
    [
        (lambda: SWA(start=5), range(6, 13)),
        (lambda: SWA(start=0.5), range(7, 13)),
        (lambda: SWA(start=0.0), range(1, 13)),
        (lambda: SWA(start=3, every_n_steps=4), (7, 11)),
    ],
)
def test_swa_is_the_mean_of_the_weights_after_its_steps(short, plain, callback, steps):
    _, model, _ = short.run([callback()])
    assert_same(short.snapshot(model), running_mean(plain, steps))
    stacked = {name: torch.stack([plain[step][name] for step in steps]).mean(dim=0) for name in PARAMETERS}
    assert_close(short.snapshot(model), stacked)


@pytest.mark.parametrize(
    ("warmup", "decays"), [(True, (2 / 11, 3 / 12, 4 / 13)), (False, (0.8, 0.8, 0.8))], ids=["warm-up", "constant"]
)
def test_ema_follows_its_recurrence(short, plain, warmup, decays):
    _, model, _ = short.run([EMA(decay=0.8, warmup=warmup, every_n_steps=3)])
    names = [*PARAMETERS, *STATISTICS]
    average = {name: plain[3][name] for name in names}
    for step, decay in zip((6, 9, 12), decays, strict=True):
        average = {name: decay * average[name] + (1 - decay) * plain[step][name] for name in names}
    assert_close(short.snapshot(model), average)


def test_ema_forgets_the_first_weights_in_a_short_run(short, plain):
    _, model, _ = short.run([EMA()])
    share, decays = 1.0, [(1 + n) / (10 + n) for n in range(1, 12)]
    for decay in decays:
        share *= decay
    assert share < 1e-4  # without a warm-up 0.999^11, 99 %
    average = plain[1]["backbone.first.weight"]
    for step, decay in zip(range(2, 13), decays, strict=True):
        average = decay * average + (1 - decay) * plain[step]["backbone.first.weight"]
    torch.testing.assert_close(model.backbone.first.weight.detach(), average)


def test_steps_are_optimiser_steps_when_gradients_accumulate(short):
    _, model, recorder = short.run([SWA(start=2)], max_steps=4, accumulate_grad_batches=2)
    assert_close(short.snapshot(model), running_mean(recorder.trained, (3, 4)))


@pytest.mark.parametrize("callback", [lambda: SWA(start=4), lambda: EMA(decay=0.9)])
def test_training_itself_is_bit_identical_to_a_run_without(short, plain, callback):
    _, _, recorder = short.run([callback()])
    assert recorder.trained.keys() == plain.keys()
    for step, state in plain.items():
        assert_same(recorder.trained[step], state)


# ------------------------------------------------------------------------------- what is validated, kept, saved
def test_validation_sees_raw_weights_before_the_start_and_averaged_ones_after(short, plain):
    _, model, recorder = short.run([SWA(start=4)])
    assert sorted(recorder.validated) == [4, 8, 12]
    assert_same(recorder.validated[4], plain[4])
    assert_close(recorder.validated[8], running_mean(plain, range(5, 9)))
    assert_same(recorder.validated[12], short.snapshot(model))


def test_logged_accuracy_is_that_of_the_model_that_is_kept(short):
    data = short.make_data()
    trainer, model, recorder = short.run([EMA(decay=0.8)], data=data)
    right = total = 0
    with torch.no_grad():
        model.eval()
        for batch in data.val_dataloader():
            trainer.validating = True
            x, y, _ = move_batch(batch, trainer, model)
            right, total = right + int((model(x).argmax(dim=1) == y).sum()), total + len(y)
    assert recorder.metrics[12] == pytest.approx(right / total)


def test_checkpoints_hold_the_averaged_model_and_the_raw_one(short, plain, tmp_path):
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    _, model, recorder = short.run([SWA(start=4), saver], enable_checkpointing=True)
    saved = {step: torch.load(tmp_path / f"step={step}.ckpt", weights_only=True) for step in (2, 4, 6, 8, 12)}
    for step in (2, 4):
        assert "current_model_state" not in saved[step]
        assert_same(saved[step]["state_dict"], plain[step])
    for step in (6, 8, 12):
        assert_same(saved[step]["current_model_state"], plain[step])
        assert_close(saved[step]["state_dict"], running_mean(plain, range(5, step + 1)))
    assert_same(saved[8]["state_dict"], recorder.validated[8])
    assert_same(saved[12]["state_dict"], short.snapshot(model))
    loaded = SuperCM.load_from_checkpoint(tmp_path / "step=6.ckpt", backbone=short.Net())
    assert_same(short.snapshot(loaded), saved[6]["state_dict"])


def test_checkpoint_saved_by_hand_after_fit_still_holds_both(short, plain, tmp_path):
    trainer, model, _ = short.run([SWA(start=4)])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert_same(saved["current_model_state"], plain[12])
    assert_same(saved["state_dict"], short.snapshot(model))


@pytest.mark.parametrize("ckpt_path", [None, "best"])
def test_testing_after_fit_uses_the_averaged_weights(short, tmp_path, ckpt_path):
    seen = []

    class Probe(Callback):
        def on_test_batch_start(self, trainer, pl_module, *args):
            seen.append(short.snapshot(pl_module))

    saver = ModelCheckpoint(tmp_path, every_n_train_steps=12)
    trainer, model, _ = short.run([SWA(start=4), saver, Probe()], enable_checkpointing=True)
    kept = short.snapshot(model)
    trainer.test(model, datamodule=trainer.datamodule, ckpt_path=ckpt_path, verbose=False)
    assert_same(seen[0], kept)


def test_validating_after_fit_uses_the_averaged_weights(short):
    trainer, model, recorder = short.run([SWA(start=4)])
    kept = short.snapshot(model)
    trainer.validate(model, datamodule=trainer.datamodule, verbose=False)
    assert_same(recorder.validated[12], kept)
    assert_same(short.snapshot(model), kept)


def test_averaged_weights_lends_the_average_for_a_while(short, plain):
    class Probe(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            with averaged_weights(trainer, pl_module):
                self.inside = short.snapshot(pl_module)
            self.outside = short.snapshot(pl_module)

    probe = Probe()
    _, model, _ = short.run([probe, SWA(start=4)])
    assert_same(probe.inside, short.snapshot(model))
    assert_same(probe.outside, plain[12])


def test_a_broken_validation_leaves_the_raw_weights_and_an_exact_checkpoint(short, plain, tmp_path):
    saver = ModelCheckpoint(tmp_path, "broken", save_on_exception=True, every_n_train_steps=100)
    model = short.make_model()
    with pytest.raises(RuntimeError, match="stop"):
        short.run([SWA(start=4), Stop(8), saver], model=model, enable_checkpointing=True)
    assert_same(short.snapshot(model), plain[8])
    saved = torch.load(tmp_path / "broken.ckpt", weights_only=True)
    assert_same(saved["current_model_state"], plain[8])
    assert_close(saved["state_dict"], running_mean(plain, range(5, 9)))


def test_a_run_that_ends_before_averaging_keeps_its_weights_and_says_so(short, plain):
    with pytest.warns(UserWarning, match="before any weights were averaged"):
        _, model, _ = short.run([SWA(start=100)])
    assert_same(short.snapshot(model), plain[12])


# ----------------------------------------------------------------------------------------------------- resuming
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(
    "callback",
    [
        lambda: SWA(start=4, every_n_steps=2),
        lambda: EMA(decay=0.9),
        lambda: EMA(decay=0.9, refresh_batches=2),
    ],
)
@pytest.mark.parametrize("step", [2, 6, 8])
def test_resumed_run_ends_bit_identical(short, tmp_path, callback, step):
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    models = {}
    for name, path in (("whole", None), ("resumed", tmp_path / f"step={step}.ckpt")):
        trainer, _, _ = short.run(
            [callback(), *([saver] if path is None else [])],
            model=short.make_model(backbone=_without_dropout(short)),
            data=short.make_data(steps_per_epoch=2),
            ckpt_path=path,
            check_val_every_n_epoch=2,
            enable_checkpointing=path is None,
        )
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        models[name] = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
    for part in ("state_dict", "current_model_state"):
        assert_same(models["resumed"][part], models["whole"][part])


def _without_dropout(short):
    # Lightning does not save the global random state that dropout draws from.
    net = short.Net()
    net.dropout = nn.Identity()
    return net


def test_a_finished_run_that_is_extended_averages_its_own_last_part(short, tmp_path):
    data = short.make_data()
    trainer, _, _ = short.run([SWA(start=0.5)], data=data)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, model, recorder = short.run([SWA(start=0.5)], data=data, max_steps=24, ckpt_path=tmp_path / "half.ckpt")
    assert_close(short.snapshot(model), running_mean(recorder.trained, range(13, 25)))


def test_one_callback_serves_several_fits(short, plain):
    callback = SWA(start=4)
    short.run([callback])
    _, model, _ = short.run([callback])
    assert_close(short.snapshot(model), running_mean(plain, range(5, 13)))


# --------------------------------------------------------------------------------------------------- statistics
def joint_batches(data, trainer, model, count):
    trainer.training = True
    loader = CombinedLoader(data.train_dataloader(), "max_size_cycle")
    return [move_batch(batch, trainer, model) for batch, _, _ in islice(loader, count)]


def hand_moments(state, batches):
    """Mean over batches of each batch norm's input mean and unbiased variance, in a restated training forward."""
    moments = {}
    for batch in batches:
        rows = torch.cat([batch["labeled"][0], *batch["unlabeled"][0]]).flatten(1)
        for linear, norm in (("first", "norm1"), ("second", "norm2")):
            rows = F.linear(rows, state[f"backbone.{linear}.weight"], state[f"backbone.{linear}.bias"])
            mean, var = rows.mean(dim=0), rows.var(dim=0, unbiased=False)
            moments.setdefault(f"backbone.{norm}.running_mean", []).append(mean)
            moments.setdefault(f"backbone.{norm}.running_var", []).append(rows.var(dim=0))
            rows = (rows - mean) / (var + 1e-5).sqrt()
            rows = (rows * state[f"backbone.{norm}.weight"] + state[f"backbone.{norm}.bias"]).relu()
    return {name: torch.stack(values).mean(dim=0) for name, values in moments.items()}


def hand_centroids(model, batches):
    """Class means of the eval-mode features of the labelled rows."""
    with torch.no_grad():
        features = torch.cat([model.eval().features(batch["labeled"][0]) for batch in batches])
    labels = torch.cat([batch["labeled"][1] for batch in batches])
    return {"head.centroids": torch.stack([features[labels == number].mean(dim=0) for number in range(10)])}


def test_statistics_are_those_of_the_averaged_weights(short):
    data = short.make_data()
    trainer, model, _ = short.run([SWA(start=4, refresh_batches=3)], data=data)
    batches = joint_batches(data, trainer, model, 3)
    assert_close(short.snapshot(model), hand_moments(short.snapshot(model), batches))
    assert_close(short.snapshot(model), hand_centroids(model, batches))


def fit_in_one_of_two(folder):
    """A distributed run; gives the averaged model, the batches of its rank and the raw state of the checkpoint."""
    from tests.callbacks.conftest import Helpers as short

    data = short.make_data(labeled_batch_size=20)
    trainer, model, recorder = short.run(
        [SWA(start=4, refresh_batches=2)],
        data=data,
        strategy="ddp",
        devices=2,
        default_root_dir=folder,
    )
    return model, joint_batches(data, trainer, model, 2), recorder.validated[12]


def test_two_processes_hold_one_average_and_statistics_of_all_rows(short, two_processes, tmp_path):
    (first, one, validated), (second, other, _) = two_processes(fit_in_one_of_two, str(tmp_path))
    assert_same(short.snapshot(first), short.snapshot(second))
    assert not torch.equal(one[0]["labeled"][0], other[0]["labeled"][0])
    assert_same(validated, short.snapshot(first))
    assert_close(short.snapshot(first), hand_moments(short.snapshot(first), one + other))
    assert_close(short.snapshot(first), hand_centroids(first, one + other))


def test_statistics_stay_in_float32_under_autocast(short):
    data = short.make_data()
    trainer, model, _ = short.run([EMA(decay=0.5, refresh_batches=4)], data=data, precision="bf16-mixed")
    batches = joint_batches(data, trainer, model, 4)
    state = short.snapshot(model)
    for name, expected in (hand_moments(state, batches) | hand_centroids(model, batches)).items():
        assert state[name].dtype == torch.float32
        torch.testing.assert_close(state[name], expected, atol=0.1, rtol=0.1)


def test_a_class_without_rows_keeps_the_raw_centroid(short, plain):
    data = short.make_data(labeled_batch_size=2)
    trainer, model, recorder = short.run([SWA(start=4, refresh_batches=1)], data=data)
    present = set(joint_batches(data, trainer, model, 1)[0]["labeled"][1].tolist())
    absent = [number for number in range(10) if number not in present]
    assert_same(
        {"centroids": model.head.centroids[absent]}, {"centroids": recorder.trained[12]["head.centroids"][absent]}
    )
    assert not torch.equal(model.head.centroids[list(present)], recorder.trained[12]["head.centroids"][list(present)])


def test_counters_are_the_live_ones(short, plain, tmp_path):
    trainer, model, recorder = short.run([SWA(start=4)])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for state in (short.snapshot(model), saved["state_dict"], saved["current_model_state"], recorder.validated[12]):
        assert state["backbone.norm1.num_batches_tracked"] == 12
        assert torch.equal(state["head.updates"], plain[12]["head.updates"])


def test_statistics_are_estimated_once_per_average(short, tmp_path):
    data = short.make_data()
    requests = []
    original = data.train_dataloader
    data.train_dataloader = lambda: requests.append(1) or original()
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4)
    short.run([SWA(start=4), saver], data=data, enable_checkpointing=True)
    # For the run itself, and after steps 8 and 12: validation, checkpoint and the end of the run share the estimate.
    assert len(requests) == 1 + 2


@pytest.mark.filterwarnings("ignore:Found 1 module")
def test_a_layer_frozen_by_the_user_keeps_its_statistics(short):
    model = short.make_model()
    model.backbone.norm1.eval()
    model.backbone.norm1.running_mean += 0.5
    _, model, _ = short.run([SWA(start=4)], model=model)
    assert torch.equal(model.backbone.norm1.running_mean, torch.full((16,), 0.5))
    assert model.backbone.norm2.num_batches_tracked == 12


def test_a_layer_outside_the_joint_forward_keeps_its_statistics(short):
    model = short.make_model()
    model.teacher = nn.BatchNorm1d(3)
    model.teacher.running_mean += 0.5
    _, model, _ = short.run([EMA(decay=0.9, refresh_batches=2)], model=model)
    assert torch.equal(model.teacher.running_mean, torch.full((3,), 0.5))
    assert torch.equal(model.teacher.running_var, torch.ones(3))


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_passed_to_fit_are_read_again_without_disturbing_the_epoch(short, workers):
    class Loaded(Supervised):
        def joint_forward(self, batch):
            return super().joint_forward({"labeled": batch})

    generator = torch.Generator().manual_seed(0)
    rows = TensorDataset(torch.randn(48, 1, 8, 8, generator=generator), torch.arange(48) % 10)
    batches = {}
    for name, callbacks in (("plain", []), ("averaged", [SWA(start=0, refresh_batches=2)])):
        seed_everything(3, verbose=False)
        model, recorder = short.make_model(Loaded), short.Recorder()
        training = DataLoader(rows, 8, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        trainer = short.make_trainer([recorder, *callbacks], max_steps=9, val_check_interval=2, log_every_n_steps=1)
        trainer.fit(model, training, DataLoader(rows, 16))
        batches[name] = recorder, model
    plain, averaged = batches["plain"][0], batches["averaged"][0]
    for step, state in plain.trained.items():
        assert_same(averaged.trained[step], state)
    average, raw = batches["averaged"][1].backbone.norm1, plain.trained[9]["backbone.norm1.running_mean"]
    assert not torch.allclose(average.running_mean, raw)


# ------------------------------------------------------------------------------------------------ learning rate
def test_swa_holds_the_learning_rate_in_proportion(short):
    options = {"lr": 0.1, "lr_schedule": "cosine", "backbone_lr_scale": 0.5}
    _, _, plain = short.run(model=short.make_model(**options))
    _, _, held = short.run([SWA(start=4, lr=0.03)], model=short.make_model(**options))
    for step in range(1, 13):
        expected = plain.rates[step] if step <= 4 else [0.015, 0.03]
        assert held.rates[step] == pytest.approx(expected), step


# ------------------------------------------------------------------------------------------------------- errors
def test_setups_that_would_go_wrong_are_refused(short):
    for arguments, message in (
        ({"start": 1.5}, "start=1.5"),
        ({"start": -1}, "start=-1"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"every_n_steps": 0}, "every_n_steps=0"),
        ({"refresh_batches": 0}, "refresh_batches=0"),
    ):
        with pytest.raises(ValueError, match=message):
            SWA(**arguments)
    with pytest.raises(ValueError, match=r"decay=1\.0"):
        EMA(decay=1.0)
    with pytest.raises(ValueError, match="more than one weight averaging"):
        short.run([SWA(), EMA()])
    with pytest.raises(ValueError, match="more than one weight averaging"):
        short.run([SWA(), WeightAveraging()])
    with pytest.raises(ValueError, match="save_weights_only"):
        short.run([SWA(), ModelCheckpoint(save_weights_only=True)], enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs or max_steps"):
        short.run([SWA()], max_steps=-1, max_epochs=-1)


def test_sharded_strategies_are_refused(short):
    class Sharded:
        strategy = FSDPStrategy.__new__(FSDPStrategy)

    with pytest.raises(SuperCMError, match="strategy"):
        SWA().setup(Sharded(), short.make_model(), "fit")
