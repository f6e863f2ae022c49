"""The command `supercm-export`: a trained model as a file that other programs run."""

import importlib.metadata
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from supercm_lightning.methods import Method
from supercm_lightning.methods.prediction import load_model
from supercm_lightning.tools.arguments import check_installed, parse
from supercm_lightning.utils.checkpoints import checkpoint_of
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.parser import errors_in_one_line

_SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}


def export_model(
    ckpt_path: str | Path,
    output: Path | None = None,
    format: Literal["onnx", "torch_export"] = "onnx",
    model: str | None = None,
) -> Path:
    """Writes the classifier of a checkpoint as ONNX, or as a program of torch.export, and compares it with the model.

    The file takes `input` (n, *input_shape) for any n from 1 on, and gives `logits` (n, K). Where the checkpoint says
    how images were read, `input` is their pixels in bytes, and the file crops, normalizes or whitens them; features are
    given as they are in their file. Its metadata hold, as JSON, `class_names`, `input` (`pixels`, `features`, or
    `inputs` of the model), `input_shape`, `preprocessing`, `method` and `version` of this package: `metadata_props` of
    ONNX, `metadata.json` among the extra files of torch.export. A run that averaged its weights gives these.

    Args:
        ckpt_path: The checkpoint, the folder of a run, whose best one is taken, or a pretrained model, `hf://OWNER/NAME`.
        output: File to write; None: beside the checkpoint, under its name; of a pretrained model `model.onnx` here.
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
    ckpt_path = checkpoint_of(ckpt_path)
    beside = ckpt_path if ckpt_path.is_file() else Path("model")
    output = output.expanduser() if output is not None else beside.with_suffix(_SUFFIXES[format])
    if output.is_dir() or output.resolve() == ckpt_path.resolve():
        problem = "is a folder" if output.is_dir() else "is the checkpoint itself, which would be lost"
        raise SuperCMError(f"output={output}: {problem}. Give the name of a new file.")
    method: Method = load_model(ckpt_path, model)
    write, run = (_write_onnx, _run_onnx) if format == "onnx" else (_write_program, _run_program)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent, prefix=".export-") as folder:
            written = Path(folder, output.name)
            write(_Logits(method).eval(), _example(method, 2), written, metadata_of(method))
            worst = max(_difference(method, run, written, n) for n in (1, 5))
            for file in sorted(Path(folder).iterdir(), reverse=True):  # large weights lie in a file beside
                file.replace(output.with_name(file.name))
    except OSError as error:
        raise SuperCMError(f"output={output}: cannot be written ({error.strerror or error}).") from error
    print(f"{type(method).__name__}, largest relative difference to torch {worst:.1e}: {output}")
    return output


def _difference(method: Method, run: Callable[[Path, Tensor], Tensor], file: Path, n: int) -> float:
    """Largest difference of the file's logits from the model's, relative to the largest; on `n` samples."""
    x = _example(method, n)
    with torch.no_grad():
        expected = _Logits(method)(x)
        difference = float((run(file, x) - expected).abs().max() / expected.abs().max().clamp_min(1.0))
    if not difference < 1e-3:  # NaN neither
        raise RuntimeError(
            f"{file.name}: the exported logits differ from the model's by {difference:.1e} of the largest."
        )
    return difference


def metadata_of(method: Method) -> dict[str, Any]:
    """What a user of the file must know: names of the classes, what `input` is, and how files become that."""
    prepared = method.preparation
    assert prepared is not None
    return {
        "class_names": prepared.class_names,
        "input": prepared.kind,
        "preprocessing": prepared.preprocessing,
        "input_shape": prepared.stored_shape if prepared.kind == "pixels" else method.input_shape,
        "method": type(method).__name__,
        "version": importlib.metadata.version("supercm-lightning"),
    }


def _example(method: Method, n: int) -> Tensor:
    """Samples as the exported file takes them."""
    stream, shape = torch.Generator().manual_seed(n), metadata_of(method)["input_shape"]
    if metadata_of(method)["input"] == "pixels":
        return torch.randint(0, 256, (n, *shape), generator=stream, dtype=torch.uint8)
    return torch.randn(n, *shape, generator=stream)


class _Logits(nn.Module):
    """A method as a plain module: exporters look at every attribute of what they are given."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method, self.preparation = method, method.preparation

    def forward(self, input: Tensor) -> Tensor:
        return self.method(self.preparation(input) if self.preparation is not None else input)


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
    """The console script, with arguments without the program's name, or those of the process."""
    export_model(**parse(export_model, args, prog="supercm-export"))
