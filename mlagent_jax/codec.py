"""Records as plain JSON values and back: the one form in which records are stored.

Works on any dataclass by its annotations and knows none of them; strict both ways,
so that a file of another version is refused and never misread.
"""

import dataclasses
import enum
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from mlagent_jax.errors import DataError

T = TypeVar("T")


def to_json(record: Any) -> Any:
    """Returns `record` as plain JSON values (dicts, lists, strings, numbers)."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {
            f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)
        }
    if isinstance(record, enum.Enum):
        return record.value
    if isinstance(record, Path):
        return str(record)
    if isinstance(record, dict):
        return {str(k): to_json(v) for k, v in cast(dict[Any, Any], record).items()}
    if isinstance(record, list | tuple | frozenset):
        return [to_json(v) for v in cast(list[Any], record)]
    return record


def from_json(cls: type[T], value: Any, where: str = "record") -> T:
    """Returns the `cls` that `to_json` wrote.

    Args:
      cls: a dataclass. If it has a class method `upgrade_json(value, where)`, that
        one first turns what an older version wrote into today's form.
      value: parsed JSON.
      where: named in errors, e.g. "expert.jsonl:12".

    Raises:
      DataError: `value` lacks a field, has an unknown one or one of a wrong type,
        or is of a format that `cls.upgrade_json` refuses.
    """
    return _decode(cls, value, where)


def _decode(annotation: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(annotation)
    args = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = (a for a in args if a is not type(None))
        return _decode(inner, value, where)
    if origin is Literal:
        return _require(value in args, value, where, f"one of {args}")
    if origin is tuple:
        _require(isinstance(value, list), value, where, "a list")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_decode(args[0], v, where) for v in value)
        _require(len(value) == len(args), value, where, f"{len(args)} items")
        return tuple(_decode(a, v, where) for a, v in zip(args, value, strict=True))
    if origin is dict:
        _require(isinstance(value, dict), value, where, "an object")
        return {k: _decode(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(annotation):
        return _decode_dataclass(annotation, value, where)
    if annotation is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_require(is_number, value, where, "a number"))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        names = [m.value for m in annotation]
        return annotation(_require(value in names, value, where, f"one of {names}"))
    if annotation is Path:
        return Path(_require(isinstance(value, str), value, where, "a path"))
    if annotation is int:
        is_int = isinstance(value, int) and not isinstance(value, bool)
        return _require(is_int, value, where, "an integer")
    return _require(isinstance(value, annotation), value, where, annotation.__name__)


def _decode_dataclass(cls: Any, value: Any, where: str) -> Any:
    _require(isinstance(value, dict), value, where, "an object")
    upgrade = getattr(cls, "upgrade_json", None)
    if upgrade is not None:
        value = upgrade(value, where)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(value) - set(fields))
    no_default = (dataclasses.MISSING, dataclasses.MISSING)
    missing = sorted(
        name
        for name, f in fields.items()
        if name not in value and (f.default, f.default_factory) == no_default
    )
    if unknown or missing:
        raise DataError(
            f"{where}: not a {cls.__name__}: missing fields {missing}, "
            f"unknown fields {unknown}; was it written by another version?"
        )
    return cls(**{k: _decode(hints[k], v, f"{where}.{k}") for k, v in value.items()})


def _require(is_ok: bool, value: Any, where: str, expected: str) -> Any:
    if not is_ok:
        raise DataError(f"{where}: expected {expected}, got {value!r:.80}")
    return value
