"""Settings of the documentation: ``sphinx-build -W -b html docs docs/_build/html``."""

import sktransfer

project = "sktransfer"
author = "The sktransfer developers"
copyright = "the sktransfer developers, BSD-3-Clause"
version = release = sktransfer.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
html_theme = "pydata_sphinx_theme"
html_title = f"sktransfer {release}"
html_show_sourcelink = False
html_sidebars = dict.fromkeys(
    ("changelog", "model_card", "performance", "scaling_out"), []
)
html_theme_options = {
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "navbar_end": ["theme-switcher"],
}

autosummary_generate = True
# Methods stand on the page of their class, not on pages of their own.
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib",),
    "capture_repr": ("_repr_html_", "__repr__"),
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 0,
    "download_all_examples": False,
}
