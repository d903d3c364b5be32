"""The blocks of code on the pages of the documentation, and the README."""

import doctest
import importlib.metadata
import re
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

# A comment that is about the next block, as ".. needs: scikit-learn>=1.8, skrub" or, in
# Markdown, "<!-- not run: starts a cluster -->".
_NOTE = re.compile(r"\s*(?:\.\.|<!--) (needs|not run): (.*?)\s*(?:-->)?$")
_DIRECTIVE = re.compile(r"\s*\.\. (?:code-block|code|sourcecode)::\s*(\S*)$")
_FENCE = re.compile(r"\s*```+\s*(\S*)$")
# Sphinx takes what has no language for Python.
_PYTHON = {"", "default", "py", "python", "python3", "pycon", "doctest"}


class Block(NamedTuple):
    """A block of code, and the comment before it."""

    lines: range  # numbered from 1
    language: str
    first: str  # the first line of the code
    kind: str = ""  # of the comment
    note: str = ""

    def missing(self) -> list[str]:
        """Return the requirements of the block that what is installed does not meet."""
        needs = self.note.split(", ") if self.kind == "needs" else []
        return [need for need in needs if not _is_met(Requirement(need))]

    def is_python(self) -> bool:
        return self.language in _PYTHON

    def is_run(self) -> bool:
        """Whether doctest finds the code, which then also compares what it prints."""
        return self.first.startswith(">>> ")


def _is_met(requirement) -> bool:
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(found, prereleases=True)


def blocks(path: Path) -> list[Block]:
    """Return the blocks of code of a page; those in comments, which run, are such."""
    lines = path.read_text(encoding="utf-8").splitlines()
    ends = _ends_of_fences if path.suffix == ".md" else _end_of_indentation
    found, note, number = [], ("", ""), 0
    while number < len(lines):
        language, begin = _opening(lines[number], path.suffix), number + 1
        if match := _NOTE.match(lines[number]):
            note = match.groups()
        if language is not None:
            end = ends(lines, begin)
            code = [line.strip() for line in lines[begin:end]]
            code = [line for line in code if line and not line.startswith(":")]
            if code:
                found.append(Block(range(begin + 1, end + 1), language, code[0], *note))
                note, begin = ("", ""), end
        number = begin
    return found


def leave_out(path: Path, examples: list[doctest.Example]):
    """Mark those examples of a page as skipped that need what is not installed."""
    left_out = [block for block in blocks(path) if block.missing()]
    for example in examples:
        if any(example.lineno + 1 in block.lines for block in left_out):
            example.options[doctest.SKIP] = True


def _opening(line, suffix) -> str | None:
    """Return the language of the block that a line opens, or None."""
    if suffix == ".md":
        match = _FENCE.match(line)
        return match[1] if match else None
    if match := _DIRECTIVE.match(line):
        return match[1]
    hidden = line.strip() == ".."
    literal = line.rstrip().endswith("::") and not line.lstrip().startswith(".. ")
    return "" if hidden or literal else None


def _ends_of_fences(lines, begin) -> int:
    rest = range(begin, len(lines))
    # Counts the closing fence in, which would else open the next block.
    return next((i + 1 for i in rest if _FENCE.match(lines[i])), len(lines))


def _end_of_indentation(lines, begin) -> int:
    margin = _indentation(lines[begin - 1])
    end = begin
    while end < len(lines) and (not lines[end] or _indentation(lines[end]) > margin):
        end += 1
    return end


def _indentation(line) -> int:
    return len(line) - len(line.lstrip())
