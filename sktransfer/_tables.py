"""Results that are printed as a table."""

import html
from dataclasses import dataclass
from itertools import zip_longest
from numbers import Real
from textwrap import wrap

# In characters, the width of a terminal, the greatest width of columns that identify a
# row, and the smallest width that is available to other columns.
_LINE, _KEY, _CELL = 80, 39, 24
_GAP = "  "


class Table(list):
    """A list of dicts with the same keys, printed as a table.

    A table that is wider than a terminal is printed as several tables below each other,
    each of which repeats the columns that identify the rows. Long texts are wrapped.

    ``pandas.DataFrame(table)`` converts a table to a data frame.
    """

    @property
    def columns(self):
        return list(self[0]) if self else []

    def __repr__(self):
        n_keys = self._n_keys()
        keys = [_Column.of(self, name, _KEY) for name in self.columns[:n_keys]]
        room = max(_CELL, _LINE - sum(key.width + len(_GAP) for key in keys))
        others = [_Column.of(self, name, room) for name in self.columns[n_keys:]]
        return "\n\n".join(map(_block_text, _blocks(keys, others)))

    def _n_keys(self) -> int:
        """Return how many leading columns identify the rows, or 1 if not even all."""
        texts = self._texts()
        for count in range(1, len(self.columns) + 1):
            if len({tuple(row[:count]) for row in texts}) == len(texts):
                return count
        return 1

    def to_markdown(self):
        """Return the table in Markdown.

        Returns
        -------
        str
            The table, with one line for the header and one line for each row.
        """
        rows = [self.columns, ["---"] * len(self.columns), *self._texts()]
        return "\n".join(
            "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |"
            for row in rows
        )

    def _repr_html_(self):
        cells = [
            "".join(f"<td>{html.escape(text)}</td>" for text in row)
            for row in self._texts()
        ]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _texts(self):
        return [[_text(row[name]) for name in self.columns] for row in self]


@dataclass
class _Column:
    """The lines of the cells of a column, its name first, and their layout."""

    cells: list[list[str]]
    width: int
    is_number: bool

    @classmethod
    def of(cls, table, name, widest):
        # An empty text has no lines, but its cell needs one.
        texts = [name, *(_text(row[name]) for row in table)]
        cells = [wrap(text, widest, break_on_hyphens=False) or [""] for text in texts]
        width = max(len(line) for cell in cells for line in cell)
        return cls(cells, width, any(isinstance(row[name], Real) for row in table))

    def set(self, line) -> str:
        return line.rjust(self.width) if self.is_number else line.ljust(self.width)


def _blocks(keys, others):
    """Divide columns into blocks that fit in a line, each starting with the keys."""
    block = list(keys)
    for column in others:
        width = sum(each.width + len(_GAP) for each in block) + column.width
        # A block gets at least one column, even if it is too wide.
        if width > _LINE and len(block) > len(keys):
            yield block
            block = list(keys)
        block.append(column)
    if block:
        yield block


def _block_text(columns) -> str:
    lines = [
        line
        for row in zip(*(column.cells for column in columns), strict=True)
        for line in zip_longest(*row, fillvalue="")
    ]
    return "\n".join(
        _GAP.join(
            column.set(text) for column, text in zip(columns, line, strict=True)
        ).rstrip()
        for line in lines
    )


def _text(value) -> str:
    if value is None:
        return ""
    # Before `Real`, which ints belong to as well.
    if isinstance(value, bool | int | str):
        return str(value)
    return f"{value:.4g}" if isinstance(value, Real) else str(value)
