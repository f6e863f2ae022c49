"""The picture of an embedding: classes by color, domains by marker, centroids as stars."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from supercm_lightning.utils.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

# Distinct with the common color vision deficiencies: Paul Tol's "muted" and one "vibrant". Gray means unknown.
_COLORS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#EE7733",
)  # fmt: skip
_UNKNOWN, _UNKNOWN_TARGET = "#C8C8C8", "#606060"
_LONGEST_LEGEND = 24


def feature_figure(
    points: "ndarray[Any, Any]",
    labels: Tensor,
    class_names: Sequence[str],
    stars: Mapping[int, "ndarray[Any, Any]"],
    title: str = "",
    is_target: Tensor | None = None,
) -> "Figure":
    """Draws points (n, 2), colored by class, (n,) and below 0 where unknown, and a star at the centroid of each class.

    Samples of the target domain, where there are two, get a marker of their own. The figure is independent of windows
    and of the state of pyplot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from numpy import array, median

    # One domain: few labeled samples stand out among many unlabeled ones. Two: target samples among source samples.
    unknown, order, alpha = (_UNKNOWN, 0.5, 0.75) if is_target is None else (_UNKNOWN_TARGET, 1, 0.4)
    colors = dict(enumerate(_colors(len(class_names)))) | {-1: unknown}
    named = len(class_names) <= _LONGEST_LEGEND
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xticks=[], yticks=[], title=title)
    axes.spines[:].set_color("0.6")
    size = min(36.0, max(6.0, 12000 / len(points)))
    disc: dict[str, Any] = {"marker": "o", "s": size, "alpha": alpha, "linewidths": 0}
    cross: dict[str, Any] = {"marker": "x", "s": size, "alpha": 0.9, "linewidths": 0.3 * size**0.5}
    everything = torch.ones(len(labels), dtype=torch.bool)
    domains = {"source": (~is_target, disc), "target": (is_target, cross)} if is_target is not None else {}
    labels, legend = labels.clamp_min(-1), set()
    for members, style in domains.values() or [(everything, disc)]:
        for number in (*range(len(class_names)), -1):
            chosen = (members & (labels == number)).numpy()
            if chosen.any():
                label = f"{'_' * (number in legend)}class {number}"
                legend.add(number)
                height = order if number < 0 else 1
                axes.scatter(*points[chosen].T, color=colors[number], label=label, zorder=height, **style)
    for name, (_, style) in domains.items():
        axes.scatter([], [], color="0.2", label=name, **style)
    if stars:
        width, edge = (230, 1.0) if named else (60, 0.6)
        star: dict[str, Any] = {"marker": "*", "s": width, "edgecolors": "black", "linewidths": edge, "zorder": 3}
        axes.scatter(*array(list(stars.values())).T, color=[colors[number] for number in stars], **star)
        axes.scatter([], [], color="white", label="centroid", **star)
    # A name may begin with an underscore or look like a formula, which matplotlib would hide or read.
    shown = {f"class {number}": printable(name) for number, name in enumerate(class_names)} | {"class -1": "unlabeled"}
    if named:
        handles = figure.legend(loc="outside right center", frameon=False, handletextpad=0.2, scatteryoffsets=[0.5])
        for text in handles.get_texts():
            text.set(parse_math=False, text=shown.get(text.get_text(), text.get_text()))
        for handle in filter(None, handles.legend_handles):
            handle.set(sizes=[60], alpha=1)
    else:
        known = labels[labels >= 0].unique().tolist()
        places = {number: median(points[(labels == number).numpy()], axis=0) for number in known}
        _write_numbers(axes, places | dict(stars))
    for part in axes.collections:
        part.set_label(shown.get(str(part.get_label()), part.get_label()))
    return figure


def _write_numbers(axes: "Axes", places: dict[int, Any]) -> None:
    """Writes the number of each class at its place, for more classes than a legend can hold."""
    from matplotlib.patheffects import withStroke

    style: dict[str, Any] = {"fontsize": 7, "ha": "center", "zorder": 4}
    for number, place in places.items():
        halo = withStroke(linewidth=1.5, foreground="white")
        axes.annotate(str(number), place, (0, 4), textcoords="offset points", path_effects=[halo], **style)


def _colors(num_classes: int) -> list[Any]:
    if num_classes <= len(_COLORS):
        return list(_COLORS)
    hues = [(number * 0.618034) % 1 for number in range(num_classes)]  # golden ratio: neighbours differ
    return [colorsys.hls_to_rgb(hue, (0.35, 0.5, 0.7)[number % 3], 0.65) for number, hue in enumerate(hues)]
