"""What decides what a network computes, beside the tensors of its state: a digest.

Two networks may have equal tensors and reprs, and still compute different things: a
number of heads, the code of a ``forward``, a buffer that is not saved. What cannot be
described makes a digest that no other network shares.
"""

import builtins
import dis
import enum
import functools
import hashlib
import types
import uuid

import numpy as np
import torch
from torch import nn

_PLAIN = (
    bool | int | float | complex | str | bytes | None | types.EllipsisType | range
    | enum.Enum | torch.dtype | torch.device | torch.memory_format | torch.layout
)  # fmt: skip
# What is known by its name: its code is that of a version.
_KNOWN = ("torch", "torchvision", "abc", "typing", "collections")
# Of a module, what is described otherwise or decides nothing in evaluation mode.
_INTERNAL = {
    *vars(nn.Module()),
    "dynamo_ctx",  # of torch.compile
}
_CLASS_INTERNAL = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "_abc_impl",
    "__annotations__", "__annotate_func__", "__annotations_cache__",
    "__firstlineno__", "__static_attributes__",
}  # fmt: skip


def behaviour_digest(module: nn.Module) -> str:
    """SHA-256, in hex digits, of what a module computes with its tensors."""
    description = _Description()
    description.add(module)
    return description.digest.hexdigest()


class _Description:
    """Things one after the other, each of them once, as a digest."""

    def __init__(self):
        self.digest = hashlib.sha256()
        # Things are kept, so that no other one gets the id.
        self._seen = {}

    def _put(self, *texts) -> None:
        for text in texts:
            data = text if isinstance(text, bytes) else str(text).encode()
            self.digest.update(b"%d:" % len(data) + data)

    def add(self, thing) -> None:
        if isinstance(thing, _PLAIN):
            self._put(type(thing).__name__, repr(thing))
            return
        number, _ = self._seen.setdefault(id(thing), (len(self._seen), thing))
        self._put(type(thing).__name__, number)
        if number == len(self._seen) - 1:
            self._describe(thing)

    def _all(self, things) -> None:
        things = list(things)
        self._put(len(things))
        for thing in things:
            self.add(thing)

    def _describe(self, thing) -> None:
        for kinds, describe in _WAYS:
            if isinstance(thing, kinds):
                describe(self, thing)
                return
        if hasattr(thing, "__dict__"):
            self.add(type(thing))
            self.add(dict(sorted(vars(thing).items())))
        else:
            text = repr(thing)
            # An address says nothing, to another process at least.
            self._put(uuid.uuid4() if " at 0x" in text else text)

    def _module(self, module) -> None:
        self.add(type(module))
        known = _is_known(type(module))
        for name, value in sorted(vars(module).items()):
            if name not in _INTERNAL and not (known and name.startswith("_")):
                self._all([name, value])
        self._all(module._forward_pre_hooks.values())
        self._all(module._forward_hooks.values())
        unsaved = sorted(module._non_persistent_buffers_set)
        self._all(module._buffers[name] for name in unsaved)
        self._all(item for pair in module._modules.items() for item in pair)
        if isinstance(code := getattr(module, "code", None), str):
            # Of torch.fx and torch.jit, whose classes have none.
            self._put(code)

    def _class(self, kind) -> None:
        for base in kind.__mro__:
            self._put(base.__module__, base.__qualname__)
            if not _is_known(base):
                for name, value in sorted(vars(base).items()):
                    if name not in _CLASS_INTERNAL:
                        self._all([name, value])

    def _function(self, function) -> None:
        self._put(function.__module__, function.__qualname__)
        if _is_known(function):
            return
        code, defaults = function.__code__, function.__defaults__
        self._all([code, defaults, function.__kwdefaults__])
        for cell in function.__closure__ or ():
            self._all(_contents(cell))
        for name in sorted(_globals_of(code)):
            value = function.__globals__.get(name)
            # Not data: it may be large, and change without any meaning.
            if isinstance(value, _PLAIN | types.FunctionType | type):
                self._all([name, value])

    def _code(self, code) -> None:
        self._put(code.co_code)
        self._all([code.co_consts, code.co_names, code.co_freevars])

    def _method(self, method) -> None:
        self._all([method.__self__, method.__func__])

    def _builtin(self, function) -> None:
        self._put(function.__module__, function.__qualname__)
        owner = function.__self__
        if not isinstance(owner, types.ModuleType | None):
            self.add(owner)

    def _partial(self, partial) -> None:
        self._all([partial.func, partial.args, partial.keywords])

    def _property(self, thing) -> None:
        self._all([thing.fget, thing.fset])

    def _wrapped(self, thing) -> None:
        self.add(thing.__func__)

    def _tensor(self, tensor) -> None:
        value = tensor.detach().cpu().contiguous()
        self._put(value.dtype, tuple(value.shape))
        self._put(value.view(-1).view(torch.uint8).numpy().tobytes())

    def _array(self, array) -> None:
        self._put(array.dtype, array.shape)
        if array.dtype.hasobject:
            self._all(array.ravel())
        else:
            self._put(array.tobytes())

    def _dict(self, mapping) -> None:
        self._all(item for pair in mapping.items() for item in pair)

    def _set(self, things) -> None:
        self._all(sorted(things, key=repr))

    def _named(self, module) -> None:
        self._put(module.__name__)


_WAYS = (
    (nn.Module, _Description._module),
    (torch.Tensor, _Description._tensor),
    ((np.ndarray, np.generic), _Description._array),
    (type, _Description._class),
    (types.FunctionType, _Description._function),
    (types.MethodType, _Description._method),
    (types.BuiltinFunctionType, _Description._builtin),
    (types.CodeType, _Description._code),
    (types.ModuleType, _Description._named),
    (functools.partial, _Description._partial),
    (property, _Description._property),
    ((staticmethod, classmethod), _Description._wrapped),
    (dict, _Description._dict),
    ((set, frozenset), _Description._set),
    ((list, tuple), _Description._all),
)


def _is_known(thing) -> bool:
    package = (thing.__module__ or "").split(".")[0]
    if package == "builtins":
        # So says also what `exec` has made.
        return getattr(builtins, thing.__name__, None) is thing
    return package in _KNOWN


def _contents(cell) -> list:
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def _globals_of(code) -> set[str]:
    """Names that a function, or one inside of it, takes from its module."""
    names = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return names.union(*map(_globals_of, inner))
