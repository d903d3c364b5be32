import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

import sktransfer

FOLDER = Path(sktransfer.__file__).parent
# What a module may import, one row above the other; modules of one folder may import
# each other, but not in circles.
LAYERS = [
    {"_tables", "_version"},
    {"inputs"},
    {"backbones"},
    {"embedding"},
    {"finetuning"},
    {"choosing", "displays", "saving"},
    {"datasets"},
    {"__init__"},
]
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}


def imports_of(code):
    """Modules of the package that code imports, dotted; the package is __init__."""
    for node in ast.walk(ast.parse(code)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for package, *path in (name.split(".") for name in names):
            if package == "sktransfer":
                # A name of the package that is no module comes from __init__.
                known = path and path[0] in LEVEL
                yield ".".join(path[:2]) if known else "__init__"


def modules():
    """Each module of the package, dotted, with its code."""
    for path in sorted(FOLDER.rglob("*.py")):
        *folders, name = path.relative_to(FOLDER).with_suffix("").parts
        if folders and name == "__init__":
            # Opening one folder would else import others.
            assert len(ast.parse(path.read_text()).body) == 1
        else:
            yield ".".join([*folders, name]), path.read_text()


def test_imports_go_down_only():
    for module, code in modules():
        folder, *_ = module.split(".")
        for name in imports_of(code):
            below, *_ = name.split(".")
            inside = folder == below and module != folder
            assert inside or LEVEL[below] < LEVEL[folder], f"{module} imports {name}"


def test_no_modules_import_each_other_in_circles():
    imported = {module: {*imports_of(code)} for module, code in modules()}
    while imported:
        done = [
            name for name, others in imported.items() if others.isdisjoint(imported)
        ]
        assert done, f"a circle among {sorted(imported)}"
        for name in done:
            del imported[name]


def test_all_modules_are_on_the_map_for_contributors():
    page = (FOLDER.parent / "docs" / "contributing.rst").read_text()
    _, page = page.split("\nMap\n---\n")
    page, _ = page.split("\nRecipes\n-------\n")
    for module, _ in modules():
        *folder, name = module.split(".")
        lines = page.split(f"\n``{folder[0]}/``" if folder else "\nOn top\n")[1]
        # Up to the next folder.
        assert f"``{name}.py``" in lines.split("\n\n")[0], f"{module} is missing"


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import sktransfer", ["__init__"]),
        ("import numpy, sktransfer as s", ["__init__"]),
        ("def f():\n    import sktransfer.inputs._images", ["inputs._images"]),
        ("from sktransfer import load, _tables", ["__init__", "_tables"]),
        ("from sktransfer import *", ["__init__"]),
        ("from sktransfer.inputs import _images", ["inputs._images"]),
        ("from sktransfer.saving._file import load", ["saving._file"]),
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


def test_only_readers_know_how_images_are_made_of_pixels():
    """Other kinds of samples then need no change anywhere else."""
    for module, code in modules():
        if module.startswith("inputs."):
            continue
        words = {*ast.walk(ast.parse(code))}
        docs = {id(node.body[0].value) for node in words if ast_docstring(node)}
        for node in words:
            names = [getattr(node, key, "") for key in ("id", "attr", "name", "arg")]
            if isinstance(node, ast.Constant) and id(node) not in docs:
                names.append(node.value)
            text = " ".join(name for name in names if isinstance(name, str))
            assert not re.search(r"PIL|(?i:crop|pixel)", text), f"{module}: {text}"


def ast_docstring(node):
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    return isinstance(node, kinds) and ast.get_docstring(node) is not None
