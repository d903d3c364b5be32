"""That the tests run the code of every page: pytest runs what stands after ``>>>``."""

import doctest
import re
from pathlib import Path

import pytest

from tests.pages import blocks, leave_out

ROOT = Path(__file__).parent.parent
# Made when the documentation is built.
MADE = {"_build", "_templates", "auto_examples", "generated"}
PAGES = [
    ROOT / "README.md",
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.rst"))
        if MADE.isdisjoint(page.parts) and page.name != "sg_execution_times.rst"
    ),
]


def test_pytest_collects_all_pages(pytestconfig):
    patterns = pytestconfig.getini("testpaths")
    collected = {page for pattern in patterns for page in ROOT.glob(pattern)}
    assert collected >= {*PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_is_run_or_a_comment_says_why_not(page):
    for block in blocks(page):
        place = f"{page.name}, line {block.lines[0]}"
        if block.is_python() and not block.is_run():
            assert block.kind == "not run", (
                f"{place}: code that no test runs. Put '>>> ' before each statement, "
                "and what it prints below, or '.. not run: <reason>' above."
            )
        if block.kind == "not run":
            assert not block.is_run(), f"{place}: is run"
            assert len(block.note.split()) > 1, f"{place}: why is it not run?"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_printed_is_compared(page):
    examples = doctest.DocTestParser().get_examples(page.read_text(encoding="utf-8"))
    for example in examples:
        place = f"{page.name}, line {example.lineno + 1}"
        assert doctest.SKIP not in example.options, place
        assert example.want.strip() != "...", f"{place}: anything would do"


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 5
    missing = [
        name for name in targets if "://" not in name and not (ROOT / name).exists()
    ]
    assert not missing


RST = """
.. needs: pytest, no-such-library, numpy>=99

A sentence::

    >>> import no_such_module

    >>> second

.. code-block:: bash

    ls

..
    >>> hidden

.. note::

    No code::

        code()

    .. not run: as an
       example

    .. code-block:: python
        :caption: of a block

        more()

The end::
"""
MARKDOWN = """
<!-- not run: as an example -->
```python
code()
```

Text

```bash
ls
```
```python
>>> import os
```
"""


def test_blocks_of_pages_are_found_with_the_comments_before_them(tmp_path):
    (tmp_path / "page.rst").write_text(RST)
    needing, shell, hidden, code, more = blocks(tmp_path / "page.rst")
    assert needing.missing() == ["no-such-library", "numpy>=99"]
    assert needing.is_run()
    assert [RST.splitlines()[i - 1] for i in needing.lines if i in (6, 8)] == [
        "    >>> import no_such_module",
        "    >>> second",
    ]
    assert not shell.is_python()
    assert not shell.missing()
    assert hidden.is_run()
    assert code.is_python()
    assert (code.is_run(), code.kind) == (False, "")
    assert (more.first, more.kind, more.note) == ("more()", "not run", "as an")


def test_blocks_of_markdown_are_found(tmp_path):
    (tmp_path / "page.md").write_text(MARKDOWN)
    code, shell, run = blocks(tmp_path / "page.md")
    assert (code.first, code.kind, code.note) == ("code()", "not run", "as an example")
    assert code.is_python()
    assert not code.is_run()
    assert not shell.is_python()
    assert run.is_run()
    assert (shell.kind, run.kind) == ("", "")


def test_a_block_whose_module_is_missing_is_left_out(tmp_path):
    page = tmp_path / "page.rst"
    page.write_text(RST)
    examples = doctest.DocTestParser().get_examples(RST)
    leave_out(page, examples)
    skipped = [example.options.get(doctest.SKIP, False) for example in examples]
    assert skipped == [True, True, False]
