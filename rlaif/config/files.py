"""From YAML files and `key=value` overrides to a configuration, and back to YAML."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from rlaif.config.checks import UserError

Config = TypeVar("Config")
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}


def load(kind: type[Config], paths: str | Path | Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """A `kind` made of its defaults, one or several YAML files and `key=value` overrides, in that order: what comes
    later replaces a value (and a whole list), and leaves the rest as it is.

    Raises UserError with the whole path of the key: file missing, unknown key (naming the nearest one), wrong type,
    value out of range, a mandatory value not given.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    given = [*map(_read, paths), *map(_override, overrides)]
    try:
        for source in given:
            _refuse_misfits(kind, OmegaConf.to_container(source), "")
        merged = OmegaConf.merge(OmegaConf.structured(kind), *given)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{missing[0]} must be given, got nothing; set it in {paths[0]} or as {missing[0]}=...")
        return _construct(kind, merged, "")
    except OmegaConfBaseException as error:     # a value that refers to another one, as in ${seed}
        raise UserError(f"{error.full_key or paths[0]} must be a value, got: {_first_line(error)}") from error


def resolved_yaml(config: Any) -> str:
    """The whole configuration as YAML, defaults included: what a run writes beside its results."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def config_hash(config: Any) -> str:
    """16 hex digits that follow every value of the configuration."""
    return hashlib.sha256(resolved_yaml(config).encode()).hexdigest()[:16]


def _read(path: Path) -> DictConfig:
    if not path.is_file():
        raise UserError(f"config must be a YAML file, got {str(path)!r}; see configs/ for ready ones")
    try:
        content = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise UserError(f"config {path} must be YAML, got: {_first_line(error)}") from error
    if not isinstance(content, DictConfig):
        raise UserError(f"config {path} must hold keys and values, got a list")
    return content


def _override(text: str) -> DictConfig:
    if not text.partition("=")[0] or "=" not in text:
        raise UserError(f"override must be key=value, got {text!r}")
    try:
        return OmegaConf.from_dotlist([text])
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(f"override must be key=value with a value in YAML, got {text!r}; put a text with braces or "
                        "colons in quotes of its own") from error


def _refuse_misfits(kind: type, given: Any, path: str) -> None:
    """Refuses a key that `kind` lacks, naming the nearest one it has, and a value of another type than its field."""
    if not isinstance(given, dict):
        raise UserError(f"{path.removesuffix('.')} must hold keys and values, got {given!r}")
    hints = typing.get_type_hints(kind)
    for key, value in given.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
            raise UserError(f"{path}{key} must be a known key, got an unknown one; did you mean {path}{near[0]}?")
        items = typing.get_args(hints[key])
        if "str" in str(hints[key]) and _has_bool(value):   # which OmegaConf would turn into "True"
            raise UserError(f"{path}{key} must be {_type_name(hints[key])}, got {value!r}; put words such as yes and "
                            "no in quotes")
        if dataclasses.is_dataclass(hints[key]):
            _refuse_misfits(hints[key], value, f"{path}{key}.")
        elif items and dataclasses.is_dataclass(items[0]) and isinstance(value, list):
            for number, item in enumerate(value):
                _refuse_misfits(items[0], item, f"{path}{key}[{number}].")
        else:
            try:
                OmegaConf.merge(OmegaConf.structured(kind), {key: value})
            except (OmegaConfBaseException, TypeError) as error:
                raise UserError(f"{path}{key} must be {_type_name(hints[key])}, got {value!r}") from error


def _has_bool(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, bool) or any(map(_has_bool, inner))


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(map(_type_name, typing.get_args(hint)))
    return _TYPES.get(hint) or re.sub(r"rlaif\.(\w+\.)+", "", f"a {hint}")


def _construct(kind: type, node: Any, path: str) -> Any:
    """The dataclass of `node`; what its own check refuses is named with its path."""
    values = {name: _value(hint, node[name], f"{path}{name}") for name, hint in typing.get_type_hints(kind).items()}
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{path}{error}") from error


def _value(hint: Any, node: Any, path: str) -> Any:
    items = typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _construct(hint, node, f"{path}.")
    if items and dataclasses.is_dataclass(items[0]):
        return [_construct(items[0], item, f"{path}[{number}].") for number, item in enumerate(node)]
    return OmegaConf.to_object(node) if OmegaConf.is_config(node) else node


def _first_line(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
