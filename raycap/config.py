"""Typed, frozen configuration: YAML files plus ``a.b=value`` overrides, all errors reported together."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from raycap import storage
from raycap.errors import UserError

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error.

    Fields take their help text from the docstring under them, so that ``--help`` of a job is
    the same text as the code's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


def load_config(config_class: type[ConfigT], path: str, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply overrides, validate.

    Args:
        config_class: the configuration to build.
        path: a local path or s3:// URI of a YAML file.
        overrides: ``a.b=value`` strings; the value is read as YAML; list items by index (``a.0=x``).

    Raises:
        UserError: the file is missing or not YAML, an override is malformed, or validation
            failed: then one line per error, each with field, value and remedy.
    """
    try:
        text = storage.read_bytes(path).decode()
    except FileNotFoundError:
        raise UserError(f"--config: no such file: {path}; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config: {path} cannot be read ({error}); give the path of a YAML file") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--config: {path} is not YAML: {' '.join(str(error).split())}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"--config: {path} holds a {type(values).__name__}; give `key: value` lines")
    for override in overrides:
        _apply_override(values, override)
    return parse_config(config_class, values, origin=path)


def parse_config(config_class: type[ConfigT], values: dict[str, Any], origin: str) -> ConfigT:
    """Validate a dictionary; ``origin`` (a file's name, say) opens every error line."""
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(f"{origin}: {line}" for line in error_lines(config_class, error))) from None


def error_lines(config_class: type[Config], error: ValidationError, most: int | None = None) -> list[str]:
    """A line for each error: field, value, remedy; of more than ``most`` errors the others' number comes last."""
    lines = [_error_line(config_class, detail) for detail in error.errors()[:most]]
    num_left = error.error_count() - len(lines)
    return [*lines, f"and {num_left} more"] if num_left else lines


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: write a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: {text!r} is not YAML; quote it") from None
    *parents, last = key.split(".")
    node: Any = values
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, part: str, override: str) -> Any:
    child = node[_index(node, part, override)] if isinstance(node, list) else node.setdefault(part, {})
    if child is None and isinstance(node, dict):
        child = node[part] = {}
    if not isinstance(child, (dict, list)):
        raise UserError(f"override {override!r}: {part} is the value {child!r}, it has no keys below it")
    return child


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"override {override!r}: {part!r} is no index of a list of {len(node)}")
    return int(part)


def _error_line(config_class: type[Config], detail: ErrorDetails) -> str:
    path, _ = _follow(config_class, detail["loc"])
    field = ".".join(path) or "(all)"
    if detail["type"] == "missing":
        return f"{field}: missing; give it a value"
    value = repr(detail["input"])
    value = value if len(value) <= 80 else value[:77] + "..."
    if detail["type"] == "extra_forbidden":
        _, owners = _follow(config_class, detail["loc"][:-1])
        known = sorted({name for owner in owners for name in owner.model_fields})
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.7)
        remedy = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{field} = {value}: unknown key; {remedy}"
    return f"{field} = {value}: {detail['msg'].removeprefix('Value error, ')}"


def _follow(config_class: type[Config], loc: Iterable[int | str]) -> tuple[list[str], list[type[BaseModel]]]:
    """Follow an error's location through models, unions and lists.

    Returns:
        the path as the user writes it, without the tags that pydantic puts in for a union's
        member, and the models found at its end.
    """
    path: list[str] = []
    here: list[Any] = [config_class]
    for part in loc:
        models = [kind for kind in here if isinstance(kind, type) and issubclass(kind, BaseModel)]
        tagged: list[Any] = [kind for kind in models if part == _tag(kind)]
        if tagged:
            here = tagged
            continue
        path.append(str(part))
        fields = [kind.model_fields[str(part)].annotation for kind in models if part in kind.model_fields]
        items = [get_args(kind)[-1] for kind in here if get_args(kind)]
        here = [member for annotation in (*fields, *items) for member in _members(annotation)]
    return path, [kind for kind in here if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _members(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for argument in get_args(annotation) for member in _members(argument)]
    return [annotation]


def _tag(kind: type[BaseModel]) -> str | None:
    field = kind.model_fields.get("kind")
    return None if field is None else str(field.default)
