"""params.yaml at its schema's edges: what is refused is named by its key, what is accepted can be shown."""

import contextlib
import copy
import io
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from satclr import cli, settings
from satclr.params import ARM_SECTIONS, SECTIONS, Settings

from ..conftest import ROOT
from . import ACCEPTED, REFUSED, Outcomes, edited, explore

Key = tuple[str, ...]

ODD: list[Any] = [
    None, True, False, "", "none", "[/]", "[red]x", "a\nb", "\u202e", -1, 0, 1, 2, 2**31, 2**63, 10**400, -0.0, 0.5,
    1e308, 5e-324, math.inf, -math.inf, math.nan, [], [1], [0.1, 1.0], [1.0, 0.1], [[]], {}, {"a": 1}, "0.5", "1e-3",
]  # fmt: skip
PLACES = ("defaults", "profiles.sample", "arms.simclr")


@cache
def _file() -> dict[str, Any]:
    """The project's own, with few arms and profiles, since each is resolved in each case."""
    tree: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for table, kept in (("profiles", ("sample", "mlrsnet")), ("arms", ("baseline", "simclr", "baseline_adapted"))):
        tree[table] = {name: tree[table][name] for name in kept}
    return tree | {"ladder": ["baseline", "simclr"]}


@cache
def leaves() -> dict[Key, dict[str, Any]]:
    """Every setting's path and its part of the JSON schema."""
    schema = Settings.model_json_schema(by_alias=True)

    def walk(node: dict[str, Any], path: Key) -> Iterator[tuple[Key, dict[str, Any]]]:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        if "properties" in node:
            for name, child in node["properties"].items():
                yield from walk(child, (*path, name))
        else:
            yield path, node

    return dict(walk(schema, ()))


def edges(node: dict[str, Any]) -> list[Any]:
    """A setting's own bounds, and the values just inside and just beyond them."""
    found: list[Any] = [*node.get("enum", []), *([node["const"]] if "const" in node else [])]
    for part in [node, *node.get("anyOf", []), *node.get("prefixItems", []), node.get("items", {})]:
        if not isinstance(part, dict):
            continue
        for bound in (part[k] for k in part if k.lower().endswith(("minimum", "maximum"))):
            whole = part.get("type") == "integer"
            steps = (
                (bound - 1, bound, bound + 1) if whole else (bound, math.nextafter(bound, -9), math.nextafter(bound, 9))
            )
            found += steps
        found += [[value] for value in part.get("enum", [])]
    return found


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, Key, Any]:
    """A place, a setting (or one that there is not), and a value at the edge of what it may be."""
    place = draw(st.sampled_from(PLACES))
    allowed = [k for k in leaves() if not place.startswith("arms") or k[0] in ARM_SECTIONS]
    key = draw(st.sampled_from(sorted(allowed)))
    if draw(st.integers(0, 9)) == 0:
        key = (*key[:-1], draw(st.sampled_from(["temprature", "a b", "[/]", "\u202e", "é", "0", "null"])))
    fitting = edges(leaves().get(key, {}))
    kinds = [st.sampled_from(ODD), st.integers(0, 40), st.floats(0, 1), st.text(max_size=5)]
    value = draw(st.one_of(*3 * [st.sampled_from(fitting)] if fitting else [], *kinds))
    return place, key, value


TOP = {
    **dict.fromkeys(("profile", "defaults", "profiles", "arms", "colour", "run.0"), ODD),
    "seeds": [*ODD, [0, 0], [2**31], [-1], [True], [10**400]],
    "run": [*ODD, ["simclr", "simclr"], ["x"]],
    "ladder": [*ODD, ["x"]],
}


@st.composite
def top_changes(draw: st.DrawFn) -> tuple[str, Key, Any]:
    key = draw(st.sampled_from(sorted(TOP)))
    if key == "run.0":
        return "", ("profiles", "sample", draw(st.sampled_from(SECTIONS))), draw(st.sampled_from(ODD))
    return "", (key,), draw(st.sampled_from(TOP[key]))


def run(cases: int, seed: int, folder: Path) -> Outcomes:
    """One changed setting: refused by its key, on one line, or shown by `satclr arms`."""

    def check(case: tuple[str, Key, Any]) -> str:
        place, key, value = case
        tree = copy.deepcopy(_file())
        path = [*place.split("."), *key] if place else list(key)
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
        return _load(folder, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), path)

    return explore(st.one_of(changes(), changes(), changes(), top_changes()), check, cases=cases, seed=seed)


def run_edited(cases: int, seed: int, folder: Path) -> Outcomes:
    """The file with damaged bytes: refused on one line, or shown by `satclr arms`."""
    raw = yaml.safe_dump(_file(), sort_keys=False).encode()
    return explore(edited(st.just(raw), edits=1, size=1), lambda bad: _load(folder, bad, []), cases=cases, seed=seed)


def _load(folder: Path, text: str | bytes, path: list[str]) -> str:
    file = folder / "params.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        loaded = settings.load(file)
    except settings.ParamsError as error:
        message = str(error)
        assert message.isprintable() or all(c.isprintable() or c == " " for c in message), repr(message)
        key = ".".join(path)
        shown = key if key.isprintable() else key.encode("unicode_escape").decode()
        # A list's own element, or the section that is no mapping, may be what is named.
        assert shown in message or (path and _names(message, path)), (shown, message)
        return REFUSED
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out:
        cli.arms(None)
    assert loaded.profile in out.getvalue()
    return ACCEPTED


def _names(message: str, path: list[str]) -> bool:
    """Two settings that do not fit together are told by the path of one and the name of the other."""
    return path[-1] in message and (len(path) == 1 or path[-2] in message)
