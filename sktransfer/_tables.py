"""Rows of results that print as a table."""

import html
from numbers import Real


class Table(list):
    """A list of dicts of the same keys, which prints as a table.

    ``pandas.DataFrame(table)`` makes a frame of it.
    """

    @property
    def columns(self):
        return list(self[0]) if self else []

    def __repr__(self):
        texts = [self.columns, *self._texts()]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        numbers = [
            any(isinstance(row[name], Real) for row in self) for name in self.columns
        ]
        return "\n".join(
            "  ".join(
                text.rjust(width) if number else text.ljust(width)
                for text, width, number in zip(row, widths, numbers, strict=True)
            ).rstrip()
            for row in texts
        )

    def to_markdown(self):
        """Give the table as Markdown."""
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


def _text(value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | int | str):
        return str(value)
    return f"{value:.4g}" if isinstance(value, Real) else str(value)
