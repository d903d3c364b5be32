"""Settings of the documentation: ``sphinx-build -W -b html docs docs/_build/html``."""

import logging

import sktransfer

project = "sktransfer"
author = "The sktransfer developers"
copyright = "the sktransfer developers, BSD-3-Clause"
version = release = sktransfer.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
# What stands between single backticks is a link, if it is the name of something.
default_role = "autolink"
templates_path = ["_templates"]
exclude_patterns = ["_build"]
html_theme = "pydata_sphinx_theme"
html_title = f"sktransfer {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["custom.css"]
# Pages have a sidebar if others lie below them.
html_sidebars = {"*": [], "api": ["sidebar-nav-bs"], "user_guide": ["sidebar-nav-bs"]}
html_theme_options = {
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "navbar_end": ["theme-switcher"],
}

autosummary_generate = True
# Methods stand on the page of their class, not on pages of their own.
numpydoc_show_class_members = False
# Without a network, types would be called ``python:str``.
numpydoc_xref_param_type = False
# All checks of public docstrings, but that each has an extended summary, an example and
# a list of what to see also.
numpydoc_validation_checks = {"all", "ES01", "EX01", "SA01"}
numpydoc_validation_exclude = {
    # The steps of reading, a sentence each; `Reader` tells what they take and give.
    r"\.(Image|Text|Wave|Spectrogram)Reader\.",
    # Inherited from scikit-learn, and from Exception.
    r"\.(fit_transform|get_feature_names_out|set_callbacks)$",
    r"\.(add_note|with_traceback)$",
}

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "scipy": ("https://docs.scipy.org/doc/scipy", None),
    "sklearn": ("https://scikit-learn.org/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "torchvision": ("https://docs.pytorch.org/vision/stable", None),
    "matplotlib": ("https://matplotlib.org/stable", None),
    "pandas": ("https://pandas.pydata.org/docs", None),
    "skorch": ("https://skorch.readthedocs.io/en/stable", None),
}
intersphinx_timeout = 5


def _not_of_inventories(record):
    return "failed to reach any of the inventories" not in record.getMessage()


# Without a network there are no links to the documentation of others, and that is no
# error of this one. The warning has no type, by which suppress_warnings would know it.
logging.getLogger("sphinx.sphinx.ext.intersphinx").addFilter(_not_of_inventories)

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
