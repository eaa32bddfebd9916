"""What may be set in params.yaml: frozen, strict models with each setting's unit, range and meaning.

`settings.load` reads the file into these models; every default is in params.yaml, none is here.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

SECTIONS = ("data", "views", "pretrain", "embed", "probe", "evaluate", "robustness", "maps", "register")
ARM_SECTIONS = ("views", "pretrain", "probe", "evaluate")

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Arch = Annotated[str, Field(pattern=r"^(timm/)?[a-z][a-z0-9_]*$")]  # whether it exists is for `pretrain` to say
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Whole = Annotated[int, Field(ge=0, lt=2**31)]
Batch = Annotated[int, Field(ge=2, lt=2**31)]
Positive = Annotated[float, Field(gt=0)]
Pair = Annotated[tuple[float, float], Field(strict=False)]


def _select(value: object) -> object:
    if value in ("best", "last", "arbitrary") or (type(value) is int and value >= 1):
        return value
    raise PydanticCustomError("select", "should be best, last, arbitrary or an epoch, from 1")


# Which epoch to use. best: by validation mAP, or in pretraining by the loss; arbitrary: one of those that share the
# best one's integer part, drawn by the seed (the notebook compares integer parts, then takes the first file listed).
Select = Annotated[str | int, PlainValidator(_select)]


def _epochs(value: object) -> object:
    if value == "all" or (isinstance(value, list) and all(type(epoch) is int and epoch >= 1 for epoch in value)):
        return value
    raise PydanticCustomError("epochs", "should be all or a list of epochs, from 1")


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Split(Model):
    """Which tiles are for training, validation and test."""

    by: Literal["tile", "group"]  # group: near-duplicates stay together
    fractions: Annotated[tuple[float, float, float], Field(strict=False)]  # train, val, test
    seed: Whole
    stratify: bool  # give every split its share of each label (Sechidis et al. 2011)
    file: str | None  # a CSV in the data folder (columns image, split) instead of a random split

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.file is not None and (self.by == "group" or self.stratify):
            random = f"by: {self.by} and stratify: {str(self.stratify).lower()} apply to a random split"
            raise ValueError(f"{random}, but file: {self.file} fixes the split; set file: null to draw one")
        if min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-9:
            raise ValueError(f"fractions {list(self.fractions)} must be three positive numbers that sum to 1")
        return self


class Labels(Model):
    on_problem: Literal["warn", "drop", "fail"]  # drop: leave tiles with label errors out of every split


class Data(Model):
    """From data/<profile> to the tile store."""

    tile_px: Annotated[int, Field(ge=8, le=1024)]  # side of the tiles in the store
    labels: Labels
    split: Split
    # Values that become 0 and 255 where a file has other than 8 bits per channel; null: percentiles 2 and 98 of the
    # training tiles, which stats.json records.
    scale: Pair | None
    minimum_valid: Probability  # share of a tile's pixels that must hold data (alpha, mask, nodata value)
    on_unreadable: Literal["fail", "drop"]  # drop: leave unreadable tiles out and list them in audit.json

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} must be a pair with low < high")
        return self


class Views(Model):
    """The augmentations (SimCLR, arXiv:2002.05709, appendix A); evaluation only resizes."""

    crop_px: Annotated[int, Field(ge=8, le=1024)]  # side of a view, in training and in evaluation
    interpolation: Literal["bicubic", "bilinear"]  # in evaluation, antialiased; training's crops are bicubic
    scale: Pair  # area of the crop, as a fraction of the tile
    ratio: Pair  # width / height of the crop
    flip_p: Probability
    jitter_p: Probability
    brightness: Probability  # factor in [1 - x, 1 + x]
    contrast: Probability
    saturation: Probability
    hue: Annotated[float, Field(ge=0, le=0.5)]  # shift in [-x, x] of the colour circle
    grayscale_p: Probability
    blur_p: Probability
    blur_kernel_px: Annotated[int, Field(ge=1, le=99)]
    blur_sigma: Pair  # pixels of the view

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} [{low}, {high}] must be a pair with 0 < low <= high")
        if self.scale[1] > 1:
            raise ValueError(f"scale [{self.scale[0]}, {self.scale[1]}] must not exceed 1.0, the whole tile")
        if self.blur_kernel_px % 2 == 0 or self.blur_kernel_px > 2 * self.crop_px - 1:
            allowed = f"odd and less than twice crop_px {self.crop_px}"
            raise ValueError(f"blur_kernel_px {self.blur_kernel_px} must be {allowed}")
        return self


# auto: bfloat16 where the hardware computes in it; float32 with normalization: released, whose input bfloat16 blurs.
Precision = Literal["float32", "bfloat16", "auto"]

# Whether to learn from training tiles that are near-duplicates of validation or test tiles. Two arms that differ
# only in this measure the leakage of the split, on the same test tiles.
NearDuplicates = Literal["keep", "leave_out"]

# nt_xent and vicreg ignore labels; the others use the labels of the training tiles (see loss.py and objectives.py).
Objective = Literal[
    "none", "nt_xent", "vicreg", "supcon_any", "supcon_all", "jaccard", "multisupcon", "mulsupcon", "mulsupcon_moco",
    "msc", "msc_reg", "mulcon",
]  # fmt: skip
WITHOUT_LABELS = ("none", "nt_xent", "vicreg")
OWN_OUTPUTS = ("mulsupcon_moco", "mulcon")  # NT-Xent cannot be mixed in: it trains a projection of both views


class Queue(Model):
    length: Annotated[int, Field(ge=1, le=2**20)]  # projections of earlier batches that mulsupcon_moco compares with
    momentum: Probability  # of the encoder that makes them


class Projection(Model):
    """The head that pretraining puts on the encoder and discards afterwards."""

    hidden: Count | None  # width of the hidden layer; null: as wide as the features (SimCLR)
    out: Count  # width of z
    batch_norm: bool  # SimCLR's own code has it, the paper's notebook (2048, 512, 128) does not


class Finetune(Model):
    """Training of encoder and a linear head on labels, after pretraining: a ceiling for frozen probes."""

    epochs: Whole  # at most; 0: the encoder stays as pretrained
    learning_rate: Positive  # of Adam
    patience: Count  # epochs without a lower validation loss before it stops


class Pretrain(Model):
    """From the initial encoder to the one that is probed."""

    arch: Arch  # a classification model of torchvision, or timm/<name>
    weights: str  # IMAGENET1K_V2 or timm's tag, none, or the path of a safetensors or state-dict file
    normalization: Literal["train", "imagenet", "released", "encoder"]  # its input's mean and std; encoder: its own
    tiles: Literal["train", "unlabelled", "both"]  # to learn from; labels see unlabelled ones as negatives
    objective: Objective
    near_duplicates: NearDuplicates
    nt_xent_weight: Probability  # w in w·NT-Xent + (1 - w)·objective, for an objective that uses labels
    shuffle_labels: bool  # among the training tiles, in pretraining alone: a control
    queue: Queue
    temperature: Annotated[float, Field(gt=0, le=10)]
    projection: Projection
    forward: Literal["joint", "separate"]  # both views in one batch, or (notebook) one after the other
    adapt_batch_norm: bool  # re-estimate BatchNorm's running statistics on the training tiles
    epochs: Count
    select: Select  # the epoch whose encoder is probed
    keep_epochs: Annotated[str | list[int], PlainValidator(_epochs)]  # arms select among them without retraining
    batch_size: Batch  # tiles per step, over all processes; two views each
    micro_batch_size: Batch | None  # tiles in memory at once; null: all
    optimizer: Literal["adam", "adamw", "lars"]
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "cosine"]
    warmup_epochs: Whole  # linear, before the cosine
    finetune: Finetune
    precision: Precision  # of the encoder's arithmetic; the loss is float32
    matmul_convolutions: bool  # on a CPU, compute 3x3 convolutions of small maps as matrix products
    compile: bool  # torch.compile, with one process
    knn_every_epochs: Whole  # k-NN mAP on validation while training; 0: never

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_select(self.select, self.epochs)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be less than epochs {self.epochs}")
        if self.warmup_epochs and self.schedule == "constant":
            raise ValueError(f"warmup_epochs {self.warmup_epochs} requires schedule: cosine")
        uses_labels = self.objective not in WITHOUT_LABELS
        if self.nt_xent_weight and (not uses_labels or self.objective in OWN_OUTPUTS):
            needed = f"an objective that compares projections by their labels, not {self.objective}"
            raise ValueError(f"nt_xent_weight {self.nt_xent_weight} requires {needed}")
        if self.shuffle_labels and (not uses_labels or self.finetune.epochs):
            raise ValueError("shuffle_labels requires an objective that uses labels, and finetune.epochs: 0")
        if self.forward == "separate" and self.objective == "mulsupcon_moco":
            raise ValueError("objective mulsupcon_moco requires forward: joint")  # which view goes where is its own
        if uses_labels and (self.tiles == "unlabelled" or (self.tiles == "both" and self.objective == "mulcon")):
            raise ValueError(f"objective {self.objective} learns from labels that tiles: {self.tiles} do not have")
        if self.micro_batch_size is not None and self.forward == "separate":
            raise ValueError(f"micro_batch_size {self.micro_batch_size} requires forward: joint")
        if self.adapt_batch_norm and self.objective != "none":
            raise ValueError("adapt_batch_norm requires pretrain.objective: none")
        return self


class Embed(Model):
    """One pass of the frozen encoder over every tile."""

    precision: Precision


class Probe(Model):
    """The linear layer on frozen features."""

    batch_norm: Literal["frozen", "batch"]  # batch: normalize by the statistics of the batch (notebook)
    epochs: Count
    batch_size: Batch
    learning_rate: Positive
    near_duplicates: NearDuplicates  # in all that learns from labels: the converged probe and k-NN too
    select: Select  # the epoch that is tested

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_select(self.select, self.epochs)
        return self


class LabelFractions(Model):
    subsets: Count  # random subsets of the training labels, per fraction, for probes to convergence


class Evaluate(Model):
    undefined_ap: Literal["exclude", "zero"]  # AP of a label without positives (zero: notebook)
    labels: LabelFractions


Corruption = Literal[
    "illumination", "haze", "cloud", "season", "snow", "noise", "resolution", "blur", "jpeg", "rotation"
]


class Robustness(Model):
    corruptions: list[Corruption]  # of the test tiles; [] skips the stage
    strengths: Annotated[list[Literal[1, 2, 3]], Field(min_length=1)]


class Maps(Model):
    projections: list[Literal["umap", "tsne", "pca"]]  # of the test tiles' features; [] skips the stage


class Register(Model):
    minimum_val_mAP: Probability  # noqa: N815 - the field's spelling; no version below it


class Settings(Model):
    """Every setting of a run: `defaults`, overridden by its profile, overridden by its arm."""

    data: Data
    views: Views
    pretrain: Pretrain
    embed: Embed
    probe: Probe
    evaluate: Evaluate
    robustness: Robustness
    maps: Maps
    register_: Register = Field(alias="register")


class Machine(Model):
    """What belongs to this machine and to no experiment; no fingerprint depends on it."""

    processes: Count  # that share each batch of pretrain and embed
    deterministic: bool  # only deterministic algorithms, also on a GPU, where they are slower


class Params(Model):
    """params.yaml as written."""

    profile: str
    seeds: Annotated[list[Whole], Field(min_length=1)]
    run: Annotated[list[str], Field(min_length=1)]
    ladder: list[str]
    machine: Machine
    defaults: dict[str, Any]
    profiles: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    arms: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]


def _check_select(select: str | int, epochs: int) -> None:
    if isinstance(select, int) and select > epochs:
        raise ValueError(f"select {select} must be at most epochs {epochs}")
