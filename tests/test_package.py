import ast
import importlib
import sys
from pathlib import Path

import pytest

import sktransfer

FOLDER = Path(sktransfer.__file__).parent
LEAVES = {
    "_decoding",
    "_rows",
    "_stages",
    "_weights",
    "_shards",
    "_tiny",
    "_fusion",
    "_augment",
    "_scores",
    "_tables",
    "_drawing",
    "_files",
    "_lanes",
    "_behaviour",
    "_networks",
    "_net_params",
    "_head",
    "_skops",
    "_version",
}
# What a module may import, one row above the other.
LAYERS = [
    {"_signatures"},
    LEAVES,
    {"_images", "_backbones", "_cache", "_displays", "datasets"},
    {"_loading", "_passes", "_reprs"},
    {"_embeddings"},
    {"_training"},
    {"_tuning"},
    {"_finetune", "_extractor"},
    {"_classifier", "_regressor", "_candidates", "_pictures", "_sources"},
    {"_ranking", "_attribution"},
    {"_selector", "_report", "_records", "_cards", "_onnx", "_costs"},
    {"_persistence"},
    {"__init__"},
]


LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}


def imports_of(code):
    """Modules of the package that code imports; the package itself is __init__."""
    for node in ast.walk(ast.parse(code)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for package, module, *_ in (f"{name}..".split(".") for name in names):
            if package == "sktransfer":
                # A name of the package that is no module comes from __init__.
                yield module if module in LEVEL else "__init__"


def test_imports_go_down_only():
    for path in FOLDER.glob("*.py"):
        for name in imports_of(path.read_text()):
            assert LEVEL[name] < LEVEL[path.stem], f"{path.stem} imports {name}"


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import sktransfer", ["__init__"]),
        ("import numpy, sktransfer as s", ["__init__"]),
        ("def f():\n    import sktransfer._cache", ["_cache"]),
        ("from sktransfer import load, _cache", ["__init__", "_cache"]),
        ("from sktransfer import *", ["__init__"]),
        ("from sktransfer._cache import a, b", ["_cache", "_cache"]),
        ("from sktransfer._cache import load", ["_cache"]),
        ("import sktransfers\nfrom os import path", []),
    ],
)
def test_each_way_to_import_is_seen(code, modules):
    assert list(imports_of(code)) == modules


def test_all_public_names_are_there_sorted():
    assert sktransfer.__all__ == sorted(sktransfer.__all__)
    for name in sktransfer.__all__:
        assert getattr(sktransfer, name).__doc__


def test_all_public_names_are_in_the_reference():
    reference = (FOLDER.parent / "docs" / "api.rst").read_text().split()
    missing = {name for name in sktransfer.__all__ if name not in reference}
    assert missing == {"datasets"}
    assert {f"datasets.{name}" for name in sktransfer.datasets.__all__} <= {*reference}


def test_import_opens_no_file_but_modules_and_no_connection():
    opened, watching = [], True

    def hook(event, args):
        if watching and event == "open" and not str(args[0]).endswith((".py", ".pyc")):
            opened.append(args[0])
        elif watching and event.startswith(("socket.", "subprocess.")):
            opened.append(event)

    def ours():
        return [name for name in sys.modules if name.split(".")[0] == "sktransfer"]

    before = {name: sys.modules.pop(name) for name in ours()}
    try:
        sys.addaudithook(hook)  # which cannot be taken away again
        importlib.import_module("sktransfer")
    finally:
        watching = False
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)
    assert not [path for path in opened if "__pycache__" not in str(path)]
