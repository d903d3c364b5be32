"""Axes to draw in, and texts that fit beside and above them."""

import re

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

_TITLE_SIZE = "small"
# Of a title, in inches: the height of a line, and the space around it.
_LINE, _GAP = 0.155, 0.18
# Of the names of rows, in points: a third of the width of a figure.
_NAME_POINTS = 150


def panels(display, ax, count, height=None, **options):
    """The figure and axes to draw in: the given one, or new ones above each other."""
    check_matplotlib_support(f"{type(display).__name__}.plot")
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
    """Names in lines that leave most of the figure to the data; height of all rows."""
    names = [fold(name, _NAME_POINTS) for name in names]
    n_lines = max(name.count("\n") + 1 for name in names)
    return names, (0.2 + 0.17 * n_lines) * len(names)


def name_rows(axes, names) -> None:
    """Name what stands at the heights 0, 1, ..., the first on top."""
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)


def legend(axes) -> None:
    """Explain the marks above the axes, where they hide none."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
    axes.legend(**place, ncols=3, frameon=False, fontsize="small")


def grid(display, ax, titles, *, width=1.9, height=1.9, below=0.0):
    """The figure and an ax for each title: given ones, or new ones in a grid.

    Cells are `width` by `height` inches, with so many inches `below` them all.
    """
    check_matplotlib_support(f"{type(display).__name__}.plot")
    if ax is None:
        figure, axes, titles = _new_grid(titles, width, height, below)
    else:
        axes = np.ravel(ax)
        figure = axes[0].figure
        if len(axes) < len(titles):
            raise ValueError(
                f"ax has {len(axes)} axes, and there are {len(titles)} pictures. "
                "Nothing was drawn. Pass one ax for each picture, or None for a new "
                "figure."
            )
        inches = [each.get_window_extent().width / figure.dpi for each in axes]
        titles = [_fold_title(*each) for each in zip(titles, inches, strict=False)]
    for each in axes:
        each.set_axis_off()
    for each, title in zip(axes, titles, strict=False):
        # A class may well be called "$10".
        each.set_title(title, loc="left", fontsize=_TITLE_SIZE, parse_math=False)
    return figure, axes[: len(titles)]


def _new_grid(titles, width, height, below):
    import matplotlib.pyplot as plt

    count, aspect = len(titles), width / height
    row = round(4 / aspect)
    columns = count if count <= row else max(row - 1, _root(count / aspect))
    # A lonely picture is larger.
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
    # A gap to the next picture is to stay, and letters on pixels are a little wider.
    points = 0.9 * 72 * inches
    lines = [fold(line, points, _TITLE_SIZE) for line in title.split("\n")]
    return "\n".join(lines)


def fold(text, points, size=None) -> str:
    """Break a text, where its words and parts end, into lines of so many points."""
    parts = []
    for part in re.findall(r"[^\s_/,]*[\s_/,]*", text):
        parts += [part] if width_of(part, size) <= points else part
    lines = [""]
    for part in parts:
        if lines[-1] and width_of(lines[-1] + part, size) > points:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def width_of(text, size=None) -> float:
    """Width of a text of one line, in points, without the space around it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(text.strip(), font, False)
    return width
