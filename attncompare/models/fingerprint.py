"""What a module computes apart from its weights: its classes, their plain settings and, of a user's own, their code.

Two modules with the same weights may still differ: in a number of heads, in an activation, in how `forward` puts the
parts together. Whatever is stored under a key that names the weights needs this beside them.
"""

import hashlib
import inspect
import marshal
import os
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum
from functools import cache, partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType

import numpy as np
import torch
from torch import Tensor, nn

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "attncompare")
"""Packages whose code has a version of its own, which a run records: their classes count by name."""
PLACES = ("__firstlineno__", "__static_attributes__")  # Python's own notes of a class (3.13), which decide nothing


def structure_hash(module: nn.Module, *classes: type) -> str:
    """sha256 of what a module is made of: class and settings of every part, and the code of classes outside LIBRARIES.

    classes: others whose code counts, such as a recorder's.

    Settings: attributes that are numbers, texts, members of an enum, tensors, functions (also partial) or collections of
    these. Code: the source of a class's methods and of the functions and constants that they name, comments included; the
    bytecode where there is no source (typed at a prompt), where the file no longer holds what runs, and of lambdas.
    """
    digest, seen = hashlib.sha256(), set[int]()
    for line in (*_lines(module, seen), *(line for cls in classes for line in _classes(cls, seen))):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def weights_hash(module: nn.Module) -> str:
    """sha256 over the names, shapes and bytes of all parameters and buffers, also of those no checkpoint holds."""
    digest = hashlib.sha256()
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors |= dict(module.named_buffers(remove_duplicate=False))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    """The values of a tensor of any dtype, in row-major order."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _lines(module: nn.Module, seen: set[int]) -> Iterator[str]:
    for path, part in module.named_modules(remove_duplicate=False):
        settings = {name: value for name, value in vars(part).items() if name[0] != "_" and name != "training"}
        hooks = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
        yield f"{path}: {_name(type(part))} {_say(settings, seen)} {_say(hooks, seen)}"
        yield from _classes(type(part), seen)


def _classes(cls: type, seen: set[int]) -> Iterator[str]:
    """The code of a class and of those that it extends, of each once."""
    for base in cls.__mro__:
        if not _of_library(base) and id(base) not in seen:
            seen.add(id(base))
            yield f"{_name(base)} {_say({name: vars(base)[name] for name in vars(base) if name not in PLACES}, seen)}"


def _name(thing: type | FunctionType) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _of_library(thing: type | FunctionType) -> bool:
    return (thing.__module__ or "builtins").partition(".")[0] in (*LIBRARIES, "builtins")


def _say(value: object, seen: set[int]) -> str:
    """A value in words that are the same in every process; "" for what cannot be said."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else value
        return f"{array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_say(one, seen) for one in value) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ",".join(sorted(_say(one, seen) for one in value)) + "}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_say(value[key], seen)}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, partial):
        return _say([value.func, value.args, value.keywords], seen)
    if isinstance(value, Enum):
        return f"{_name(type(value))}.{value.name}"
    if isinstance(value, staticmethod | classmethod | MethodType):
        return _say(value.__func__, seen)
    if isinstance(value, property):
        return _say(value.fget, seen)
    if isinstance(value, FunctionType):
        return _name(value) if _of_library(value) else _code(value, seen)
    return getattr(value, "__qualname__", "")  # builtin functions and types


def _code(function: FunctionType, seen: set[int]) -> str:
    """A function's source, what it has closed over, and the functions and constants that it names."""
    if id(function) in seen:
        return function.__qualname__
    seen.add(id(function))
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    used = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    parts = (_text(function.__code__), function.__defaults__, function.__kwdefaults__, cells, used)
    return " ".join(_say(part, seen) for part in parts)


def _text(code: CodeType) -> str | bytes:
    """The source; the bytecode where there is none, or it may be that of something else."""
    with suppress(OSError, SyntaxError, ValueError):  # no file holds it, or what it holds is no Python
        runs = code in _compiled(code.co_filename, os.path.getmtime(code.co_filename))
        if runs and code.co_name != "<lambda>":  # a line may hold two of them
            return inspect.getsource(code)
    return marshal.dumps(code.replace(co_filename="", co_firstlineno=1), 2)  # 2: later formats depend on references


@cache
def _compiled(path: str, edited: float) -> frozenset[CodeType]:
    """All code that a file holds now, which need not be what was imported from it."""
    found = [compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)]
    for code in found:
        found += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return frozenset(found)


def _names(code: CodeType) -> set[str]:
    """The names that a function uses, those of functions inside it included."""
    return set(code.co_names).union(*(_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))
