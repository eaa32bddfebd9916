"""Read params.yaml: strict YAML, merging of defaults, profile and arm, and errors that name the key.

In: params.yaml. Out: `load` → Params, `resolve(params, profile, arm)` → Settings.

    satclr arms
"""

import difflib
import re
import reprlib
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from satclr.params import ARM_SECTIONS, SECTIONS, Model, Params, Settings

FILE = "params.yaml"
M = TypeVar("M", bound=Model)


class ParamsError(ValueError):
    """An invalid setting: the message names its key, its value and what is allowed."""


class CombinationError(ParamsError):
    """Settings of a section, each valid, that do not go together."""


def load(path: Path) -> Params:
    """Read and check the whole file. Raises `ParamsError` naming the key's path, the value and what is allowed.

    An arm and a profile that does not run it need not go together, if each goes together with others.
    """
    try:
        with path.open(encoding="utf-8") as file:
            tree = yaml.load(file, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader  # nosec B506
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ParamsError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ParamsError(f"{path.name} must be a mapping, not {type(tree).__name__}")
    params = _validate(Params, tree, sources={})
    _check_names(params)
    scales = {**params.profiles, "": {}}  # and the defaults alone, of which a profile may have to set some
    scaled = params.model_copy(update={"profiles": scales})
    failed: dict[tuple[str, str], ParamsError] = {}
    for profile, arm in product(scales, params.arms):
        try:
            resolve(scaled, profile, arm)
        except ParamsError as error:
            if profile and not isinstance(error, CombinationError):
                raise
            failed[profile, arm] = error
    for (profile, arm), problem in failed.items():
        runs = profile == params.profile and arm in params.run
        with_none = all((name, arm) in failed for name in scales)
        if profile and (runs or with_none or all((profile, name) in failed for name in params.arms)):
            raise problem
    return params


def resolve(params: Params, profile: str, arm: str) -> Settings:
    """The settings of an arm: `defaults`, overridden by its profile, overridden by the arm.

    Raises `ParamsError` for an unknown profile or arm and for settings that do not go together.
    """
    scale, method = pick(params.profiles, profile, "profile"), pick(params.arms, arm, "arm")
    sources = {f"arms.{arm}": method, f"profiles.{profile}": scale, "defaults": params.defaults}
    settings = _validate(Settings, merge(merge(params.defaults, scale), method), sources=sources)
    if settings.pretrain.normalization != "released":
        return settings
    # The input as released is near -22, which bfloat16 rounds to steps of 0.125: `precision: auto` is float32.
    sections = {name: getattr(settings, name) for name in ("pretrain", "embed")}
    exact = {n: s.model_copy(update={"precision": "float32"}) for n, s in sections.items() if s.precision == "auto"}
    return settings.model_copy(update=exact)


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `change` in place of its own; neither is modified."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def pick(table: Mapping[str, dict[str, Any]], name: str, kind: str) -> dict[str, Any]:
    """The entry `name` of profiles or arms; raises `ParamsError` with the nearest names, or all."""
    if name not in table:
        near = difflib.get_close_matches(str(name), table)
        hint = f"did you mean {' or '.join(near)}?" if near else f"{FILE} has {', '.join(table)}"
        raise ParamsError(f"unknown {kind} {_brief(name)}; {hint}")
    return table[name]


def _check_names(params: Params) -> None:
    pick(params.profiles, params.profile, "profile")
    for key in ("run", "ladder", "seeds"):
        values = getattr(params, key)
        repeated = sorted({str(value) for value in values if values.count(value) > 1})
        if repeated:
            raise ParamsError(f"{FILE}: {key}: duplicate entry {', '.join(repeated)}")
        for arm in values if key != "seeds" else ():
            pick(params.arms, arm, f"arm in `{key}`:")
    for kind, required, allowed in (("profiles", SECTIONS, SECTIONS), ("arms", ("pretrain",), ARM_SECTIONS)):
        for name, sections in getattr(params, kind).items():
            for key in required:  # if only as `{}`: DVC stops at a missing parameter
                if key not in sections:
                    raise ParamsError(f"{FILE}: {kind}.{name}.{key} is missing; add `{key}: {{}}` to change nothing")
            for key in sections:
                if key not in allowed:
                    path = _printable(f"{kind}.{name}.{key}")
                    raise ParamsError(f"{FILE}: {path}: unknown key; allowed are {', '.join(allowed)}")


def _validate(model: type[M], tree: Mapping[str, Any], *, sources: Mapping[str, Mapping[str, Any]]) -> M:
    try:
        return model.model_validate(dict(tree))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        combined = all(problem["type"] == "value_error" and len(problem["loc"]) == 1 for problem in problems)
        sentences = [_sentence(problem, model, sources) for problem in problems]
        raise (CombinationError if combined else ParamsError)(f"{FILE}: " + "; ".join(sentences)) from None


def _sentence(problem: Any, model: type[Model], sources: Mapping[str, Mapping[str, Any]]) -> str:
    loc, message = problem["loc"], problem["msg"].removeprefix("Value error, ")
    keys = [str(key) for key in loc if key != "[key]"]
    if problem["type"] == "value_error":  # one of ours, which begins with the setting's name
        key, _, message = message.partition(" ")
        name = key.removesuffix(":")
        return f"{_origin([*keys, *name.split('.')], sources)}{key[len(name) :]} {message}"
    path = _origin(keys, sources)
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key; allowed are {', '.join(_keys_at(model, loc[:-1]))}"
    if problem["type"] == "string_pattern_mismatch":
        message = "use lower-case letters, digits and _, beginning with a letter"
    if problem["type"] == "missing":
        return f"{path} is missing"
    return f"{path} = {_brief(problem['input'])}: {message}"


def _origin(keys: list[str], sources: Mapping[str, Mapping[str, Any]]) -> str:
    """The path at which the file sets `keys`: in the arm, else the profile, else the defaults."""
    where = [name for name, tree in sources.items() if _sets(tree, keys)] or list(sources)[-1:]
    return _printable(".".join([*where[:1], *keys]))


def _sets(tree: Any, keys: list[str]) -> bool:
    if not keys:
        return True
    if isinstance(tree, Mapping):
        return keys[0] in tree and _sets(tree[keys[0]], keys[1:])
    return isinstance(tree, list) and keys[0].isdecimal() and int(keys[0]) < len(tree)


def _printable(path: str) -> str:
    return path if path.isprintable() else path.encode("unicode_escape").decode("ascii")


def _brief(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    short.maxlevel = 3
    return short.repr(value)


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for key in loc:
        field = next((f for n, f in model.model_fields.items() if key in (n, f.alias)), None)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return [field.alias or name for name, field in model.model_fields.items()]


# DVC reads YAML 1.2 and PyYAML 1.1: 010 is 10 or 8, `yes` is text or true, 1:30 is text or 90.
_AMBIGUOUS = re.compile(r"[-+]?0[0-9_]+|[-+]?0o[0-7_]+|[-+]?[0-9_]+(:[0-9_.]+)+|yes|no|on|off", re.IGNORECASE)


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys, of which YAML would silently keep the last, and values that its versions disagree on."""

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if node.style is None and _AMBIGUOUS.fullmatch(node.value):
            problem = f"{node.value} means different things in YAML 1.1 and 1.2; quote it or write it another way"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    tree: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
        if key in tree:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
        tree[key] = loader.construct_object(value_node, deep=True)
    return tree


_StrictLoader.add_implicit_resolver(  # YAML 1.2's 1e-3, which DVC reads as a number and PyYAML as text
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
