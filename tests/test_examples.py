"""That each example of the gallery has a picture of its own."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
THUMBNAIL = re.compile(r"^# sphinx_gallery_thumbnail_path = '(.+)'$", re.M)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_draws_or_names_its_picture(path):
    code = path.read_text(encoding="utf-8")
    if path.stem.startswith("plot_"):
        assert "plt.show()" in code or re.search(r"Display\.from_\w+\(", code)
    else:
        # It is not run when the documentation is built.
        picture = ROOT / "docs" / THUMBNAIL.search(code)[1]
        assert 0 < picture.stat().st_size < 60_000
