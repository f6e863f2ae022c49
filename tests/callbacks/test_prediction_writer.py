"""The table of predictions."""

import csv
import errno
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from supercm_lightning.callbacks import PredictionWriter
from supercm_lightning.data import move_batch
from supercm_lightning.methods import Supervised


def read(path):
    with path.open() as table:
        return list(csv.DictReader(table))


def expected_rows(model, data, trainer):
    trainer.predicting = True
    model.eval()
    with torch.no_grad():
        batches = [move_batch(batch, trainer, model) for batch in data.predict_dataloader()]
        return torch.cat([model(x) for x, _, _ in batches]).softmax(dim=1).max(dim=1)


def test_every_row_once_in_order_with_its_class_and_confidence(short, tmp_path, capsys):
    model, data = short.make_model(), short.make_data(eval_batch_size=64)
    data.class_names = tuple("abcdefghij")
    trainer = short.make_trainer([PredictionWriter()])
    trainer.predict(model, datamodule=data)
    rows = read(tmp_path / "predictions.csv")
    confidence, label = expected_rows(model, data, trainer)
    assert [int(row["index"]) for row in rows] == list(range(450))
    assert [row["class"] for row in rows] == [data.class_names[number] for number in label]
    assert [float(row["confidence"]) for row in rows] == pytest.approx(confidence.tolist(), abs=1e-6)
    assert f"450 predictions: {tmp_path / 'predictions.csv'}" in capsys.readouterr().out


def test_rows_are_named_by_their_files(short, tmp_path):
    class Named(type(short.make_data())):
        def describe_sample(self, part, index):
            assert part == "predict"
            return f"scans/{index:04d}, left.png"

    data = Named(dataset="digits", num_labeled=40)
    short.make_trainer([PredictionWriter("names.csv")]).predict(short.make_model(), datamodule=data)
    rows = read(tmp_path / "names.csv")
    assert list(rows[0]) == ["file", "class", "confidence"]
    assert [row["file"] for row in rows] == [f"scans/{number:04d}, left.png" for number in range(450)]


def test_the_test_writes_its_labels_beside(short, tmp_path):
    model, data = short.make_model(), short.make_data(eval_batch_size=64)
    data.class_names = tuple("abcdefghij")
    trainer = short.make_trainer([PredictionWriter()])
    (metrics,) = trainer.test(model, datamodule=data)
    rows = read(tmp_path / "test_predictions.csv")
    assert list(rows[0]) == ["index", "label", "class", "confidence"]
    assert [int(row["index"]) for row in rows] == list(range(450))
    assert [row["label"] for row in rows] == [data.class_names[y] for y in data.samples["test"].labels]
    right = sum(row["label"] == row["class"] for row in rows)
    assert right / 450 == pytest.approx(metrics["test/acc"])
    trainer.predict(model, datamodule=data)
    assert [{k: row[k] for k in row if k != "label"} for row in rows] == read(tmp_path / "predictions.csv")


def test_probabilities_of_every_class_are_written_if_asked(short, tmp_path):
    model, data = short.make_model(), short.make_data()
    data.class_names = tuple("abcdefghij")
    short.make_trainer([PredictionWriter(probabilities=True)]).predict(model, datamodule=data)
    rows = read(tmp_path / "predictions.csv")
    assert list(rows[0]) == ["index", "class", "confidence", *(f"p_{name}" for name in "abcdefghij")]
    for row in rows:
        p = {name: float(row[f"p_{name}"]) for name in "abcdefghij"}
        assert sum(p.values()) == pytest.approx(1, abs=1e-5)
        assert p[row["class"]] == max(p.values()) == float(row["confidence"])


def test_the_samples_of_several_loaders_follow_one_another(short, tmp_path):
    loaders = [DataLoader(TensorDataset(torch.randn(n, 1, 8, 8), torch.zeros(n), torch.arange(n)), 4) for n in (3, 6)]
    short.make_trainer([PredictionWriter()]).predict(short.make_model(Supervised), loaders)
    assert [int(row["index"]) for row in read(tmp_path / "predictions.csv")] == [*range(3), *range(6)]


def test_a_shuffled_loader_of_the_user_without_class_names(short, tmp_path):
    x = torch.randn(10, 1, 8, 8)
    rows = TensorDataset(x, torch.full((10,), -1), torch.arange(10))
    model = short.make_model(Supervised)
    trainer = short.make_trainer([PredictionWriter()])
    order = [7, 1, 9, 0, 3, 2, 8, 5, 4, 6]
    trainer.predict(model, DataLoader(rows, 4, sampler=order))
    table = read(tmp_path / "predictions.csv")
    assert [int(row["index"]) for row in table] == list(range(10))
    with torch.no_grad():
        assert [int(row["class"]) for row in table] == model.eval()(x).argmax(dim=1).tolist()


def test_a_loader_without_index_is_numbered(short, tmp_path):
    rows = TensorDataset(torch.randn(10, 1, 8, 8), torch.zeros(10))
    short.make_trainer([PredictionWriter()]).predict(short.make_model(Supervised), DataLoader(rows, 4))
    assert [int(row["index"]) for row in read(tmp_path / "predictions.csv")] == list(range(10))


def predict_in_one_of_two(folder):
    """Predicts 9 rows, an odd number, so that the distributed sampler repeats one."""

    from lightning.pytorch import Trainer

    from supercm_lightning.callbacks import PredictionWriter
    from supercm_lightning.methods import Supervised

    torch.manual_seed(0)
    rows = TensorDataset(torch.randn(9, 6), torch.full((9,), -1), torch.arange(9))
    model = Supervised(num_classes=3, input_shape=(6,), backbone="identity")
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        callbacks=[PredictionWriter()],
    )
    trainer.predict(model, DataLoader(rows, 2), return_predictions=False)
    with torch.no_grad():
        return model.eval()(rows.tensors[0]).argmax(dim=1).tolist()


def test_two_processes_write_one_complete_table(two_processes, tmp_path):
    labels, _ = two_processes(predict_in_one_of_two, str(tmp_path))
    table = read(tmp_path / "predictions.csv")
    assert [int(row["index"]) for row in table] == list(range(9))
    assert [int(row["class"]) for row in table] == labels


def test_a_table_in_parquet_holds_the_same(short, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    data, model = short.make_data(), short.make_model()
    data.class_names = tuple("abcdefghij")
    short.make_trainer([PredictionWriter(), PredictionWriter("table.parquet")]).predict(model, datamodule=data)
    table, rows = parquet.read_table(tmp_path / "table.parquet"), read(tmp_path / "predictions.csv")
    assert table.column_names == ["index", "class", "confidence"]
    assert table["class"].to_pylist() == [row["class"] for row in rows]
    assert table["confidence"].to_pylist() == pytest.approx([float(row["confidence"]) for row in rows], abs=1e-6)


def test_parquet_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("supercm_lightning.callbacks.evaluation.prediction_writer.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"supercm-lightning\[export\]"):
        PredictionWriter("table.parquet")


def test_a_full_disk_leaves_no_half_table_and_one_line(monkeypatch, capsys):
    from supercm_lightning.callbacks.evaluation import prediction_writer
    from supercm_lightning.cli import main

    def fill(stream, suffix, columns):
        stream.write(b"index,cla")
        raise OSError(errno.ENOSPC, "No space left on device", "predictions.csv")

    monkeypatch.setattr(prediction_writer, "write_table", fill)
    options = ["--data", "SemiSupervisedDataModule", "--data.num_labeled", "20", "--data.steps_per_epoch", "1"]
    quiet = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model", "Supervised", *options, *quiet])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: predictions.csv: No space left on device")
    assert not [path.name for path in Path().rglob("*predictions*")]
