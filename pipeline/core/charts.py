"""The report's pictures, as inline SVG.

Their colours are CSS variables of the page and their text is text in the page's font, so that one picture serves
light, dark and paper. They are drawn for the width of a phone, 358 px, and the same input gives the same bytes.
matplotlib costs half a second to import, so it is imported only when something is drawn.
"""

import io
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.core.kinds import Kind, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter, Locator

WIDTH = 358
TEXT = 12
# A longer label would leave too little space for the picture.
LONGEST_LABEL = 14

# matplotlib does not support CSS variables: it draws with these colours, which are then replaced.
INK, MUTED, LINE, ACCENT = "#010101", "#020202", "#030303", "#040404"
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", ACCENT: "var(--accent)"}
# The colour of the one picture made of pixels: it must be visible on white and on black.
PIXEL = (0.33, 0.50, 0.92)


class _Drawing:
    """The figure to draw on, and after the ``with`` block its ``svg``."""

    figure: "Figure"
    svg: Markup


@contextmanager
def _draw(title: str, height: int) -> Iterator[_Drawing]:
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "text.parse_math": False,
        "font.size": TEXT,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.labelsize": TEXT,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 1,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.fontsize": TEXT,
        "lines.linewidth": 2,
    }
    drawing = _Drawing()
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so a glyph missing in matplotlib's does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawing.figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        yield drawing
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    drawing.svg = _inline(file.getvalue(), title)


def _inline(svg: str, title: str) -> Markup:
    """The ``<svg>`` element without parts that a page does not need, or that would affect the rest of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' id="(?!\w{11}")[^"]*"', "", svg)  # ids of groups, which are the same in each picture
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", svg)
    svg = re.sub("|".join(VARIABLES), lambda found: VARIABLES[found[0]], svg)
    head = f'<svg class="chart" role="img" aria-label="{escape(title)}" viewBox'
    return Markup(re.sub(r"<svg [^>]*?viewBox", lambda _: head, svg, count=1))  # noqa: S704 - text was escaped by matplotlib


def training_curves(kind: Kind, training: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """The loss (training and validation) and the validation headline by epoch, each with its title.

    The best epoch is marked. One picture if the headline is the loss.
    """
    history, best = training["history"], training["best_epoch"]
    epochs = [entry["epoch"] for entry in history]
    primary = next(metric for metric in kind.metrics if metric.name == kind.primary)
    lines = {primary: {"training": ("loss", MUTED), "validation": ("validation_loss", ACCENT)}}
    if kind.headline != primary:
        lines[kind.headline] = {"validation": (f"validation_{kind.headline.name}", ACCENT)}
    pictures = []
    for metric, of_metric in lines.items():
        title = f"{metric.title}, by epoch"
        with _draw(title, 240) as drawing:
            axes = drawing.figure.add_subplot()
            for label, (key, colour) in of_metric.items():
                values = np.array([entry[key] for entry in history], dtype=float)
                axes.plot(epochs, values, color=colour, label=label, marker="o", markersize=3.5)
                if colour == ACCENT and best in epochs:
                    value = values[epochs.index(best)]
                    label = f"kept: epoch {best}"
                    axes.plot(best, value, "o", markersize=10, markerfacecolor="none", color=INK, label=label)
            axes.xaxis.set_major_locator(_few_ticks(integer=True))
            if metric.percent:
                axes.yaxis.set_major_formatter(_percent())
            axes.set_xlabel("epoch")
            _legend(drawing.figure)
        pictures.append((title, drawing.svg))
    return pictures


def intervals(evaluation: Mapping[str, Any], metric: Metric, splits: Collection[str]) -> Markup:
    """A metric with its 95 % interval for the model, the champion and the baseline, on each of these splits."""
    champion = evaluation["champion"] or {}
    who = [
        ("model", "this model", "o", ACCENT),
        ("champion", "champion" if champion.get("is_best") else "requested", "D", INK),
        ("baseline", "baseline", "s", MUTED),
    ]
    # A champion may know none of the labels of a split.
    who = [entry for entry in who if evaluation[entry[0]] and all(evaluation[entry[0]].get(split) for split in splits)]
    names: list[str] = []
    headings: list[int] = []
    with _draw(f"{metric.title} with its interval", 48 + 26 * len(splits) * (len(who) + 1)) as drawing:
        axes = drawing.figure.add_subplot()
        for split in splits:
            headings.append(len(names))
            names.append(_short(split.capitalize()))
            for key, name, marker, colour in who:
                metrics = evaluation[key][split]
                low, high = metrics[f"{metric.name}_interval"]
                axes.plot(
                    [low, high],
                    [len(names)] * 2,
                    color=colour,
                    linewidth=3,
                    alpha=0.45,
                    solid_capstyle="round",
                )
                axes.plot(metrics[metric.name], len(names), marker, color=colour, markersize=7)
                names.append(name)
        axes.set_yticks(range(len(names)), names)
        for number in headings:
            axes.get_yticklabels()[number].set(fontweight="bold", color=INK)
        axes.set_ylim(len(names) - 0.5, -0.6)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(_few_ticks())
        if metric.percent:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter(_percent())
        axes.set_xlabel(f"{metric.title} ({metric.better} is better)")
    return drawing.svg


def reliability(calibration: Sequence[Mapping[str, Any]]) -> Markup:
    """How often the first guess is right against its stated probability, and how many rows each bin has."""
    bins = [entry for entry in calibration if entry["rows"]]
    confidence = [entry["confidence"] for entry in bins]
    accuracy = [entry["accuracy"] for entry in bins]
    rows = np.array([entry["rows"] for entry in bins], dtype=float)
    end = min(1.0, max((*confidence, *accuracy, 0.1)) * 1.08)
    with _draw("Reliability: how often it is right against how sure it is", 330) as drawing:
        above, below = drawing.figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        above.plot([0, end], [0, end], color=MUTED, linewidth=1.2, dashes=(4, 3), label="as sure as right")
        above.plot(confidence, accuracy, color=ACCENT, linewidth=1, alpha=0.6)
        # A bin of few rows is mostly noise: the more rows, the larger the dot.
        areas = 8 + 72 * rows / rows.max()
        above.scatter(confidence, accuracy, s=areas, color=ACCENT, clip_on=False, zorder=3, label="this model")
        above.set(xlim=(0, end), ylim=(0, end), ylabel="share that is right")
        edges = [entry["low"] for entry in bins], [entry["high"] - entry["low"] for entry in bins]
        below.bar(edges[0], rows / rows.sum(), edges[1], align="edge", color=ACCENT, alpha=0.45, linewidth=0)
        below.set(xlabel="stated probability of the first guess", ylabel="rows")
        below.yaxis.set_major_locator(_few_ticks(2))
        for axis in (above.xaxis, above.yaxis, below.yaxis):
            axis.set_major_formatter(_percent())
        _legend(drawing.figure)
    return drawing.svg


def residuals(bins: Sequence[Mapping[str, Any]], unit: str) -> Markup:
    """How far the predictions are off, on average and in size, by how large the target is."""
    middles = [(entry["low"] + entry["high"]) / 2 for entry in bins]
    with _draw("Residuals by target", 300) as drawing:
        axes = drawing.figure.add_subplot()
        axes.axhline(0, color=MUTED, linewidth=1.2, dashes=(4, 3))
        for key, label, colour, marker in (
            ("absolute_error", "mean absolute error", MUTED, "s"),
            ("error", "mean error", ACCENT, "o"),
        ):
            values = [entry[key] for entry in bins]
            axes.plot(middles, values, color=colour, label=label, marker=marker, markersize=4.5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(_few_ticks())
        of = f", {unit}" if unit else ""
        axes.set(xlabel=f"target{of}", ylabel=f"prediction − target{of}")
        _legend(drawing.figure)
    return drawing.svg


def confusion(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> Markup:
    """The share of each true label's rows (down) by predicted label (across).

    Labels that are confused with one another are neighbours, so that groups show as blocks.
    """
    rows = np.array(matrix, dtype=float)
    shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    order = seriation(shares)
    pixels = np.empty((len(order), len(order), 4), dtype=np.uint8)
    pixels[..., :3] = np.round(np.array(PIXEL) * 255)
    pixels[..., 3] = np.round(np.sqrt(shares[np.ix_(order, order)] / max(shares.max(), 1e-9)) * 255)
    with _draw("Confusion of all labels", WIDTH) as drawing:
        axes = drawing.figure.add_subplot()
        # "none" embeds one pixel a cell, which the browser scales: small, and sharp at every size.
        axes.imshow(pixels, interpolation="none")
        named = range(0, len(order), -(-len(order) // 18))
        names = [_short(labels[order[n]]) for n in named]
        axes.set_xticks(named, names, rotation=90, fontsize=9)
        axes.set_yticks(named, names, fontsize=9)
        axes.set(xlabel="predicted", ylabel="true")
        axes.grid(visible=False)
    return drawing.svg


def seriation(shares: NDArray[np.float64]) -> NDArray[np.intp]:
    """An order of the rows in which similar ones are neighbours; ``shares``: float[n, n], of each row.

    The order of the Fiedler vector of the symmetrised shares, which minimises the squared distances between linked
    rows (Atkins, Boman & Hendrickson, A spectral algorithm for seriation, SIAM J. Comput. 28, 1998).
    """
    links = shares + shares.T
    _, vectors = np.linalg.eigh(np.diag(links.sum(axis=1)) - links)
    fiedler = vectors[:, min(1, len(links) - 1)]
    # An eigenvector's sign is arbitrary.
    return np.argsort(fiedler * (1 if fiedler[0] <= 0 else -1), kind="stable")


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def _legend(figure: "Figure") -> None:
    figure.legend(
        loc="outside upper left", ncols=3, handlelength=1.4, columnspacing=1.2, borderpad=0, borderaxespad=0.2
    )


def _percent() -> "Formatter":
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda share, _: f"{100 * share:.4g}%")


def _few_ticks(number: int = 5, *, integer: bool = False) -> "Locator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(number, integer=integer)


@dataclass(frozen=True)
class Node:
    """A step's box: its place in the graph's picture (the middle), in px."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Graph:
    """The picture of a graph, in px: its boxes, and its links as (SVG path data, the step that it leads to)."""

    width: float
    height: float
    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]


BOX = (166.0, 46.0)
GAP = (16.0, 34.0)


def layout(depends_on: Mapping[str, Sequence[str]]) -> Graph:
    """Place steps in rows, top to bottom: each in the row below the last one that it depends on.

    Links that follow from others are left out (the transitive reduction). A link over several rows gets its
    own place in the rows between, so that it crosses no box. Raises graphlib.CycleError if the steps form a cycle.
    """
    order = list(TopologicalSorter(depends_on).static_order())
    before: dict[str, set[str]] = {}
    parents: dict[str, list[str]] = {}
    row: dict[str, int] = {}
    for name in order:
        direct = depends_on[name]
        before[name] = set(direct).union(*(before[parent] for parent in direct))
        parents[name] = [p for p in direct if not any(p in before[other] for other in direct)]
        row[name] = 1 + max((row[parent] for parent in parents[name]), default=-1)

    # Each link as a chain with a place in every row; a place between is named by (from, to, row).
    rows: list[list[Any]] = [[name for name in depends_on if row[name] == n] for n in range(max(row.values()) + 1)]
    chains: list[list[Any]] = []
    for name in depends_on:
        for parent in parents[name]:
            between = [(parent, name, n) for n in range(row[parent] + 1, row[name])]
            for place in between:
                rows[place[2]].append(place)
            chains.append([parent, *between, name])

    width = max(len(places) for places in rows) * (BOX[0] + GAP[0]) - GAP[0]
    at: dict[Any, tuple[float, float]] = {}
    for n, places in enumerate(rows):
        above = {
            place: [at[c[i - 1]][0] for c in chains for i in range(1, len(c)) if c[i] == place] for place in places
        }
        places.sort(key=lambda place: sum(above[place]) / len(above[place]) if above[place] else 0.0)
        for i, place in enumerate(places):
            x = width / 2 + (i - (len(places) - 1) / 2) * (BOX[0] + GAP[0])
            at[place] = (x, n * (BOX[1] + GAP[1]) + BOX[1] / 2)

    edges = []
    for chain in chains:
        path = ""
        for start, end in pairwise(chain):
            (x0, y0), (x1, y1) = at[start], at[end]
            y0, y1 = y0 + BOX[1] / 2, y1 - BOX[1] / 2
            bend = GAP[1] * 0.6
            path += f"M{x0:g} {y0:g}C{x0:g} {y0 + bend:g} {x1:g} {y1 - bend:g} {x1:g} {y1:g}"
            path += f"V{y1 + BOX[1]:g}" if end != chain[-1] else "m-4 -5l4 5l4 -5"
        edges.append((path, chain[-1]))
    height = len(rows) * (BOX[1] + GAP[1]) - GAP[1]
    return Graph(width, height, tuple(Node(name, *at[name]) for name in depends_on), tuple(edges))
