"""What decides what a network computes, beside the tensors of its state: a digest.

Two networks may have equal tensors and reprs, and still compute different things: a
number of heads, the code of a ``forward``, a buffer that is not saved. What cannot be
described makes a digest that no other network shares. Left out are containers and
objects that a function takes from its module: they change as a program runs.
"""

import builtins
import copyreg
import dis
import enum
import functools
import hashlib
import logging
import sys
import threading
import types
import uuid
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import nn

_PLAIN = (
    bool | int | float | complex | str | bytes | None | types.EllipsisType | range
    | enum.Enum | torch.dtype | torch.device | torch.memory_format | torch.layout
)  # fmt: skip
_WRAPPER = type(functools.lru_cache(len))
# What a function may take from its module, to be described.
_CALLED = types.FunctionType | type | functools.partial | nn.Module | _WRAPPER
_SHARED = _PLAIN | tuple | _CALLED
# What its type and name say all of.
_NAMED = (
    types.ModuleType,
    logging.Logger,
    type(threading.Lock()),
    type(threading.RLock()),
)
# Of a module, what is described otherwise or decides nothing in evaluation mode.
_INTERNAL = {*vars(nn.Module()), "dynamo_ctx"}  # the latter of torch.compile
_CLASS_INTERNAL = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "_abc_impl",
    "__annotations__", "__annotate_func__", "__annotations_cache__", "__slotnames__",
    "__firstlineno__", "__static_attributes__", "__dataclass_fields__",
    "__dataclass_params__", "__match_args__",
}  # fmt: skip


def behaviour_digest(module: nn.Module) -> str:
    """SHA-256, in hex digits, of what a module computes with its tensors."""
    return _Description().of(module)


class _Description:
    """Digests of things, made of those of their parts."""

    def __init__(self):
        # Id -> digest, and the thing, so that no other one gets the id.
        self._known = {}
        self._open = []

    def of(self, thing) -> str:
        if isinstance(thing, _PLAIN):
            return _digest(type(thing).__name__, repr(thing))
        if id(thing) in self._known:
            return self._known[id(thing)][0]
        if id(thing) in self._open:
            return _digest("circle", len(self._open) - self._open.index(id(thing)))
        self._open.append(id(thing))
        try:
            digest = _digest(type(thing).__name__, *self._parts(thing))
        except Exception:
            # Too deep, without data, or nothing that can be looked into.
            digest = uuid.uuid4().hex
        self._open.pop()
        self._known[id(thing)] = digest, thing
        return digest

    def _parts(self, thing):
        for kinds, parts in _WAYS:
            if isinstance(thing, kinds):
                return parts(self, thing)
        if hasattr(thing, "__dict__") or copyreg._slotnames(type(thing)):
            return [self.of(type(thing)), *self._pairs(_state(thing))]
        text = repr(thing)
        # An address says nothing.
        return [uuid.uuid4() if " at 0x" in text else text]

    def _pairs(self, mapping) -> list:
        return [self.of(item) for pair in mapping.items() for item in pair]

    def _module(self, module):
        known = _is_known(type(module))
        own = {
            name: value
            for name, value in sorted(vars(module).items())
            if name not in _INTERNAL
            # torch's own secrets are of all kinds.
            and not (known and name[0] == "_" and not isinstance(value, _PLAIN))
        }
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        unsaved = sorted(module._non_persistent_buffers_set)
        tensors = [module._buffers[name] for name in unsaved]
        # Of torch.fx and torch.jit, whose classes have none.
        code = getattr(module, "code", None)
        yield self.of(type(module))
        yield from self._pairs(own)
        yield from map(self.of, [hooks, tensors])
        yield code if isinstance(code, str) else ""
        yield from self._pairs(module._modules)

    def _scripted(self, module):
        # Its tensors may be constants of code that is not to be seen.
        return [uuid.uuid4()]

    def _class(self, kind):
        for base in kind.__mro__:
            yield _name(base)
            if not _is_known(base):
                own = {k: v for k, v in vars(base).items() if k not in _CLASS_INTERNAL}
                yield from self._pairs(dict(sorted(own.items())))

    def _function(self, function):
        yield _name(function)
        if not _is_known(function):
            code = function.__code__
            cells = [_contents(cell) for cell in function.__closure__ or ()]
            parts = [code, function.__defaults__, function.__kwdefaults__, cells]
            yield from map(self.of, parts)
            yield from self._pairs(_taken(code, function.__globals__))

    def _code(self, code):
        parts = [code.co_code, code.co_consts, code.co_names, code.co_freevars]
        return map(self.of, parts)

    def _method(self, method):
        return map(self.of, [method.__self__, method.__func__])

    def _builtin(self, function):
        owner = function.__self__
        owned = not isinstance(owner, types.ModuleType | None)
        return [_name(function), self.of(owner) if owned else ""]

    def _partial(self, partial):
        return map(self.of, [partial.func, partial.args, partial.keywords])

    def _property(self, thing):
        return map(self.of, [thing.fget, thing.fset])

    def _wrapped(self, thing):
        return [self.of(getattr(thing, "func", None) or thing.__wrapped__)]

    def _tensor(self, tensor):
        about = [tensor.dtype, tuple(tensor.shape), tensor.layout]
        if tensor.is_meta:
            return about
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        value = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        return [*about, value.view(-1).view(torch.uint8).numpy().tobytes()]

    def _array(self, array):
        if array.dtype.hasobject:
            return [array.shape, *map(self.of, array.ravel())]
        return [array.dtype, array.shape, array.tobytes()]

    def _dict(self, mapping):
        return [*self._subclass(mapping), *self._pairs(mapping)]

    def _list(self, things):
        return [*self._subclass(things), *map(self.of, things)]

    def _set(self, things):
        return [*self._subclass(things), *sorted(map(self.of, things))]

    def _subclass(self, thing):
        if _is_known(type(thing)):
            return []
        return [self.of(type(thing)), *self._pairs(_state(thing))]

    def _weak(self, reference):
        return [self.of(reference())]

    def _by_name(self, thing):
        return [getattr(thing, "__name__", getattr(thing, "name", ""))]

    def _graph(self, graph):
        return [graph]


_WAYS = (
    (torch.jit.ScriptModule, _Description._scripted),
    (nn.Module, _Description._module),
    (torch.Tensor, _Description._tensor),
    ((np.ndarray, np.generic), _Description._array),
    (type, _Description._class),
    (types.FunctionType, _Description._function),
    (types.MethodType, _Description._method),
    (types.BuiltinFunctionType, _Description._builtin),
    (types.CodeType, _Description._code),
    (functools.partial, _Description._partial),
    (property, _Description._property),
    (
        (staticmethod, classmethod, functools.cached_property, _WRAPPER),
        _Description._wrapped,
    ),
    (dict, _Description._dict),
    ((set, frozenset), _Description._set),
    ((list, tuple), _Description._list),
    (weakref.ref, _Description._weak),
    (_NAMED, _Description._by_name),
    (torch.fx.Graph, _Description._graph),
)


def _digest(*texts) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text if isinstance(text, bytes) else str(text).encode()
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()


def _state(thing) -> dict:
    """Attributes of an object, those of its slots included."""
    slots = {
        name: getattr(thing, name)
        for name in copyreg._slotnames(type(thing))
        if hasattr(thing, name)
    }
    return dict(sorted({**slots, **getattr(thing, "__dict__", {})}.items()))


def _name(thing) -> str:
    module = thing.__module__ or ""
    package = sys.modules.get(module.split(".")[0])
    return f"{module}.{thing.__qualname__} {getattr(package, '__version__', '')}"


def _is_known(thing) -> bool:
    """Whether a class or function is that of its name, and of an installed version."""
    if thing.__module__ == "builtins":
        # So says also what `exec` has made.
        return getattr(builtins, thing.__name__, None) is thing
    return _is_installed(thing.__module__ or "")


def _is_installed(module: str) -> bool:
    package = module.split(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    installed = {"site-packages", "dist-packages"} & {*Path(file).parts}
    own = package == "__main__"
    return not own and (package in sys.stdlib_module_names or bool(installed))


def _contents(cell):
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _taken(code, space: dict) -> dict:
    """What a function, or one inside of it, takes from its module and from others."""
    taken = {}
    for name in sorted(_globals_of(code)):
        value = space.get(name)
        if isinstance(value, _SHARED):
            taken[name] = value
        elif isinstance(value, types.ModuleType) and not _is_installed(value.__name__):
            # Of a module of one's own, what the names in this code may mean.
            found = {n: getattr(value, n, None) for n in _names_of(code)}
            for n, inner in sorted(found.items()):
                if isinstance(inner, _SHARED) and inner is not None:
                    taken[f"{name}.{n}"] = inner
    return taken


def _globals_of(code) -> set[str]:
    names = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    return names.union(*map(_globals_of, _inner(code)))


def _names_of(code) -> set[str]:
    return {*code.co_names}.union(*map(_names_of, _inner(code)))


def _inner(code) -> list:
    return [const for const in code.co_consts if isinstance(const, types.CodeType)]
