"""What decides what a network computes, besides the tensors of its state: a digest.

Two networks may have equal tensors and reprs and still compute different things: a
number of heads, the code of a ``forward``, a buffer that is not saved. A class or
function of an installed package is described by its name and the package's version, one
of the user's own by its code in memory, any other object by what pickle would write.
What cannot be described gets a digest that no other network shares.
"""

import builtins
import copyreg
import dis
import enum
import functools
import hashlib
import itertools
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

_PLAIN = {bool, int, float, complex, str, bytes, type(None), types.EllipsisType}
_CACHED = type(functools.lru_cache(len))
# What a function uses of its module, and keeps: lists, dicts and other objects there
# change as a program runs.
_KEPT = (
    bool | int | float | complex | str | bytes | range | tuple | enum.Enum
    | torch.dtype | torch.device | torch.memory_format | torch.layout
    | types.FunctionType | type | functools.partial | nn.Module | _CACHED
)  # fmt: skip
# Attributes that are described otherwise or decide nothing in evaluation mode;
# torch.compile sets the last of them.
_INTERNAL = {*vars(nn.Module()), "dynamo_ctx"}


def behaviour_digest(module: nn.Module) -> str:
    """SHA-256, in hex digits, of what a module computes with its tensors."""
    return _Digests().of(module)


class _Digests:
    """Digests of objects, made of those of their parts."""

    def __init__(self):
        # By id; with the object, so that no other one is given its id.
        self._known = {}
        self._open = []

    def of(self, thing) -> str:
        if type(thing) in _PLAIN:
            value = thing if isinstance(thing, bytes) else repr(thing)
            return _sha256([type(thing).__name__, value])
        if id(thing) in self._known:
            return self._known[id(thing)][0]
        if id(thing) in self._open:
            return _sha256(["circle", str(self._open[::-1].index(id(thing)))])
        self._open.append(id(thing))
        try:
            digests = [self.of(part) for part in _parts(thing)]
            if isinstance(thing, set | frozenset):
                # Their order is another one in each process.
                digests.sort()
            digest = _sha256([type(thing).__name__, *digests])
        except Exception:
            # Too deep, without data, or nothing that pickle can look into.
            digest = uuid.uuid4().hex
        self._open.pop()
        self._known[id(thing)] = digest, thing
        return digest


def _sha256(texts: list[str | bytes]) -> str:
    data = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return hashlib.sha256(b"\n".join(data)).hexdigest()


@functools.singledispatch
def _parts(thing) -> list:
    """Return simpler objects that say together what an object is."""
    # A backbone is a deep copy, which holds no more than this.
    reduce = copyreg.dispatch_table.get(type(thing))
    reduced = reduce(thing) if reduce else thing.__reduce_ex__(4)
    if isinstance(reduced, str):
        return [type(thing), reduced, getattr(thing, "__dict__", None)]
    # Items of lists and dicts come as iterators.
    return [tuple(part) if isinstance(part, Iterator) else part for part in reduced]


@_parts.register(torch.jit.ScriptModule)
@_parts.register(Iterator)
def _unknown(thing):
    # Tensors may be constants of compiled code; an iterator changes when it is used.
    raise TypeError(f"{thing!r} cannot be looked into")


@_parts.register(dict)
def _dict(mapping):
    if type(mapping) is not dict:
        return _parts.dispatch(object)(mapping)
    # Most attributes are in one, and this is faster.
    return [*itertools.chain(*mapping.items())]


@_parts.register(nn.Module)
def _module(module):
    installed = _is_installed(type(module))
    own = {
        name: value
        for name, value in sorted(vars(module).items())
        if name not in _INTERNAL
        # Private attributes of torch's modules change with use.
        and not (installed and name[0] == "_" and type(value) not in _PLAIN)
    }
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    unsaved = sorted(module._non_persistent_buffers_set)
    tensors = [module._buffers[name] for name in unsaved]
    # Modules of torch.fx have their code here, and a class that says nothing.
    code = getattr(module, "code", None)
    code = code if isinstance(code, str) else None
    return [type(module), own, hooks, tensors, code, module._modules]


@_parts.register(torch.Tensor)
def _tensor(tensor):
    about = [tensor.dtype, tuple(tensor.shape), tensor.layout]
    if tensor.is_meta:
        return about
    value = tensor.detach().to_dense().cpu().resolve_conj().resolve_neg().contiguous()
    return [*about, value.view(-1).view(torch.uint8).numpy().tobytes()]


@_parts.register(type)
def _class(kind):
    parts = []
    for base in kind.__mro__:
        own = {} if _is_installed(base) else vars(base)
        parts += [_name(base), {k: own[k] for k in sorted(own) if _decides(k, own[k])}]
    return parts


def _decides(name: str, value) -> bool:
    """Whether an attribute of a class says what it does, not where or how it is."""
    special = name.startswith("__") or name == "_abc_impl"
    return not special or callable(value) or hasattr(value, "__wrapped__")


@_parts.register(types.FunctionType)
def _function(function):
    if _is_installed(function):
        return [_name(function)]
    # Not the text of its file, which may have been edited since it was imported, and
    # is not that of a method that was replaced.
    code = function.__code__
    given = [function.__defaults__, function.__kwdefaults__, function.__closure__]
    return [_name(function), code, *given, _taken(code, function.__globals__)]


def _taken(code: types.CodeType, space: dict) -> list:
    """What a function takes from its module, and from the user's own that it imports.

    Of the latter, what any name in its code may mean: whether ``x.name`` is a function
    of a module is known only when it runs.
    """
    codes = [*_codes(code)]
    steps = itertools.chain(*map(dis.get_instructions, codes))
    names = {s.argval for s in steps if s.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    spaces, taken = [space], []
    for space in spaces:
        for name in sorted(names & space.keys()):
            value = space[name]
            if isinstance(value, _KEPT):
                taken.append((name, value))
            elif isinstance(value, types.ModuleType) and not _is_installed(value):
                new = all(vars(value) is not known for known in spaces)
                spaces += [vars(value)] * new
        names = {name for code in codes for name in code.co_names}
    return taken


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Code of a function, and of those inside it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


@_parts.register(types.CodeType)
def _code(code):
    return [code.co_code, code.co_consts, code.co_names, code.co_freevars]


_parts.register(weakref.ref, lambda reference: [reference()])
_parts.register(types.CellType, lambda cell: [cell.cell_contents])
_parts.register(types.MethodType, lambda method: [method.__self__, method.__func__])
_parts.register(property, lambda thing: [thing.fget, thing.fset])
for _kind in (staticmethod, classmethod, _CACHED):
    _parts.register(_kind, lambda thing: [thing.__wrapped__])
# Pickle would take these apart for ever, or in an order that varies.
for _kind in (tuple, set, frozenset):
    _parts.register(
        _kind, lambda thing: [type(thing), getattr(thing, "__dict__", None), *thing]
    )
# Pickle refuses these, of which the name or the type says all that matters.
_parts.register(types.ModuleType, lambda module: [module.__name__])
_parts.register(torch.layout, lambda layout: [repr(layout)])
for _kind in (type(threading.Lock()), type(threading.RLock())):
    _parts.register(_kind, lambda lock: [])


def _name(thing) -> str:
    module = thing.__module__ or ""
    package = sys.modules.get(module.split(".")[0])
    return f"{module}.{thing.__qualname__} {getattr(package, '__version__', '')}"


def _is_installed(thing) -> bool:
    """Whether a class, function or module belongs to an installed package."""
    is_module = isinstance(thing, types.ModuleType)
    module = (thing.__name__ if is_module else thing.__module__) or ""
    if module == "builtins":
        # What `exec` has made says so too.
        return getattr(builtins, thing.__name__, None) is thing
    package = module.split(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    installed = {"site-packages", "dist-packages"} & {*Path(file).parts}
    own = package == "__main__"
    return not own and (package in sys.stdlib_module_names or bool(installed))
