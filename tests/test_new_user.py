"""What a stranger types, in processes of its own, and how the commands answer."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
SHORT = "--data.steps_per_epoch 5 --trainer.max_epochs 1 --trainer.accelerator cpu"
FOLDER = "--model SuperCM --data SemiSupervisedDataModule --data.dataset folder"
PHOTOGRAPHS = f"{FOLDER} --data.root photographs --data.image_size 16"
DIGITS = "--model SuperCM --data SemiSupervisedDataModule --data.num_labeled 20"
PIPELINE = """
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from supercm_lightning.estimators import SuperCMClassifier
X, y = load_digits(return_X_y=True)
hidden = y.copy()
hidden[50:1400] = -1
pipeline = make_pipeline(StandardScaler(), SuperCMClassifier(max_steps=20))
print(f"right: {pipeline.fit(X[:1400], hidden[:1400]).score(X[1400:], y[1400:]):.2f}")
"""


def typed(line: str, folder: Path | None = None) -> tuple[int, str]:
    """Status and output of a command."""
    name, *arguments = shlex.split(line)
    module = {"supercm": "cli", "supercm-bench": "tools.bench", "supercm-export": "tools.export"}.get(name)
    start = ["-c", f"from supercm_lightning.{module} import main; main()"] if module else []
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *start, *arguments], cwd=folder, env=environment, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout


def works(line: str, folder: Path | None = None) -> str:
    """Output of a command that succeeds."""
    status, output = typed(line, folder)
    assert status == 0, output
    assert not re.search(r"Traceback|Tip: |FLOPs|DataLoader 0 |\d\.\d{9}", re.sub(r"(?m)^.*it/s.*$", "", output))
    return output


def draw(tree: str, first: int = 0, inverted: bool = False) -> None:
    """Fifteen images of each of three digits, as files of a tree like `labeled/{name}/{number}.png`."""
    digits, classes = load_digits(return_X_y=True)
    for k, name in enumerate(("zero", "one", "two")):
        for number, pixels in enumerate(digits[classes == k][first : first + 15]):
            file = Path(tree.format(name=name, number=f"{name}{number}"))
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = pixels.reshape(8, 8) * 15
            Image.fromarray((255 - pixels if inverted else pixels).astype("uint8")).resize((20, 20)).save(file)


def test_photographs_to_a_table_without_the_training_images() -> None:
    for first, part in ((0, "labeled/{name}"), (15, "unlabeled"), (30, "test/{name}")):
        draw(f"photographs/{part}/{{number}}.png", first)
    output = works(f"supercm fit {PHOTOGRAPHS} {SHORT}")
    assert re.search(r"SuperCM on folder: [\d,]+ parameters", output)
    assert re.search(r"test/acc +0\.\d{4} \(95 % interval", output)
    (run,) = re.findall(r"The run's folder is (.*)", output)
    draw("new/{number}.png")
    Path("photographs").rename("moved")
    Path("elsewhere").mkdir()
    works(f"supercm predict --run {run} {Path('new').resolve()}", Path("elsewhere"))
    with Path("elsewhere/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 45
    assert {row["class"] for row in rows} <= {"zero", "one", "two"}
    assert Path(works(f"supercm-bench report {run}").strip()).is_file()
    Path("new/broken.png").write_bytes(b"no image")
    assert "new/broken.png" in works(f"supercm predict --run {run} new --on_bad_image skip")
    works(f"python -c \"from supercm_lightning import SuperCM; SuperCM.load('{run}').save_pretrained('mine')\"")
    works("supercm predict --run mine new/zero0.png")


def test_a_config_of_the_package_is_found_copied_and_run_with_another_logger() -> None:
    (line,) = works("supercm configs digits softmatch cpu supercm").splitlines()
    name = line.split()[0]
    assert works(f"supercm configs copy {name} mine.yaml").endswith("supercm fit --config mine.yaml\n")
    balance = "--model.class_weight balanced --data.balanced_batches false --trainer.logger csv"
    assert "test/acc" in works(f"supercm fit --config mine.yaml {balance} {SHORT}")
    assert not list(Path("lightning_logs/version_0").glob("events*"))


def test_two_domains_name_source_and_target() -> None:
    draw("cameras/day/{name}/{number}.png")
    draw("cameras/night/{name}/{number}.png", inverted=True)
    data = "--data DomainAdaptationDataModule --data.dataset folder --data.root cameras --data.image_size 16"
    output = works(f"supercm fit --model SuperCMDANN {data} --data.source day --data.target night {SHORT}")
    assert "SuperCMDANN on folder, day → night" in output
    assert re.search(r"^target test/acc ", output, re.M)


def test_clusters_to_a_table() -> None:
    draw("heap/{number}.png")
    data = (
        "--data ClusteringDataModule --data.dataset folder --data.root heap --data.num_classes 3 --data.image_size 16"
    )
    (run,) = re.findall(
        r"The run's folder is (.*)", works(f"supercm fit --model ASDFixMatch {data} {SHORT} --data.image_size 16")
    )
    works(f"supercm predict --run {run} heap")
    assert Path("predictions.csv").read_text().count("\n") == 46


def test_quickstart_and_an_estimator_in_a_pipeline() -> None:
    output = works(f"supercm fit --config {REPOSITORY}/configs/quickstart.yaml --trainer.max_epochs 1")
    assert re.search(r"test/acc +0\.\d{4}", output)
    Path("pipeline.py").write_text(PIPELINE)
    assert "right: 0." in works("python pipeline.py")


@pytest.mark.parametrize(
    ("line", "named", "remedy"),
    [
        (f"supercm fit {DIGITS} --model.bta 1", "model.bta", "beta"),
        ("supercm fit --model SuperCn --data SemiSupervisedDataModule", "SuperCn", "SuperCM"),
        ("supercm fot", "fot", "fit"),
        (f"supercm fit {DIGITS}", "trainer.max_epochs", "give it"),
        (f"supercm fit {DIGITS} {SHORT} --data.dataset mnist", "mnist", "download"),
        (f"supercm fit {PHOTOGRAPHS} {SHORT}", "photographs", "labeled/<class>"),
        (f"supercm fit {FOLDER} --data.root broken --data.image_size 16 {SHORT}", "zero3.png", "on_bad_image"),
        (f"supercm fit {DIGITS.replace('20', 'null')} {SHORT}", "unlabeled set is empty", "num_labeled"),
        (f"supercm fit {DIGITS} {SHORT} --model.backbone_checkpoint none.pt", "none.pt", "no such file"),
        (f"supercm fit {DIGITS} {SHORT} --model.lr 1e30", "train/ce", "Lower lr"),
        (f"supercm fit {DIGITS} {SHORT} --trainer.logger CometLogger", "comet", "pip install"),
        (
            f"supercm fit {DIGITS} {SHORT} --model.backbone resnet18 --model.backbone_options '{{pretrained: true}}'",
            "resnet18",
            "backbone_checkpoint",
        ),
        (f"supercm fit {DIGITS} {SHORT} --trainer.logger wandbb", "wandbb", "wandb"),
        (f"supercm fit {DIGITS} {SHORT} --model.class_weight equal", "class_weight", "balanced"),
        (
            f"supercm fit --model ASD --data ClusteringDataModule {SHORT} --model.logit_adjustment 1",
            "ASD",
            "Leave it out",
        ),
        ("supercm configs nothing", "nothing", "supercm configs"),
        ("supercm configs copy nothing", "nothing", "supercm configs"),
        ("supercm predict --run nowhere photo.jpg", "nowhere", "no such file"),
        ("supercm-bench report .", "run=.", "supercm fit"),
        ("supercm-export --ckpt nowhere", "ckpt", "ckpt_path"),
    ],
)
def test_a_mistake_is_answered_in_a_line_and_leaves_no_folder(line: str, named: str, remedy: str) -> None:
    draw("broken/labeled/{name}/{number}.png")
    draw("broken/unlabeled/{number}.png", first=15)
    Path("broken/unlabeled/zero3.png").write_bytes(b"no image")
    status, output = typed(line)
    assert status == 2, output
    assert "Traceback" not in output
    assert len(output.splitlines()) <= 25
    (error,) = re.findall(r"^error: .*", output, re.M)
    assert named in error
    assert remedy in error.split(named, 1)[1]
    assert "1e30" in line or not Path("lightning_logs").exists()
