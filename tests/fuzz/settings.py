"""params.yaml with odd values: what is refused is named by its key, what is accepted can be shown."""

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
from satclr.params import ARM_SECTIONS

from ..conftest import ROOT
from . import ACCEPTED, REFUSED, Outcomes, edited, explore

Key = tuple[str, ...]

ODD: list[Any] = [
    None, True, False, "", "none", "[/]", "[red]x", "a\nb", "\u202e", -1, 0, 1, 2, 2**31, 2**63, 10**400, -0.0, 0.5,
    1e308, 5e-324, math.inf, -math.inf, math.nan, [], [1], [0.1, 1.0], [1.0, 0.1], [[]], {}, {"a": 1}, "0.5", "1e-3",
    [0, 0], [2**31], [-1], [True], [10**400], ["simclr", "simclr"], ["x"],
]  # fmt: skip
UNKNOWN = ["temprature", "a b", "[/]", "\u202e", "é", "0", "null"]
TOP = [("profile",), ("seeds",), ("run",), ("ladder",), ("defaults",), ("profiles",), ("arms",), ("colour",)]


@cache
def _file() -> dict[str, Any]:
    """The project's own, with few arms and profiles, since each is resolved in each case."""
    tree: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for table, kept in (("profiles", ("sample", "mlrsnet")), ("arms", ("baseline", "simclr", "baseline_adapted"))):
        tree[table] = {name: tree[table][name] for name in kept}
    return tree | {"ladder": ["baseline", "simclr"]}


@cache
def places() -> list[Key]:
    """Each setting and section at each place where it may be set, and keys that there are not."""

    def walk(node: dict[str, Any], path: Key) -> Iterator[Key]:
        for name, child in node.items():
            yield (*path, name)
            if isinstance(child, dict):
                yield from walk(child, (*path, name))

    keys = list(walk(_file()["defaults"], ()))
    arm = [("arms", "simclr", *key) for key in keys if key[0] in ARM_SECTIONS]
    known = [*arm, *((*top, *key) for top in (("defaults",), ("profiles", "sample")) for key in keys)]
    return [*known, *TOP, *((*known[i][:-1], name) for i, name in enumerate(UNKNOWN))]


def run(cases: int, seed: int, folder: Path) -> Outcomes:
    """One changed setting: refused by its key, on one line, or shown by `satclr arms`."""

    def check(case: tuple[Key, Any]) -> str:
        path, value = case
        tree = copy.deepcopy(_file())
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
        return _load(folder, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), list(path))

    values = st.one_of(st.sampled_from(ODD), st.integers(0, 40), st.floats(0, 1), st.text(max_size=5))
    return explore(st.tuples(st.sampled_from(places()), values), check, cases=cases, seed=seed)


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
        assert message.isprintable(), repr(message)
        key = ".".join(path)
        shown = key if key.isprintable() else key.encode("unicode_escape").decode()
        # Two settings that do not fit together are told by the path of one and the name of the other.
        assert shown in message or all(name in message for name in path[-2:]), (shown, message)
        return REFUSED
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out:
        cli.arms(None)
    assert loaded.profile in out.getvalue()
    return ACCEPTED
