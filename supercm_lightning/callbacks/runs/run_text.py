"""What a run says about itself: its title and its results."""

from collections.abc import Mapping, Sequence
from typing import Any


def run_title(model: str, data: str | None, options: Mapping[str, Any]) -> str:
    """Method, data and domains of a run, of the classes of the method and data module, and the latter's options.

    Examples:
        >>> run_title("DANN", None, {"dataset": "pacs", "source": ["photo"], "target": "sketch"})
        'DANN on pacs, photo → sketch'
    """
    dataset = options.get("dataset")
    title = f"{model} on {dataset if isinstance(dataset, str) else data or 'loaders'}"
    domains = [options.get(role) for role in ("source", "target")]
    names = [", ".join(map(str, domain)) if isinstance(domain, list | tuple) else domain for domain in domains]
    return f"{title}, {names[0]} → {names[1]}" if all(isinstance(name, str) for name in names) else title


def result_lines(metrics: Mapping[str, float], interval: Sequence[float] | None = None, domain: str = "") -> list[str]:
    """Metrics with four decimals, the accuracy first, with its 95 % interval.

    The domain, `source ` or `target ` for data of two, stands before accuracy and loss.

    Examples:
        >>> result_lines({"test/loss": 0.51234, "test/acc": 0.9}, (0.826, 0.945))
        ['test/acc   0.9000 (95 % interval 0.8260 to 0.9450)', 'test/loss  0.5123']
    """
    names = sorted(metrics, key=lambda name: (name != "test/acc", not name.endswith("/acc"), name))
    full = [f"{domain}{name}" if name.endswith(("/acc", "/loss")) else name for name in names]
    width = max(map(len, full), default=0)
    lines = [f"{text:{width}}  {metrics[name]:.4f}" for text, name in zip(full, names, strict=True)]
    if interval is not None and lines:
        lines[0] += f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})"
    return lines
