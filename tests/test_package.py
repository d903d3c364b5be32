import ast
import importlib
import sys
from pathlib import Path

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
    "_head",
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


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("sktransfer"):
            if node.module == "sktransfer":
                yield from (alias.name for alias in node.names)
            else:
                yield node.module.removeprefix("sktransfer.")


def test_imports_go_down_only():
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    for path in FOLDER.glob("*.py"):
        for name in imports_of(path):
            assert level[name] < level[path.stem], f"{path.stem} imports {name}"


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
