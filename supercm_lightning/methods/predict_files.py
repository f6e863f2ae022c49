"""The command `supercm predict --run`: a table of predictions of files, by a trained model alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from supercm_lightning.callbacks.evaluation.prediction_writer import cluster_columns, has_clusters, write_table
from supercm_lightning.data.sources.folder import images_under
from supercm_lightning.data.sources.npz import load_npz
from supercm_lightning.methods.prediction import Prediction, load_model
from supercm_lightning.utils.checkpoints import checkpoint_of
from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.options import MissingFileError, SuperCMError
from supercm_lightning.utils.parser import CommandParser


def predict_files(
    run: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path = "predictions.csv",
    top_k: int = 1,
    probabilities: bool = False,
    weights: str | Path | None = None,
    model: str | None = None,
    names: str | Path | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
) -> Path:
    """Predicts images or features without the data of the training, and writes a table.

    The table has a line for each image or row of features: `file`, `class` and `confidence`, then `class_2`,
    `confidence_2` and so on. A method without labels gives `cluster` in place of `class`.

    Args:
        run: Folder of a run, whose best checkpoint is taken, a checkpoint, or a pretrained model, `hf://OWNER/NAME`.
        inputs: Image files, folders of images, at any depth, or `.npz` files with `features`.
        output: File to write: CSV, or Parquet if its name ends so.
        top_k: Number of classes for each sample.
        probabilities: Adds a column `p_<class>` for every class.
        weights: For images and a model that reads features: file of weights of the network that gave them.
        model: Name or path of the method's class; None: that of the checkpoint.
        names: Table with the columns `file` and `class`, some of the files, which name the clusters in a column
            `class`; prints which clusters have no name, and which classes are split.
        on_bad_image: For an image file that cannot be read: `error`, or `skip`, which leaves it out and names it.

    Returns:
        The table.

    Raises:
        MissingFileError: If a file is missing.
        SuperCMError: If a file or the checkpoint cannot be read.
    """
    predictor, found, images = load_model(run, model), list[Prediction](), list[str]()
    clusters = has_clusters(predictor)
    if names is not None and not clusters:
        raise SuperCMError("names: name clusters; this method predicts classes, which have names.")
    for given in map(Path, inputs):
        if given.suffix == ".npz":
            found += _of_features(predictor, given, top_k)
        elif given.is_dir():
            images += map(str, images_under(given))
        elif given.is_file():
            images.append(str(given))
        else:
            raise MissingFileError(f"{given}: no such file or folder.")
    found += predictor.predict_images(images, top_k, weights=weights, on_bad_image=on_bad_image)
    if not found:
        raise SuperCMError(f"no images in {', '.join(map(str, inputs))}.")
    columns: dict[str, list[Any]] = {"file": [one.file for one in found]}
    for place in range(top_k):
        suffix = f"_{place + 1}" if place else ""
        kind = "cluster" if clusters and place else "class"  # cluster_columns renames the first
        columns[f"{kind}{suffix}"] = [one.classes[place] for one in found]
        columns[f"confidence{suffix}"] = [one.confidences[place] for one in found]
    if probabilities:
        classes = predictor.preparation.class_names or range(predictor.num_classes)
        columns |= {f"p_{name}": [float(one.probabilities[k]) for one in found] for k, name in enumerate(classes)}
    if clusters:
        columns = cluster_columns(columns, predictor, names)
    output = Path(output).expanduser()
    write_atomically(output, lambda stream: write_table(stream, output.suffix, columns))
    print(f"{len(found):,} predictions: {output}")
    return output


def _of_features(predictor: Any, file: Path, top_k: int) -> list[Prediction]:
    if not file.is_file():
        raise MissingFileError(f"{file}: no such file.")
    content, _ = load_npz(file, {"features", "files", "backbone", "weights"})
    known = predictor.preparation.extractor
    for name in ("backbone", "weights"):
        if name in content and str(content[name]) != known.get(name, str(content[name])):
            raise SuperCMError(f"{file}: features of {name} {content[name]}; the model was trained on {known[name]}.")
    if "features" not in content:
        raise SuperCMError(f"{file}: holds no features.")
    files = [str(name) for name in content["files"]] if "files" in content else None
    return list(predictor.predict_features(np.asarray(content["features"]), top_k, files=files))


def main(args: Sequence[str]) -> list[str]:
    """Reads the arguments of `supercm predict --run`, without the command's name.

    Returns:
        Without inputs, arguments of `supercm predict` on the run's unlabeled samples; else an empty list: all is done.
    """
    parser = CommandParser(prog="supercm predict", description="Predictions of files by a trained model alone.")
    parser.add_argument(
        "inputs",
        nargs="*",
        help="image files, folders of images, .npz files of features; none: the run's unlabeled ones",
    )
    parser.add_function_arguments(predict_files, skip={"inputs"}, as_positional=False)
    given = vars(parser.instantiate_classes(parser.parse_args(list(args))))
    if given["inputs"]:
        predict_files(**given)
        return []
    config, output = Path(given["run"]).expanduser() / "config.yaml", Path(given["output"]).expanduser().absolute()
    if not config.is_file():
        raise SuperCMError(f"run={given['run']}: no config.yaml in it that names the data; give images or features.")
    writer = {"filename": str(output), "probabilities": str(given["probabilities"]).lower()}
    writer |= {"names": str(given["names"])} if given["names"] else {}
    skipping = ["--data.on_bad_image", "skip"] if given["on_bad_image"] == "skip" else []
    return [
        *("predict", "--config", str(config), "--ckpt_path", str(checkpoint_of(given["run"]))),
        *("--trainer.default_root_dir", str(output.parent)),
        *("--data.predict_on", "unlabeled", "--trainer.logger", "false", "--trainer.callbacks+=PredictionWriter"),
        *skipping,
        *(f"--trainer.callbacks.{name}={value}" for name, value in writer.items()),
    ]
