"""The command `supercm-export`: a trained model as a file that other programs run."""

import importlib.metadata
import json
import os
import pkgutil
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from supercm_lightning.methods import Method
from supercm_lightning.tools.arguments import check_installed, errors_in_one_line
from supercm_lightning.utils.checkpoints import check_classes, local_file, read_checkpoint
from supercm_lightning.utils.options import SuperCMError

_SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}


def export_model(
    ckpt_path: Path,
    output: Path | None = None,
    format: Literal["onnx", "torch_export"] = "onnx",
    model: str | None = None,
) -> Path:
    """Writes the classifier of a checkpoint as ONNX, or as a program of torch.export, and compares it with the model.

    The file takes `input` (n, *input_shape), preprocessed as in the training, for any n from 1 on, and gives `logits`
    (n, K). Its metadata hold, as JSON, `class_names`, `preprocessing` (`mean` and `std`: images are (pixels / 255 −
    mean) / std), `input_shape`, `method` and `version` of this package: `metadata_props` of ONNX, `metadata.json` among
    the extra files of torch.export. A run that averaged its weights gives the averaged ones.

    Args:
        ckpt_path: The checkpoint.
        output: File to write; None: beside the checkpoint, under its name.
        format: `onnx` (needs the extra `export`), which onnxruntime and many others run, or `torch_export`.
        model: Name of a method of this package or path of a class, such as `my_methods.Mine`; None: the class that the
            checkpoint names, if it is of this package.

    Returns:
        The file.

    Raises:
        MissingFileError: If there is no such checkpoint.
        ModuleNotFoundError: If a package of the extra is missing.
        SuperCMError: If the checkpoint cannot be read or its class is unknown.
        RuntimeError: If the written file does not give the model's logits; it is deleted.
    """
    if format == "onnx":
        check_installed("export", "onnx", "onnxscript", "onnxruntime")
    ckpt_path = local_file(ckpt_path)
    output = output.expanduser() if output is not None else ckpt_path.with_suffix(_SUFFIXES[format])
    if output.is_dir() or output.resolve() == ckpt_path.resolve():
        problem = "is a folder" if output.is_dir() else "is the checkpoint itself, which would be lost"
        raise SuperCMError(f"output={output}: {problem}. Give the name of a new file.")
    method, metadata = load_method(ckpt_path, model)
    write, run = (_write_onnx, _run_onnx) if format == "onnx" else (_write_program, _run_program)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent, prefix=".export-") as folder:
            written = Path(folder, output.name)
            write(_Logits(method).eval(), torch.zeros(2, *method.input_shape), written, metadata)
            worst = max(_difference(method, run, written, n) for n in (1, 5))
            for file in sorted(Path(folder).iterdir(), reverse=True):  # large weights lie in a file beside
                file.replace(output.with_name(file.name))
    except OSError as error:
        raise SuperCMError(f"output={output}: cannot be written ({error.strerror or error}).") from error
    print(f"{type(method).__name__}, largest relative difference to torch {worst:.1e}: {output}")
    return output


def _difference(method: Method, run: Callable[[Path, Tensor], Tensor], file: Path, n: int) -> float:
    """Largest difference of the file's logits from the model's, relative to the largest; on `n` samples."""
    x = torch.randn(n, *method.input_shape, generator=torch.Generator().manual_seed(n))
    with torch.no_grad():
        expected = method(x)
        difference = float((run(file, x) - expected).abs().max() / expected.abs().max().clamp_min(1.0))
    if not difference < 1e-3:  # NaN neither
        raise RuntimeError(
            f"{file.name}: the exported logits differ from the model's by {difference:.1e} of the largest."
        )
    return difference


def load_method(ckpt_path: Path, model: str | None = None) -> tuple[Method, dict[str, Any]]:
    """Loads the method of a checkpoint for evaluation, with its metadata.

    Args:
        ckpt_path: The checkpoint.
        model: As in `export_model`.

    Returns:
        The method, and its class names, preprocessing, input shape, name and version.

    Raises:
        SuperCMError: As in `export_model`.
    """
    checkpoint = read_checkpoint(ckpt_path)
    options = checkpoint.get("hyper_parameters", {})
    own = _class(model) if model is not None else None  # which imports it
    check_classes(ckpt_path, options)
    name = model or options.get("_class_path")
    if name is None:
        raise SuperCMError(f"model: {ckpt_path} does not name its class; give it, such as --model SuperCM.")
    # All weights are in the file; published ones would be fetched only to be overwritten.
    local: dict[str, Any] = {}
    if (options.get("backbone_options") or {}).get("pretrained"):
        local["backbone_options"] = options["backbone_options"] | {"pretrained": False}
    method = (own or _class(name)).load_from_checkpoint(ckpt_path, map_location="cpu", **local).eval()
    data = next((v for v in checkpoint.values() if isinstance(v, dict) and "preprocessing" in v), {})
    return method, {
        "class_names": data.get("class_names"),
        "preprocessing": data.get("preprocessing"),
        "input_shape": method.input_shape,
        "method": type(method).__name__,
        "version": importlib.metadata.version("supercm-lightning"),
    }


def _class(name: str) -> type[Method]:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = pkgutil.resolve_name(name if "." in name else f"supercm_lightning.methods.{name}")
    except (ImportError, AttributeError, ValueError) as error:
        raise SuperCMError(f"model={name}: {error}. Give a method of this package or the path of a class.") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise SuperCMError(f"model={name}: not a method. Give a subclass of Method, such as SuperCM.")
    return found


class _Logits(nn.Module):
    """A method as a plain module: exporters look at every attribute of what they are given."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, input: Tensor) -> Tensor:
        return self.method(input)


def _write_onnx(network: nn.Module, example: Tensor, file: Path, metadata: dict[str, Any]) -> None:
    import onnx

    program = torch.onnx.export(
        network,
        (example,),
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes={"input": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program.")
    program.save(file)
    written = onnx.load(file, load_external_data=False)
    onnx.helper.set_model_props(written, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.save(written, file)


def _run_onnx(file: Path, x: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"input": x.numpy()})[0])


def _write_program(network: nn.Module, example: Tensor, file: Path, metadata: dict[str, Any]) -> None:
    program = torch.export.export(
        network, (example,), dynamic_shapes={"input": {0: torch.export.Dim("batch")}}, strict=False
    )
    buffer = BytesIO()  # a full disk would abort the process where torch writes itself
    torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    file.write_bytes(buffer.getvalue())


def _run_program(file: Path, x: Tensor) -> Tensor:
    return torch.export.load(file).module()(x)


@errors_in_one_line()
def main(args: list[str] | None = None) -> None:
    """The console script.

    Args:
        args: Arguments without the program's name; None: those of the process.
    """
    auto_cli(export_model, args=args, as_positional=False)
