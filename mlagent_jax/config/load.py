"""From a config file and `--set` overrides to a checked `RunConfig`."""

import ast
import dataclasses
import difflib
import importlib.util
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from mlagent_jax.config.run import RunConfig
from mlagent_jax.errors import ConfigError


def load_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the config that `path`'s `get_config()` builds, with overrides.

    Args:
      path: a Python file such as configs/quickstart.py.
      overrides: `section.field=value` strings; values are Python literals, and
        bare words are strings.

    Raises:
      ConfigError: no such file, no `get_config`, or a bad override.
    """
    module = load_module(path)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config={path}: the file defines no get_config()")
    config = module.get_config()
    if not isinstance(config, RunConfig):
        raise ConfigError(f"--config={path}: get_config() returned no RunConfig")
    return apply_overrides(config, overrides)


def load_module(path: str) -> types.ModuleType:
    """Returns the module of a config file.

    Raises:
      ConfigError: no such file.
    """
    file = Path(path)
    if not file.is_file():
        found = sorted(str(p) for p in Path("configs").glob("*.py"))
        near = difflib.get_close_matches(path, found, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else f"; found {found}"
        raise ConfigError(f"--config={path}: no such file{hint}")
    spec = importlib.util.spec_from_file_location(f"run_config_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def apply_override(config: RunConfig, override: str) -> RunConfig:
    """Returns `config` with one `section.field=value` applied.

    Raises:
      ConfigError: as for `apply_overrides`.
    """
    return apply_overrides(config, [override])


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Returns `config` with all `section.field=value` applied at once.

    Fields that must fit each other can so be changed together; of two values for one
    field the last counts.

    Raises:
      ConfigError: no such field (the nearest one is named), or a value of a wrong
        type or range.
    """
    changes: dict[str, Any] = {}
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override!r}: expected path=value")
        path, text = path.strip(), text.strip()
        *sections, name = path.split(".")
        value = _resolve(config, path.split("."), text, path)
        section = changes
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return _replace(config, changes)


def _resolve(config: Any, names: list[str], text: str, full_path: str) -> Any:
    """Returns the value of the field that `names` lead to.

    Raises:
      ConfigError: there is no such field, or the value is of a wrong type.
    """
    name = names[0]
    fields = [f.name for f in dataclasses.fields(config)]
    if name not in fields:
        near = difflib.get_close_matches(name, fields, 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"--set {full_path}={text}: {type(config).__name__} has no field "
            f"{name!r}; {hint}fields: {', '.join(fields)}"
        )
    old = getattr(config, name)
    if len(names) > 1:
        if not dataclasses.is_dataclass(old):
            raise ConfigError(
                f"--set {full_path}={text}: {name} = {old!r} has no fields"
            )
        return _resolve(old, names[1:], text, full_path)
    cls = cast(Any, type(config))
    hints: dict[str, Any] = typing.get_type_hints(cls)
    return _parse_value(text, hints[name], full_path)


def _replace(config: Any, changes: dict[str, Any]) -> Any:
    """Returns `config` with fields replaced; a dict holds changes of a section."""
    values = {
        name: _replace(getattr(config, name), cast(dict[str, Any], change))
        if isinstance(change, dict)
        else change
        for name, change in changes.items()
    }
    return dataclasses.replace(config, **values)


def _parse_value(text: str, annotation: Any, full_path: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    try:
        value: Any = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = words.get(text.lower(), text)
    if isinstance(value, list):
        value = tuple(cast(list[Any], value))
    if typing.get_origin(annotation) is Literal:
        options = [str(a) for a in typing.get_args(annotation)]
        near = difflib.get_close_matches(str(value), options, 1, 0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        expected = f"one of {options}{hint}"
    else:
        is_plain = isinstance(annotation, type) and not typing.get_args(annotation)
        expected = annotation.__name__ if is_plain else str(annotation)
    found, converted = _convert(value, text, annotation)
    if not found:
        raise ConfigError(f"--set {full_path}={text}: expected {expected}")
    return converted


def _convert(value: Any, text: str, annotation: Any) -> tuple[bool, Any]:
    """Returns (True, value as `annotation`) or (False, None)."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:  # "none" may be a choice, as of model.remat
        return (True, text) if text in args else (value in args, value)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False, None
        values = cast(tuple[Any, ...], value)
        items = [_convert(v, str(v), args[0]) for v in values]
        return all(ok for ok, _ in items), tuple(v for _, v in items)
    if origin is not None or isinstance(annotation, types.UnionType):
        options = (_convert(value, text, a) for a in args)
        return next((o for o in options if o[0]), (False, None))
    if annotation is float and type(value) in (int, float):
        return True, float(value)
    if annotation is str:
        is_text = isinstance(value, str)
        return is_text, value
    return type(value) is annotation, value
