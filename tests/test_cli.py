"""The command line, in process and as a console script."""

import csv
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import supercm_lightning
from supercm_lightning import SuperCM, Supervised, methods
from supercm_lightning.cli import main, run
from supercm_lightning.data import ViewDataModule
from supercm_lightning.tools import bench, export, features, tune
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.overview import answer

DIGITS = ["--data", "SemiSupervisedDataModule", "--data.num_labeled", "20", "--data.steps_per_epoch", "3"]
QUICK = [
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1"),
]

LOCAL_METHOD = '''
from typing import Any
from supercm_lightning import SuperCM

class Mine(SuperCM):
    """SuperCM with a term of my own.

    Args:
        mine_weight: Weight of my term.
        **kwargs: Options of SuperCM.
    """

    def __init__(self, mine_weight: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mine_weight = mine_weight

    def losses(self, step):
        return super().losses(step) | {"mine": self.mine_weight * step.features.square().mean()}
'''


def test_fit_by_short_names_logs_tests_and_summarises() -> None:
    cli = run(["fit", "--model", "SuperCM", "--model.beta", "0.5", *DIGITS, *QUICK])
    assert isinstance(cli.model, SuperCM)
    assert cli.model.hparams.beta == 0.5
    assert cli.model.num_classes == 10
    assert cli.model.input_shape == (1, 8, 8)
    folder = Path("lightning_logs/version_0")
    assert "test/acc" in cli.trainer.callback_metrics
    assert (folder / "config.yaml").exists()
    assert list(folder.glob("events.out.tfevents.*"))
    with (folder / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"train/loss", "train/ce", "train/cm", "val/acc", "test/acc"} <= set(columns)
    assert json.loads((folder / "summary.json").read_text())["metrics"]["test/acc"] == pytest.approx(
        float(cli.trainer.callback_metrics["test/acc"])
    )


def test_test_after_fit_can_be_left_out() -> None:
    cli = run(["fit", "--model", "Supervised", *DIGITS, *QUICK, "--trainer.limit_test_batches", "0"])
    assert "test/acc" not in cli.trainer.callback_metrics


def test_test_and_predict_from_a_checkpoint() -> None:
    cli = run(["fit", "--model", "SuperCM", "--model.lr", "0.005", *DIGITS, *QUICK])
    checkpoint = next(Path("lightning_logs/version_0/checkpoints").glob("*.ckpt"))
    again = run(["test", "--model", "SuperCM", *DIGITS, *QUICK, "--ckpt_path", str(checkpoint)])
    assert again.model.hparams.lr == 0.005
    for key in ("test/acc", "test/loss"):
        assert float(again.trainer.callback_metrics[key]) == float(cli.trainer.callback_metrics[key])
    run(["predict", "--model", "SuperCM", *DIGITS, *QUICK, "--ckpt_path", str(checkpoint)])
    (written,) = Path("lightning_logs").rglob("predictions.csv")
    with written.open() as file:
        rows = list(csv.DictReader(file))
    data = again.datamodule.samples["test"]
    assert [int(row["index"]) for row in rows] == list(range(450))
    right = torch.tensor([int(row["class"]) for row in rows]) == data.labels
    assert right.float().mean().item() == pytest.approx(float(cli.trainer.callback_metrics["test/acc"]))
    assert all(0.1 <= float(row["confidence"]) <= 1 for row in rows)


@pytest.mark.parametrize("command", ["test", "predict", "validate"])
def test_untrained_weights_are_not_evaluated(command: str) -> None:
    with pytest.raises(ValueError, match=f"{command} without one takes untrained weights. Give --ckpt_path FILE"):
        run([command, "--model", "SuperCM", *DIGITS, *QUICK])
    assert not Path("lightning_logs").exists()


def test_checkpoint_of_the_command_line_loads_from_python() -> None:
    cli = run(["fit", "--model", "SuperCM", "--model.beta", "0.7", *DIGITS, *QUICK])
    checkpoint = next(Path("lightning_logs/version_0/checkpoints").glob("*.ckpt"))
    loaded = SuperCM.load_from_checkpoint(checkpoint, weights_only=True)
    assert (loaded.hparams.beta, loaded.num_classes, loaded.input_shape) == (0.7, 10, (1, 8, 8))
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded.eval()(x), cli.model.eval()(x))


def test_print_config_is_a_config_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(["fit", "--model", "SuperCM", *DIGITS, *QUICK, "--print_config"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    default = SuperCM(num_classes=2, input_shape=(1, 8, 8)).hparams.beta
    assert yaml.safe_load(text)["model"]["init_args"]["beta"] == default
    Path("mine.yaml").write_text(text)
    cli = run(["fit", "--config", "mine.yaml", "--trainer.fast_dev_run", "true"])
    assert cli.trainer.global_step == 1


def test_a_method_in_the_current_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(Path.cwd()))])
    Path("my_methods.py").write_text(LOCAL_METHOD)
    main(["fit", "--model", "my_methods.Mine", "--model.mine_weight", "0.3", *DIGITS, *QUICK])
    monkeypatch.delitem(sys.modules, "my_methods")
    with Path("lightning_logs/version_0/config.yaml").open() as file:
        assert yaml.safe_load(file)["model"]["init_args"]["mine_weight"] == 0.3
    assert "train/mine" in Path("lightning_logs/version_0/metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("entry", [["supercm"], ["python", "-m", "supercm_lightning"]])
def test_a_local_method_runs_from_both_entries(entry: list[str]) -> None:
    Path("my_methods.py").write_text(LOCAL_METHOD)
    entry = [str(Path(sys.executable).parent / entry[0]), *entry[1:]]
    options = ["--model", "my_methods.Mine", "--model.mine_weight", "0.3", *DIGITS, *QUICK]
    done = subprocess.run([*entry, "fit", *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with Path("lightning_logs/version_0/config.yaml").open() as file:
        assert yaml.safe_load(file)["model"]["init_args"]["mine_weight"] == 0.3
    checkpoint = next(Path("lightning_logs/version_0/checkpoints").glob("*.ckpt"))
    tested = subprocess.run(
        [*entry, "test", *options[:2], *DIGITS, *QUICK, "--ckpt_path", str(checkpoint)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stderr
    assert "test/acc" in tested.stdout


@pytest.mark.parametrize(
    ("options", "name", "meant"),
    [
        (["--model", "SuperCM", "--model.bta", "1"], "model.bta", "beta"),
        (["--config", "typo.yaml"], "model.bta", "beta"),
        (["--model", "SuperCM", "--model.beta", "much"], "model.beta=much", "float"),
        (["--model", "SuperDM"], "SuperDM", "SuperCM"),
        (["--model", "SuperCM", "--data.num_labelled", "20"], "data.num_labelled", "num_labeled"),
        (["--model", "SuperCM", "--trainer.max_epoch", "1"], "trainer.max_epoch", "trainer.max_epochs"),
        (["--model", "SuperCM", "--trainer.max_epochs", "many"], "trainer.max_epochs=many", "int"),
        (["--model", "SuperCM", "--trainer.callbacks+=EMA", "--trainer.callbacks.dekay", "1"], "dekay", "decay"),
        (["--model", "SuperCM", "--seed", "1"], "seed", "seed_everything"),
        ([], "model", "must be given"),
        (["--model.beta", "1"], "model.beta", "--model NAME"),
        (["--model", "SuperCM", "--data", "SemiSupervised"], "SemiSupervised", "SemiSupervisedDataModule"),
        (["--config", "none.yaml"], "not exist", "none.yaml"),
    ],
)
def test_a_wrong_option_is_one_line_with_what_was_meant(
    options: list[str], name: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("typo.yaml").write_text("model: {class_path: SuperCM, init_args: {bta: 1}}")
    with pytest.raises(SystemExit) as stop:
        main(["fit", *DIGITS, *QUICK, *options])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert name in line
    assert meant in line.split(name, 1)[1]


@pytest.mark.parametrize(
    ("tool", "options", "named"),
    [
        (bench.main, ["grid.yaml", "--sedes", "3"], "sedes; did you mean seeds?"),
        (bench.main, [], "grid: must be given; supercm-bench --help"),
        (tune.main, ["--serch", "x"], "serch; did you mean search?"),
        (export.main, ["--formt", "onnx"], "formt; did you mean format?"),
        (features.main, ["--rot", "x"], "rot; did you mean root?"),
    ],
)
def test_a_wrong_option_of_a_tool_is_one_line(
    tool: Callable[[list[str]], None], options: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        tool(options)
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_what_lightning_cannot_do_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("devices", "2x"), ("precision", "16-true")):
        with pytest.raises(SystemExit, match="2"):
            main(["fit", "--model", "SuperCM", *DIGITS, *QUICK, f"--trainer.{option}", value])
        assert re.search(rf"^error: trainer.*{option}", capsys.readouterr().err, re.M)
    assert not Path("lightning_logs").exists()


def test_help_of_a_method_and_of_data_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    for section, name, option in (("model", "SuperCM", "beta"), ("data", "DomainAdaptationDataModule", "source")):
        with pytest.raises(SystemExit) as stop:
            main(["fit", f"--{section}.help", name])
        assert stop.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) < 80
        assert any(line.strip().startswith(f"--{section}.{option}") for line in lines)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model.help", "SuperCn"])
    assert stop.value.code == 2
    assert "did you mean SuperCM?" in capsys.readouterr().err


def test_help_lists_every_method_and_data_module_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    first = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    kinds = {name: getattr(supercm_lightning, name) for name in supercm_lightning.__all__}
    bases = (methods.Method, ViewDataModule)
    wanted = {name for name, it in kinds.items() if isinstance(it, type) and issubclass(it, bases)} - {"Method"}
    assert first == wanted


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_does_not_wait_for_torch(option: str) -> None:
    code = f"import sys; sys.argv[1:] = ['{option}']; from supercm_lightning.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("f", "fit"), ("fit --model SuperCMFi", "SuperCMFixMatch"), ("fit --config ssl/usps/", "ssl/usps/"),
     ("fit --model.bet", "--model.beta"), ("fit --trainer.max_e", "--trainer.max_epochs")],
)  # fmt: skip
def test_bash_completes_names(typed: str, expected: str) -> None:
    script = f"""{answer(["completion"])}
    COMP_WORDS=(supercm {typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _supercm; echo "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(expected)


def test_a_command_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fitt", "--model", "SuperCM"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean fit?" in line


def test_a_package_that_is_missing_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.loggers import WandbLogger

    def missing(self: WandbLogger, *args: object, **kwargs: object) -> None:
        raise ModuleNotFoundError("Requirement 'wandb' not met.\nHINT: pip install wandb")

    monkeypatch.setattr(WandbLogger, "__init__", missing)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model", "SuperCM", *DIGITS, *QUICK, "--trainer.logger", "WandbLogger"])
    assert stop.value.code == 2
    assert "pip install wandb" in capsys.readouterr().err.splitlines()[-1]


def test_a_training_without_an_end_is_refused() -> None:
    with pytest.raises(SuperCMError, match=r"trainer\.max_epochs"):
        run(["fit", "--model", "SuperCM", *DIGITS, *QUICK[2:]])


def test_results_have_four_decimals_and_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    run(["fit", "--model", "SuperCM", *DIGITS, *QUICK])
    printed = capsys.readouterr()
    (line,) = re.findall(r"test/acc .*", printed.out)
    assert re.fullmatch(r"test/acc +0\.\d{4} \(95 % interval 0\.\d{4} to 0\.\d{4}\)", line)
    assert "Tip" not in printed.err
    assert "FLOPs" not in printed.out


def test_without_arguments_there_is_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 12
    (example,) = re.findall(r"supercm (fit --model .*)", text)
    assert run([*example.split(), *QUICK, "--trainer.fast_dev_run", "true"]).trainer.global_step == 1


def test_run_leaves_path_and_warnings_of_the_process_alone() -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = list(sys.path), list(warnings.filters), list(logger.filters)
    run(["fit", "--model", "Supervised", *DIGITS, *QUICK, "--trainer.fast_dev_run", "true"])
    assert (sys.path, warnings.filters, logger.filters) == before


@pytest.mark.slow
def test_names_of_classes_are_written_in_any_locale() -> None:
    for name, shade in (("Käse", 9), ("花", 200)):
        Path("images", name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (8, 8), (shade, number, 0)).save(f"images/{name}/{number}.png")
    data = ["--data", "SemiSupervisedDataModule", "--data.dataset", "folder", "--data.root", "images"]
    sizes = ["--data.num_labeled", "4", "--data.num_val", "2", "--data.num_test", "2"]
    command = [sys.executable, "-m", "supercm_lightning", "fit", "--model", "Supervised", *data, *sizes, *QUICK]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, env=os.environ | locale, capture_output=True)
    assert done.returncode == 0, done.stderr
    (table,) = Path().rglob("test_predictions.csv")
    labels = {row["label"] for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines())}
    assert labels <= {r"K\udcc3\udca4se", r"\udce8\udc8a\udcb1"}  # the bytes of which ASCII has no letters


def test_options_of_all_bases_are_listed_with_their_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["fit", "--model.help", "SuperCM"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Weight of the clustering loss" in text
    assert "Learning rate, > 0" in text


def test_bad_data_stops_before_training() -> None:
    with pytest.raises(ValueError, match="num_labeled=5: fewer labels than the 10 classes"):
        run(["fit", "--model", "Supervised", *DIGITS, *QUICK, "--data.num_labeled", "5"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.num_labeled", "5"], "num_labeled=5: fewer labels than the 10 classes."),
        (["--model.lr", "-1"], "lr=-1.0"),
        (["--trainer.callbacks", "EMA", "--trainer.callbacks.decay", "7"], "decay=7.0"),
        (["--data.dataset", "folder", "--data.root", "nowhere"], "dataset=folder: root=nowhere is not a folder"),
    ],
)
def test_what_a_constructor_refuses_is_all_that_is_printed(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model", "SuperCM", *DIGITS, *QUICK, *options])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1].startswith(f"error: {message}")
    assert not {"Traceback", "Namespace"} & set(re.findall(r"\w+", printed))


def pictures(broken: str = "") -> list[str]:
    """Options for a folder of small images, one of which may be broken."""
    for number in range(40):
        file = Path(f"images/{'ab'[number % 2]}/{number:02}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    if broken:
        Path("images", broken).write_bytes(b"no image")
    return [
        *("--data", "SemiSupervisedDataModule", "--data.dataset", "folder", "--data.root", "images"),
        *("--data.num_labeled", "4", "--data.num_val", "4", "--data.num_test", "4"),
    ]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize(
    "reading", [["--data.in_memory", "true"], ["--data.in_memory", "false", "--data.num_workers", "1"]]
)
def test_an_unreadable_image_is_one_line_during_setup_and_during_fit(
    reading: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "Supervised", "--trainer.max_epochs", "9", *QUICK[2:]]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *options, *pictures("a/20.png"), *reading])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert "20.png" in printed.splitlines()[-1]
    assert printed.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in printed


def test_predicting_with_classes_of_other_names_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures()
    run(["fit", "--model", "Supervised", *data, *QUICK])
    (checkpoint,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    Path("images/b").rename("images/c")
    with pytest.raises(SystemExit) as stop:
        main(["test", "--model", "Supervised", *data, *QUICK, "--ckpt_path", str(checkpoint)])
    assert stop.value.code == 2
    assert "classes" in capsys.readouterr().err.splitlines()[-1]


def test_an_error_of_ones_own_constructor_keeps_its_traceback() -> None:
    init = "    def __init__(self, **kwargs):\n        super().__init__(**kwargs)\n        int('a')\n"
    Path("buggy.py").write_text(f"from supercm_lightning import SuperCM\n\nclass Buggy(SuperCM):\n{init}")
    with pytest.raises(ValueError, match="invalid literal"):
        main(["fit", "--model", "buggy.Buggy", *DIGITS, *QUICK])


def test_supervised_trains_from_the_command_line_with_sgd() -> None:
    cli = run(["fit", "--model", "Supervised", "--model.optimizer", "sgd", "--model.lr", "0.1", *DIGITS, *QUICK])
    assert isinstance(cli.model, Supervised)
    assert isinstance(cli.trainer.optimizers[0], torch.optim.SGD)
