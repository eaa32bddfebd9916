"""params.yaml as frozen, strict models: what may be set, in which unit and range, and what it means.

In: params.yaml. Out: `resolve(params, profile, arm, seed)`, one arm with every setting in place.

    satclr arms

Every default stands in params.yaml, none here: `defaults`, then the profile, then the arm.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FILE = "params.yaml"
SECTIONS = ("data", "views", "pretrain", "embed", "probe", "evaluate", "robustness", "maps", "register")
ARM_SECTIONS = ("pretrain", "probe", "evaluate")

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
JitterRange = Annotated[float, Field(ge=0, le=1)]


class ParamsError(ValueError):
    """A setting that cannot be: the message names its key, its value and what is allowed."""


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Pair = Annotated[tuple[float, float], Field(strict=False)]


M = TypeVar("M", bound=Model)


class Split(Model):
    """Which tiles train, validate and test."""

    by: Literal["tile", "group"]  # group: near-duplicates stay together
    fractions: Annotated[tuple[float, float, float], Field(strict=False)]  # train, val, test
    seed: Seed
    stratify: bool  # share every label evenly (Sechidis et al. 2011)
    file: str | None  # a CSV in the data folder (columns image, split) instead of a draw

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.file is not None and (self.by == "group" or self.stratify):
            raise ValueError(
                f"by: {self.by} and stratify: {str(self.stratify).lower()} are about a draw, "
                f"but file: {self.file} says which tile goes where; set file: null to draw"
            )
        if min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-9:
            raise ValueError(
                f"fractions {list(self.fractions)} are not three positive numbers that add up to 1"
            )
        return self


class Labels(Model):
    on_problem: Literal["warn", "drop", "fail"]  # drop: tiles that the audit flags leave every split


class Data(Model):
    """From data/<profile> to the tile store."""

    tile_px: Annotated[int, Field(ge=8, le=1024)]  # side of the tiles in the store
    labels: Labels
    split: Split
    on_unreadable: Literal["fail", "drop"]  # drop: leave such tiles out and list them in audit.json


class Views(Model):
    """The augmentation family (SimCLR, arXiv:2002.05709, appendix A); evaluation only resizes."""

    crop_px: Annotated[int, Field(ge=8, le=1024)]  # side of a view, in training and in evaluation
    scale: Pair  # area of the crop, as a fraction of the tile
    ratio: Pair  # width / height of the crop
    flip_p: Probability
    jitter_p: Probability
    brightness: JitterRange  # factor in [1 - x, 1 + x]
    contrast: JitterRange
    saturation: JitterRange
    hue: Annotated[float, Field(ge=0, le=0.5)]  # shift in [-x, x] of the colour circle
    grayscale_p: Probability
    blur_p: Probability
    blur_kernel_px: Annotated[int, Field(ge=1, le=99)]
    blur_sigma: Pair  # pixels of the view

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} [{low}, {high}] is not a pair 0 < low <= high")
        if self.scale[1] > 1:
            raise ValueError(f"scale [{self.scale[0]}, {self.scale[1]}] reaches beyond the tile (1.0)")
        if self.blur_kernel_px % 2 == 0 or self.blur_kernel_px > 2 * self.crop_px - 1:
            raise ValueError(
                f"blur_kernel_px {self.blur_kernel_px} is not odd and below twice crop_px {self.crop_px}"
            )
        return self


# Training tiles that show the same as a validation or test tile: learnt from, or not. Between arms that differ in
# this alone stands the leakage of the split, on the same test tiles.
NearDuplicates = Literal["keep", "leave_out"]

# nt_xent knows no labels; the others see the labels of the training tiles (loss.py says what each does).
Objective = Literal["none", "nt_xent", "supcon_any", "supcon_all", "jaccard", "mulsupcon"]


class Projection(Model):
    """The head that pretraining puts on the encoder and drops afterwards."""

    hidden: Count | None  # width of the hidden layer; null: as wide as the features (SimCLR)
    out: Count  # width of z
    batch_norm: bool  # SimCLR's own code has it, the paper's notebook (2048, 512, 128) does not


class Pretrain(Model):
    """From the initial encoder to the one that is probed."""

    from_: Name | None = Field(alias="from")  # go on from this arm's finished encoder (same profile and seed)
    arch: str  # a torchvision classification model
    weights: str  # IMAGENET1K_V2 and the like, none, or the path of a safetensors or state-dict file
    normalization: Literal["train", "imagenet", "released"]  # whose mean and std enter the encoder
    objective: Objective
    near_duplicates: NearDuplicates
    nt_xent_weight: Probability  # w of w·NT-Xent + (1 - w)·objective, for an objective that sees labels
    temperature: Annotated[float, Field(gt=0, le=10)]
    projection: Projection
    forward: Literal["joint", "separate"]  # both views in one batch, or (notebook) one after the other
    adapt_batch_norm: bool  # re-estimate BatchNorm's running statistics on the training tiles
    epochs: Count
    batch_size: Annotated[int, Field(ge=2, lt=2**31)]  # tiles a step; each gives two views
    micro_batch_size: (
        Annotated[int, Field(ge=2, lt=2**31)] | None
    )  # tiles in memory at once, over all processes (null: all)
    processes: Count  # of this machine, that share each batch
    optimizer: Literal["adam", "adamw", "lars"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "cosine"]
    warmup_epochs: Annotated[int, Field(ge=0, lt=2**31)]  # linear, before a cosine
    precision: Literal["float32", "bfloat16"]  # of the encoder's arithmetic; the loss is float32
    channels_last: bool  # and, on a CPU, convolutions of small maps as matrix products
    compile: bool  # torch.compile, in one process
    deterministic: bool  # only algorithms that give the same bits again, on a GPU too, where they are slower

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} leaves nothing of epochs {self.epochs}")
        if self.warmup_epochs and self.schedule == "constant":
            raise ValueError("warmup_epochs goes with schedule: cosine")
        if self.nt_xent_weight and self.objective in {"none", "nt_xent"}:
            raise ValueError(
                f"nt_xent_weight {self.nt_xent_weight} goes with an objective that sees labels, "
                f"not with {self.objective}"
            )
        if self.compile and self.processes > 1:
            raise ValueError(f"compile goes with processes: 1, not with processes: {self.processes}")
        if self.micro_batch_size is not None and self.forward == "separate":
            raise ValueError("micro_batch_size goes with forward: joint")
        return self


class Embed(Model):
    """One pass of the frozen encoder over every tile."""

    batch_size: Count
    processes: Count  # of this machine, that share the tiles
    precision: Literal["float32", "bfloat16"]
    deterministic: bool  # as in pretrain


class Probe(Model):
    """The linear layer on frozen features."""

    batch_norm: Literal["frozen", "batch"]  # batch: statistics of the batch at hand (notebook)
    epochs: Count
    batch_size: Annotated[int, Field(ge=2, lt=2**31)]
    learning_rate: Annotated[float, Field(gt=0)]
    near_duplicates: NearDuplicates  # in all that learns from labels: the sweep and neighbours too
    select: Literal["best", "last", "first"]  # which epoch is tested; best: by validation mAP


class Sweep(Model):
    """Probes of every learning rate × weight decay, trained together; the best on validation is reported."""

    learning_rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
    weight_decays: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]  # decoupled (AdamW)
    epochs: Count  # cosine schedule
    standardize: bool  # features to mean 0 and deviation 1 over the training tiles


class Neighbours(Model):
    """Weighted k-nearest-neighbour tagging by cosine similarity."""

    k: Count
    temperature: Annotated[float, Field(gt=0)]  # weight = exp(similarity / temperature)


class LabelFractions(Model):
    """The sweep again, on seeded subsets of the training labels."""

    fractions: list[Annotated[float, Field(gt=0, lt=1)]]  # the whole is the sweep itself
    subsets: Count  # draws of each fraction


class Evaluate(Model):
    undefined_ap: Literal["exclude", "zero"]  # a label without positives (zero: notebook)
    bootstrap_resamples: Annotated[int, Field(ge=100, lt=2**31)]
    sweep: Sweep
    knn: Neighbours
    labels: LabelFractions


Corruption = Literal[
    "illumination", "haze", "cloud", "season", "snow", "noise", "resolution", "blur", "jpeg", "rotation"
]


class Robustness(Model):
    """Which corruptions the test tiles meet; none leaves the stage out."""

    corruptions: list[Corruption]
    strengths: Annotated[list[Literal[1, 2, 3]], Field(min_length=1)]


class Maps(Model):
    """Test tiles laid out in the plane by their features; no projection leaves the stage out."""

    projections: list[Literal["umap", "tsne", "pca"]]
    tiles: Annotated[int, Field(ge=10, lt=2**31)]  # at most; the same ones for every arm
    neighbours: Annotated[int, Field(ge=2, lt=2**31)]  # of the numbers beside the maps, and of UMAP


class Register(Model):
    minimum_val_mAP: Probability  # noqa: N815 - mAP is the field's spelling; no version below it


class Settings(Model):
    """Every setting of a run, resolved."""

    data: Data
    views: Views
    pretrain: Pretrain
    embed: Embed
    probe: Probe
    evaluate: Evaluate
    robustness: Robustness
    maps: Maps
    register_: Register = Field(alias="register")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.pretrain.adapt_batch_norm and self.pretrain.objective != "none":
            raise ValueError("pretrain.adapt_batch_norm goes with pretrain.objective: none")
        return self


class Arm(Model):
    """One arm at one scale with one seed: all that its stages need to know."""

    profile: Name
    name: Name
    seed: Seed
    settings: Settings

    @property
    def key(self) -> str:
        """The arm's folder below models/<profile> and results/<profile>."""
        return f"{self.name}-s{self.seed}"

    def flat(self) -> dict[str, str]:
        """Settings as `section.key` → text, as MLflow shows them."""
        flat = {"profile": self.profile, "arm": self.name, "seed": str(self.seed)}
        _flatten(self.settings.model_dump(mode="json", by_alias=True), "", flat)
        return flat


class Params(Model):
    """The file as it stands."""

    profile: str
    seeds: Annotated[list[Seed], Field(min_length=1)]
    run: Annotated[list[str], Field(min_length=1)]
    ladder: list[str]
    defaults: dict[str, Any]
    profiles: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    arms: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]


def load(path: Path) -> Params:
    """Read and check the whole file: every arm at every profile.

    Raises `ParamsError` naming the key's path, the value and what is allowed.
    """
    try:
        with path.open(encoding="utf-8") as file:
            tree = yaml.load(file, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader  # nosec B506
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist; run satclr inside a satclr project") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ParamsError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ParamsError(f"{path.name} is not a mapping; it holds {type(tree).__name__}")
    params = _validate(Params, tree, sources={})
    _check_names(params)
    for profile in params.profiles:
        arms = {arm: resolve(params, profile, arm, params.seeds[0]) for arm in params.arms}
        _check_starts(params, {name: arm.settings.pretrain.from_ for name, arm in arms.items()})
    return params


def resolve(params: Params, profile: str, arm: str, seed: int) -> Arm:
    """One arm with `defaults`, its profile's and its own settings in place.

    Raises `ParamsError` for an unknown profile or arm and for settings that do not fit together.
    """
    settings = merge(params.defaults, pick(params.profiles, profile, "profile"))
    settings = merge(settings, pick(params.arms, arm, "arm"))
    sources = {f"arms.{arm}": params.arms[arm], f"profiles.{profile}": params.profiles[profile]}
    sources["defaults"] = params.defaults
    tree = {"profile": profile, "name": arm, "seed": seed, "settings": settings}
    return _validate(Arm, tree, sources=sources)


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `change` in place of its own; neither is modified."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def pick(table: Mapping[str, dict[str, Any]], name: str, kind: str) -> dict[str, Any]:
    """The entry `name` of profiles or arms; raises `ParamsError` listing what there is."""
    if name not in table:
        raise ParamsError(f"unknown {kind} {_brief(name)}; {FILE} has {', '.join(table)}")
    return table[name]


def _check_names(params: Params) -> None:
    pick(params.profiles, params.profile, "profile")
    for key in ("run", "ladder"):
        for arm in getattr(params, key):
            pick(params.arms, arm, f"arm in `{key}`:")
    for key, values in (("run", params.run), ("ladder", params.ladder), ("seeds", params.seeds)):
        repeated = sorted({str(v) for v in values if values.count(v) > 1})  # type: ignore[arg-type]
        if repeated:
            raise ParamsError(f"{key}: {', '.join(repeated)} stands there twice; name each once")
    _check_sections({"defaults": params.defaults}, required=SECTIONS, allowed=SECTIONS, path="")
    _check_sections(params.profiles, required=SECTIONS, allowed=SECTIONS, path="profiles.")
    _check_sections(params.arms, required=("pretrain",), allowed=ARM_SECTIONS, path="arms.")


def _check_starts(params: Params, starts: Mapping[str, str | None]) -> None:
    """Arms that go on from another arm: it exists, it does not lead back, and it runs first."""
    for arm, start in starts.items():
        if start is None:
            continue
        path = f"{FILE}: arms.{arm}.pretrain.from = {start!r}"
        pick(params.arms, start, f"arm in {path}:")
        chain = [arm]
        following: str | None = start
        while following is not None:
            if following in chain:
                raise ParamsError(f"{path} leads back: {' from '.join([*chain, following])}")
            chain.append(following)
            following = starts.get(following)
        if arm in params.run and start not in params.run[: params.run.index(arm)]:
            place = "behind it in" if start in params.run else "not in"
            raise ParamsError(f"{path}: {start!r} is {place} run; list it there, before {arm!r}")


def _check_sections(
    tables: Mapping[str, Mapping[str, Any]], *, required: tuple[str, ...], allowed: tuple[str, ...], path: str
) -> None:
    """Sections must stand there, if only as `{}`: DVC stops at a parameter that is missing."""
    for name, sections in tables.items():
        for section in required:
            if section not in sections:
                raise ParamsError(
                    f"{path}{name}.{section} is missing; write `{section}: {{}}` to change nothing"
                )
        for section, value in sections.items():
            if section not in allowed:
                where = _printable(f"{path}{name}.{section}")
                raise ParamsError(f"{where}: unknown key; allowed are {', '.join(allowed)}")
            if not isinstance(value, dict):
                raise ParamsError(f"{path}{name}.{section} = {_brief(value)} is not a mapping")


def _validate(model: type[M], tree: Mapping[str, Any], *, sources: Mapping[str, Mapping[str, Any]]) -> M:
    try:
        return model.model_validate(dict(tree))
    except ValidationError as error:
        sentences = [_sentence(problem, model, sources) for problem in error.errors(include_url=False)]
        raise ParamsError(f"{FILE}: " + "; ".join(sentences)) from None


def _sentence(problem: Any, model: type[Model], sources: Mapping[str, Mapping[str, Any]]) -> str:
    loc, message = problem["loc"], problem["msg"].removeprefix("Value error, ")
    keys = [str(key) for key in loc if key not in ("settings", "[key]")]
    if problem["type"] == "value_error":  # ours: it begins with the setting that does not fit the others
        key, _, message = message.partition(" ")
        name = key.removesuffix(":")
        return f"{_origin([*keys, *name.split('.')], sources)}{key[len(name) :]} {message}"
    path = _origin(keys, sources)
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key; allowed are {', '.join(_keys_at(model, loc[:-1]))}"
    if problem["type"] == "missing":
        return f"{path} is missing"
    return f"{path} = {_brief(problem['input'])}: {message}"


def _origin(keys: list[str], sources: Mapping[str, Mapping[str, Any]]) -> str:
    """The path under which the file itself sets `keys`: the arm before the profile before the defaults."""
    for name, tree in sources.items():
        if _sets(tree, keys):
            return _printable(".".join([name, *keys]))
    return _printable(".".join([*list(sources)[-1:], *keys]))


def _sets(tree: Any, keys: list[str]) -> bool:
    if not keys:
        return True
    if isinstance(tree, Mapping):
        return keys[0] in tree and _sets(tree[keys[0]], keys[1:])
    return isinstance(tree, list) and keys[0].isdecimal() and int(keys[0]) < len(tree)


def _printable(path: str) -> str:
    return path if path.isprintable() else path.encode("unicode_escape").decode("ascii")


def _brief(value: Any) -> str:
    """A value as it stands in a message: on one line, and not all of a long one."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    short.maxlevel = 3
    try:
        return short.repr(value)
    except ValueError:  # an integer of over 4300 digits has no text
        return (
            f"an integer of {value.bit_length():,} bits" if isinstance(value, int) else type(value).__name__
        )


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for key in loc:
        field = next((f for n, f in model.model_fields.items() if key in (n, f.alias)), None)
        if (
            field is None
            or not isinstance(field.annotation, type)
            or not issubclass(field.annotation, BaseModel)
        ):
            return []
        model = field.annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def _flatten(tree: Mapping[str, Any], prefix: str, flat: dict[str, str]) -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            _flatten(value, f"{prefix}{key}.", flat)
        else:
            flat[prefix + key] = str(value)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML would silently keep the last."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is not text", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key!r} stands there twice", key_node.start_mark
            )
        seen.add(key)
    return {
        loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value
    }


_StrictLoader.add_implicit_resolver(  # YAML 1.2's 1e-3, as DVC reads it; PyYAML alone takes it for text
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
