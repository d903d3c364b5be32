"""Axes to draw on, and labels that fit beside and above them."""

import re

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

_TITLE_SIZE = "small"
# The height of a line of a title, and the space around a title, in inches.
_LINE, _GAP = 0.155, 0.18
# The maximum width of the names of rows, in points: a third of the width of a figure.
_NAME_POINTS = 150

# Okabe and Ito's colours, which all common forms of colour blindness can distinguish.
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#8C8C8C"


def panels(display, ax, count, height=None, **options):
    """Return a figure and its axes: the given one, or new ones above each other."""
    check_matplotlib_support(f"{type(display).__name__}.plot")
    # matplotlib is optional, and importing it takes a while.
    import matplotlib.pyplot as plt

    if ax is not None:
        return ax.figure, np.array([ax])
    figure, axes = plt.subplots(
        count,
        squeeze=False,
        sharex=count > 1,
        layout="constrained",
        figsize=(6, height or 2.2 + 1.6 * count),
        gridspec_kw=options or None,
    )
    return figure, axes[:, 0]


def fold_names(names) -> tuple[list[str], float]:
    """Fold names so that they leave room for the data; return the rows' height, too."""
    names = [fold(name, _NAME_POINTS) for name in names]
    n_lines = max(name.count("\n") + 1 for name in names)
    return names, (0.2 + 0.17 * n_lines) * len(names)


def name_rows(axes, names) -> None:
    """Label the rows at the heights 0, 1, ..., with the first one on top."""
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)


def legend(axes) -> None:
    """Draw the legend above the axes, where it hides no data."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
    axes.legend(**place, ncols=3, frameon=False, fontsize="small")


def grid(display, ax, titles, *, width=1.9, height=1.9, below=0.0):
    """Return a figure and one axes for each title: given ones, or new ones in a grid.

    Each cell is `width` by `height` inches. `below` is the space below the grid, in
    inches.
    """
    check_matplotlib_support(f"{type(display).__name__}.plot")
    if ax is None:
        figure, axes, titles = _new_grid(titles, width, height, below)
    else:
        axes = np.ravel(ax)
        figure = axes[0].figure
        if len(axes) < len(titles):
            raise ValueError(
                f"Invalid ax of {len(axes)} axes: expected one for each of the "
                f"{len(titles)} images, or None for a new figure. Nothing was drawn."
            )
        inches = [each.get_window_extent().width / figure.dpi for each in axes]
        titles = [_fold_title(*each) for each in zip(titles, inches, strict=False)]
    # This concerns axes without an image, too.
    for each in axes:
        each.set_axis_off()
    for each, title in zip(axes, titles, strict=False):
        # The name of a class may contain dollar signs, which are no mathematics there.
        each.set_title(title, loc="left", fontsize=_TITLE_SIZE, parse_math=False)
    return figure, axes[: len(titles)]


def _new_grid(titles, width, height, below):
    import matplotlib.pyplot as plt

    count, aspect = len(titles), width / height
    # Up to about four square cells fit in one row. More cells form a grid that is about
    # as wide as it is high.
    row = round(4 / aspect)
    columns = count if count <= row else max(row - 1, _root(count / aspect))
    # A figure is at least four inches wide, so that a single image is larger.
    scale = max(1, 4 / (width * columns))
    width, height = scale * width, scale * height
    titles = [_fold_title(title, width) for title in titles]
    n_lines = [title.count("\n") + 1 for title in titles]
    tallest = [max(n_lines[i : i + columns]) for i in range(0, count, columns)]
    texts = _GAP * len(tallest) + _LINE * sum(tallest)
    figure, axes = plt.subplots(
        len(tallest),
        columns,
        squeeze=False,
        layout="compressed",
        figsize=(width * columns, height * len(tallest) + texts + below),
    )
    for each in axes.ravel()[count:]:
        each.set_axis_off()
    return figure, axes.ravel()[:count], titles


def _root(count) -> int:
    return int(np.ceil(count**0.5))


def _fold_title(title, inches) -> str:
    # An inch has 72 points. A tenth of the width stays free, as a gap to the next title
    # and because letters that are aligned with pixels are a little wider.
    points = 0.9 * 72 * inches
    lines = [fold(line, points, _TITLE_SIZE) for line in title.split("\n")]
    return "\n".join(lines)


def fold(text, points, size=None) -> str:
    """Break a text into lines of at most so many points, at the ends of its words."""
    parts = []
    # Names of files and parameters may be long and have no spaces. A part that does not
    # fit on a line by itself is broken between any letters.
    for part in re.findall(r"[^\s_/,]*[\s_/,]*", text):
        parts += [part] if width_of(part, size) <= points else part
    lines = [""]
    for part in parts:
        if lines[-1] and width_of(lines[-1] + part, size) > points:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def width_of(text, size=None) -> float:
    """Return the width of a single line of text in points, without space around it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(text.strip(), font, False)
    return width


def draw_folds(axes, scores: np.ndarray, marks: str, upright=True) -> None:
    """Draw the score of each fold, and the mean of each row with its standard error."""
    places, folds = np.arange(len(scores)), {"color": GREY, "alpha": 0.5}
    means, errors = scores.mean(axis=1), None
    if scores.shape[1] > 1:
        errors = scores.std(axis=1, ddof=1) / np.sqrt(scores.shape[1])
    # Rows are placed side by side, or one above the other.
    order, error = (1, "yerr") if upright else (-1, "xerr")
    axes.plot(*(places, scores)[::order], "o", markersize=4, **folds)
    options = {error: errors, "fmt": marks, "label": "mean and standard error"}
    axes.errorbar(*(places, means)[::order], color=BLUE, capsize=4, **options)
    # An empty plot gives the folds one entry in the legend, rather than one for each.
    axes.plot([], [], "o", markersize=4, label="folds", **folds)
    legend(axes)
