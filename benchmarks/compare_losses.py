"""Compares every loss at every step, and the final weights, with those of another revision.

    python benchmarks/compare_losses.py REV [--methods SuperCM FixMatch …] [--steps 40]

Each method is trained for a few steps on digits (CPU, one thread), once with the code of the revision and once with
that of the working tree. The two must agree to the last bit. A difference is either a defect or a decision, which
docs/decisions.md then names. Methods that one of the two does not have are listed and left out.
"""

import argparse
import hashlib
import inspect
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def record(names: list[str], steps: int) -> dict[str, Any]:
    """Losses of every step and a hash of the final weights of each method, by the code that this process imports."""
    import logging
    import warnings

    import torch
    from lightning.pytorch import Trainer, seed_everything

    import supercm_lightning as library

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)

    results: dict[str, Any] = {}
    for name in names or _methods(library):
        kind = getattr(library, name, None)
        if kind is None:
            continue
        clusters = not kind.needs_labeled
        seed_everything(7, verbose=False)
        if clusters:
            data = library.ClusteringDataModule("digits", unlabeled_batch_size=32, steps_per_epoch=steps // 2)
        else:
            data = library.SemiSupervisedDataModule(
                "digits",
                num_labeled=40,
                labeled_batch_size=20,
                unlabeled_batch_size=32,
                steps_per_epoch=steps // 2,
            )
        options: dict[str, Any] = {"asd_warmup": 0.3, "asd_map_every": 5} if clusters else {}
        # Revisions that have the option agree with those before it, whose clustering heads were all initialised so.
        signatures = [inspect.signature(base.__init__) for base in library.Method.__mro__]
        if "SuperCM" in name and any("head_init" in signature.parameters for signature in signatures):
            options["head_init"] = "xavier"
        model = kind(num_classes=data.num_classes, input_shape=data.input_shape, **options)
        losses = _recorded(model)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                max_epochs=2,
                accelerator="cpu",
                logger=True,
                default_root_dir=folder,
                log_every_n_steps=1,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
            trainer.fit(model, datamodule=data)
        weights = hashlib.sha256()
        for key, value in sorted(model.state_dict().items()):
            if key.split(".")[0] in ("backbone", "bottleneck", "head"):
                weights.update(value.cpu().numpy().tobytes())
        results[name] = {"losses": losses, "weights": weights.hexdigest()[:16]}
    return results


def _recorded(model: Any) -> list[dict[str, float]]:
    """A list that the weighted terms of every step will be appended to."""
    steps: list[dict[str, float]] = []
    losses = model.losses

    def recorded(step: Any) -> Any:
        terms = losses(step)
        steps.append({name: float(term.detach()) for name, term in terms.items()})
        return terms

    model.losses = recorded
    return steps


def _methods(library: Any) -> list[str]:
    from supercm_lightning import methods

    names = (name for name in methods.__all__ if name not in ("Method", "Clusterer", "Step"))
    return [name for name in names if isinstance(getattr(library, name), type)]


def _run(source: Path, names: list[str], steps: int, file: Path) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / "compare_losses.py"), "--record", str(file)]
    command += ["--steps", str(steps), "--methods", *names]
    # -P and PYTHONPATH: the package of the revision, not the installed one.
    subprocess.run(command, check=True, cwd=source, env=_environment(source))
    return json.loads(file.read_text())


def _environment(source: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line a method; a difference begins with `DIFFERS`."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            lines.append(f"{'only before' if name in before else 'only now':<12} {name}")
            continue
        old, new = before[name], after[name]
        step = next((i for i, (a, b) in enumerate(zip(old["losses"], new["losses"], strict=False)) if a != b), None)
        if step is not None:
            a, b = old["losses"][step], new["losses"][step]
            terms = [f"{term} {a.get(term)} -> {b.get(term)}" for term in sorted(a.keys() | b.keys())]
            changed = [text for text in terms if text.split(" ", 1)[1].split(" -> ")[0] != text.split(" -> ")[1]]
            lines.append(f"{'DIFFERS':<12} {name} from step {step}: {'; '.join(changed)}")
        elif old["weights"] != new["weights"]:
            lines.append(f"{'DIFFERS':<12} {name}: the losses agree, the final weights do not")
        else:
            lines.append(f"{'equal':<12} {name}, {len(new['losses'])} steps")
    return lines


def main() -> None:
    """Runs both revisions and prints the comparison; the exit status is 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", help="a commit, branch or tag")
    parser.add_argument("--methods", nargs="*", default=[], help="names of methods; none: all")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--record", type=Path, help="write the losses of the imported code to this file, and stop")
    options = parser.parse_args()
    if options.record:
        options.record.write_text(json.dumps(record(options.methods, options.steps)))
        return
    if options.revision is None:
        parser.error("give the revision to compare with")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "revision"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(tree), options.revision], check=True, cwd=ROOT)
        try:
            before = _run(tree, options.methods, options.steps, Path(folder) / "before.json")
            after = _run(ROOT, options.methods, options.steps, Path(folder) / "after.json")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], check=True, cwd=ROOT)
    lines = compare(before, after)
    print("\n".join(lines))
    sys.exit(any(line.startswith("DIFFERS") for line in lines))


if __name__ == "__main__":
    main()
