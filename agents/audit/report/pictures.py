"""The pictures of a report, each as a self-contained SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from agents.audit.report.model import ClassReport, Confusion, Report

BASE, FINAL, GAIN, LOSS, INK, FAINT = "#8a94a6", "#2457c5", "#1a7f4b", "#b3372f", "#1f2733", "#e3e7ee"
_PARTS = (BASE, "#4f83e0", FINAL, "#d08a2e")
MAX_CLASSES = 24
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c3cad6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "fedbus",
}


def accuracy_curve(report: Report) -> str:
    """Held-out accuracy after every round, with the base model's as a line."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(7.6, 3.4)
        points = [(one.round, one.accuracy) for one in report.rounds if one.accuracy is not None]
        if report.base is not None:
            axes.axhline(report.base.accuracy, color=BASE, linestyle=(0, (5, 4)), linewidth=1.5)
            axes.annotate(
                f"base model {report.base.accuracy:.1%}",
                (1.0, report.base.accuracy),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 5),
                textcoords="offset points",
                ha="right",
                color="#5b6577",
            )
            points.insert(0, (0, report.base.accuracy))
        rounds, accuracies = [number for number, _ in points], [accuracy for _, accuracy in points]
        axes.plot(rounds, accuracies, color=FINAL, marker="o", markersize=5, linewidth=2)
        if len(points) > 1:
            axes.annotate(
                f"{accuracies[-1]:.1%}", (rounds[-1], accuracies[-1]), xytext=(0, 8), textcoords="offset points",
                ha="center", color=FINAL, fontweight="bold",
            )  # fmt: skip
        low, high = min(accuracies, default=0.0), max(accuracies, default=1.0)
        margin = max(0.02, 0.18 * (high - low))
        axes.set_ylim(max(0.0, low - margin), min(1.005, high + margin))
        axes.set_xlim(-0.3, max(rounds, default=1) + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y")
        axes.set_xlabel("round")
        axes.set_ylabel("held-out accuracy")
        return _svg(figure)


def per_class_change(classes: Sequence[ClassReport]) -> str:
    """Each class's accuracy before and after, the largest gain first and the largest loss last."""
    known = [(one, one.base, one.final) for one in classes if one.base is not None and one.final is not None]
    known.sort(key=lambda item: item[2] - item[1])
    if len(known) > MAX_CLASSES:
        known = known[: MAX_CLASSES // 2] + known[-MAX_CLASSES // 2 :]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(7.6, 0.9 + 0.34 * len(known))
        for row, (_, base, final) in enumerate(known):
            color = GAIN if final > base else LOSS if final < base else BASE
            axes.plot([base, final], [row, row], color=color, linewidth=3, solid_capstyle="butt", zorder=2)
            axes.scatter([base], [row], s=42, facecolor="white", edgecolor=color, linewidth=1.8, zorder=3)
            axes.scatter([final], [row], s=46, color=color, zorder=4)
            axes.text(1.035, row, f"{100 * (final - base):+.1f}", color=color, va="center", fontweight="bold")
        axes.set_yticks(range(len(known)), [_short(one.name) for one, _, _ in known])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.6, len(known) - 0.4)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("held-out accuracy: ○ base, ● newest model; change in points at the right")
        return _svg(figure)


def confusion_matrices(
    confusion: Confusion, names: Sequence[str], titles: tuple[str, str] = ("base model", "newest model")
) -> str:
    """Both models' confusion matrices side by side, on one colour scale; each row is a true class and sums to 100 %.

    Of many classes, those with the most mistakes are shown.
    """
    base, final = np.asarray(confusion.base, np.int64), np.asarray(confusion.final, np.int64)
    shown = _most_confused(base + final)
    with matplotlib.rc_context(_STYLE):
        side = min(6.6, 1.9 + 0.3 * len(shown))
        figure = Figure(figsize=(2 * side, side + 0.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, counts, title in ((left, base, titles[0]), (right, final, titles[1])):
            _draw_matrix(axes, counts, shown, [_short(names[index]) for index in shown])
            axes.set_title(_short(title), fontweight="bold", pad=8)
        left.set_ylabel("true class")
        return _svg(figure)


def time_bar(parts: Sequence[tuple[str, float]]) -> str:
    """One bar of up to four consecutive parts: (label, seconds)."""
    total = sum(seconds for _, seconds in parts) or 1.0
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(7.6, 1.15)
        start = 0.0
        for (label, seconds), color in zip(parts, _PARTS, strict=False):
            axes.barh([0], [seconds], left=start, color=color, height=0.7, label=f"{label} {seconds:.1f} s")
            if seconds / total > 0.07:
                middle = start + seconds / 2
                axes.text(middle, 0, f"{seconds / total:.0%}", ha="center", va="center", color="white")
            start += seconds
        axes.set_xlim(0, total)
        axes.set_axis_off()
        figure.legend(
            loc="outside lower left", ncols=len(parts), frameon=False, handlelength=1.0, handleheight=1.0,
            borderpad=0.0, columnspacing=1.6,
        )  # fmt: skip
        return _svg(figure)


def _draw_matrix(axes: Axes, counts: NDArray[np.int64], shown: NDArray[np.int64], names: Sequence[str]) -> None:
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    part = shares[np.ix_(shown, shown)]
    axes.imshow(part, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.argwhere(part >= 0.005):
        color = "white" if part[row, column] > 0.55 else INK
        axes.text(column, row, f"{100 * part[row, column]:.0f}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _most_confused(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices, ascending, of up to ``MAX_CLASSES`` classes with the most mistakes."""
    wrong = counts.sum(axis=1) + counts.sum(axis=0) - 2 * counts.diagonal()
    return np.sort(np.argsort(-wrong, kind="stable")[:MAX_CLASSES])


def _short(name: str) -> str:
    # matplotlib would take a dollar sign for the start of a formula.
    first = name.split(",")[0].strip().replace("$", r"\$")
    return first if len(first) <= 22 else first[:21] + "…"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(
        stream,
        format="svg",
        transparent=True,
        bbox_inches="tight",
        pad_inches=0.04,
        metadata={"Date": None, "Creator": None},
    )
    return stream.getvalue()
