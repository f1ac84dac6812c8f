"""The config as frozen, validated models, and the digest of what decides the embeddings."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from batchsweep.bandit.policy_names import PolicyName
from batchsweep.config.place import local_path

LayerOutput = Literal["final_norm", "raw", "hidden_states"]
Pooling = Literal["mean", "last", "first", "max", "weighted_mean"]
Transform = Literal["stored", "unit", "center", "all_but_the_top"]
TaskType = Literal[
    "sts",
    "pair_classification",
    "classification",
    "multilabel_classification",
    "clustering",
    "reranking",
    "retrieval",
    "bitext_mining",
    "summarization",
    "python",
]


def _as_tuple(value: Any) -> Any:
    """One name stands for a list of one; YAML's lists become tuples."""
    if isinstance(value, str | dict):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _no_place(value: str) -> str:
    """A name becomes a folder's or a file's: ``.`` and ``..`` are folders already."""
    if value in (".", ".."):
        raise ValueError("should be a name, not '.' or '..'")
    return value


def _nameable(value: str) -> str:
    """A path or repo id whose every part a file system can hold."""
    if any(len(part.encode()) > 255 for part in value.split("/")):
        raise ValueError("should have no part of more than 255 bytes between its slashes")
    return value


def _step_pattern(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"should be a regular expression ({error})") from None
    if groups < 1:
        raise ValueError("should have a group (in parentheses) for the training step")
    return value


Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=128), AfterValidator(_no_place)
]


class Section(BaseModel):
    """A frozen section of the config in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``true`` is not 1: only a switch takes true or false."""
        switch = info.field_name and cls.model_fields[info.field_name].annotation is bool
        items = value if isinstance(value, list) else [value]
        if not switch and any(isinstance(item, bool) for item in items):
            raise ValueError("should not be true or false")
        return value


class Schedule(Section):
    """Revisions by rule instead of by list: ``{strategy: uniform, interval: 5000}``."""

    strategy: Literal["sparse", "uniform", "log", "dense", "all"]
    """Which rule; ``batchsweep checkpoints --strategy NAME`` prints what it gives."""
    interval: int | None = Field(default=None, gt=0)
    """Training steps between two revisions, for ``uniform`` and ``dense``."""
    points: int | None = Field(default=None, gt=1)
    """How many revisions, for ``uniform`` and ``log``: evenly spread over the steps, or over their
    logarithm. The last one is always among them."""


Revisions = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)] | Schedule


class ModelConfig(Section):
    """One model of the sweep. In YAML a bare name is enough: ``EleutherAI/pythia-14m``."""

    name: Annotated[str, Field(min_length=1), AfterValidator(_nameable)]
    """Hub repo id, or a local directory (of revisions, or of one model)."""
    revisions: Revisions | None = None
    """This model's own revisions instead of the top-level ones."""
    step_pattern: Annotated[str, AfterValidator(_step_pattern)] | None = None
    """Regular expression whose first group is the training step in a revision's name."""
    tokens_per_step: int | None = Field(default=None, gt=0)
    """Tokens of one training step. Where all models say it, the search puts them on one axis, of
    tokens seen. Suites by short names bring it."""
    trust_remote_code: bool = False
    """Run Python code that the model's repo brings. Off unless you say so for this model."""


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value):
        raise ValueError("should name each only once")
    return value


def _as_model(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class LocalTask(Section):
    """A task of your own, from a file: see docs/guides/config.md."""

    name: Name
    """The task's name in tables and in the store."""
    type: TaskType
    """What kind of task it is; decides which evaluator of MTEB scores it. ``python``: the file is
    your own code and defines the mteb task of that name; it is run when the config names it."""
    path: Path
    """A JSONL or Parquet file; for classification (train, test) and retrieval (corpus, queries,
    qrels) a directory of them; for ``python`` a .py file."""
    columns: dict[str, str] = {}
    """Column that the type needs -> what your file calls it."""

    def __hash__(self) -> int:
        return hash((self.name, self.type, self.path, tuple(sorted(self.columns.items()))))


class EveryLayers(Section):
    """Every n-th layer, counted back from the last: ``layers: {every: 2}``."""

    every: int = Field(gt=0)


class EmbeddingConfig(Section):
    """How a text becomes one vector per layer."""

    layers: Literal["all"] | EveryLayers | tuple[int, ...] = "all"
    """``all`` (1 to L), a list of layers (0 is the embedding output), or ``{every: n}``."""
    layer_output: LayerOutput = "final_norm"
    """``final_norm``, ``raw`` or ``hidden_states``."""
    pooling: Annotated[
        tuple[Pooling, ...],
        BeforeValidator(_as_tuple),
        AfterValidator(_distinct),
        Field(min_length=1),
    ] = ("mean",)
    """One pooling or several; all come from the same forward pass."""
    transforms: Annotated[
        tuple[Transform, ...],
        BeforeValidator(_as_tuple),
        AfterValidator(_distinct),
        Field(min_length=1),
    ] = ("stored",)
    """Further arms that cost no forward pass: vectors as ``stored``, of length 1 (``unit``), with
    the mean of the task's texts removed (``center``), or with its main components too
    (``all_but_the_top``). Worked out when vectors are read: it can be changed at any time, also
    after extraction."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the model computes in. ``auto``: as published on a GPU, float32 on a CPU."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    """``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""
    max_length: int = Field(default=512, gt=0)
    """Texts are cut to this many tokens; the number of cut texts is reported."""
    prefix: str | dict[Literal["query", "document"], str] = ""
    """Put before every text, for example an instruction; or by prompt type, as in
    ``{query: "query: ", document: "passage: "}``: texts of other kinds of tasks then have none."""
    pool_prefix: bool = True
    """Whether the prefix's own tokens take part in pooling."""
    batch_tokens: int = Field(default=16384, gt=0)
    """Tokens (padding included) of one forward batch, at most."""

    def deciding(self) -> dict[str, Any]:
        """What decides a stored vector, as JSON values.

        ``device`` and ``batch_tokens`` are left out: they move rounding, not meaning. So are
        ``transforms``, which are worked out when vectors are read.
        """
        return self.model_dump(mode="json", exclude={"device", "batch_tokens", "transforms"})


class CorpusConfig(Section):
    """Which texts of the tasks are used."""

    max_texts_per_task: int | None = Field(default=None, gt=0)
    """Cap per task: a seeded, label-preserving subset. Said in every result."""
    seed: int = 42
    """Seed of the caps."""


class StoreConfig(Section):
    """Where the embeddings go and in which form."""

    path: Annotated[str, Field(min_length=1), AfterValidator(_nameable)] | None = None
    """Directory or URL. Default: ``runs/<config name>/store.zarr``, or ``store-hdf5`` there."""
    format: Literal["zarr", "hdf5"] = "zarr"
    dtype: Literal["float16", "float32", "int8"] = "float16"
    """What is stored. A value that float16 can't hold is an error, never an inf."""
    block_texts: int = Field(default=256, gt=0)
    """Texts a block: the unit of writing, sealing and resuming, and of extracting some tasks only.
    Larger ones make fewer files, and more work that is asked for by no task."""
    compression: Literal["none", "zstd"] = "none"
    """Float embeddings hardly compress; zstd saves a few per cent."""

    @model_validator(mode="after")
    def _hdf5_is_local(self) -> StoreConfig:
        if self.format == "hdf5" and self.path is not None and local_path(self.path) is None:
            raise ValueError("an hdf5 store is a local file; use 'format: zarr' for a URL")
        return self


class MetricsConfig(Section):
    """Label-free metrics of the representations, per layer."""

    enabled: bool = True
    sample: int = Field(default=256, gt=1)
    """Texts in the seeded sample that the metrics are computed on."""
    seed: int = 0
    views: bool = False
    """Also two augmented views a text, for InfoNCE, DiME and LiDAR."""


class RewardsConfig(Section):
    """How an arm's scores on several tasks become one number."""

    scale: Literal["raw", "z"] = "raw"
    """``raw``: the main scores; ``z``: per task against the baseline checkpoint's layers."""
    aggregate: Literal["mean", "robust_mean", "rank"] = "mean"
    baseline: str | None = None
    """Revision whose layers are the baseline. Default: the last of the sweep."""
    target: str | None = None
    """Only one category of tasks counts, for example ``sts``. Default: all tasks."""


def _in_bytes(value: Any) -> Any:
    """``20GiB`` and the like as a number of bytes."""
    if not isinstance(value, str):
        return value
    parts = re.fullmatch(r"([0-9.]+) ?(KiB|MiB|GiB|TiB|KB|MB|GB|TB)", value.strip())
    if parts is None:
        raise ValueError("should be a number of bytes, or one with a unit such as 20GiB or 500MB")
    power = "KMGT".index(parts[2][0]) + 1
    return int(float(parts[1]) * (1024 if "i" in parts[2] else 1000) ** power)


class PullBudget(Section):
    """A budget in pulls or in seconds of scoring, and in what ``batchsweep run`` extracts: at least
    one limit; all that are given hold."""

    pulls: int | None = Field(default=None, gt=0)
    seconds: float | None = Field(default=None, gt=0)
    gpu_hours: float | None = Field(default=None, gt=0)
    """Forward passes, starts and downloads: estimated, and corrected by what extraction took."""
    bytes: Annotated[int, BeforeValidator(_in_bytes), Field(gt=0)] | None = None
    """Embeddings on disk, as a number or as ``20GiB``. Never exceeded."""
    checkpoints: int | None = Field(default=None, gt=0)
    """Checkpoints of which anything is extracted."""

    @model_validator(mode="after")
    def _some(self) -> PullBudget:
        if self.pulls is not None and self.seconds is not None:
            raise ValueError("give exactly one of 'pulls' and 'seconds'")
        if not self.model_fields_set:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}")
        return self

    def text(self) -> str:
        """In words: ``400 pulls``, ``3600 s``, ``5 GPU hours, 20 GiB, 10 checkpoints``."""
        parts = [] if self.pulls is None else [f"{self.pulls} pulls"]
        if self.seconds is not None:
            parts.append(f"{self.seconds:g} s")
        if self.gpu_hours is not None:
            parts.append(f"{self.gpu_hours:g} GPU hours")
        if self.bytes is not None:
            parts.append(f"{self.bytes / 2**30:.3g} GiB")
        if self.checkpoints is not None:
            parts.append(f"{self.checkpoints} checkpoints")
        return ", ".join(parts)


class BanditConfig(Section):
    """The search for the best arm."""

    policy: PolicyName = "toptwo_gp"
    """Which policy decides; ``batchsweep bandit --help`` lists them."""
    budget: Annotated[float, Field(gt=0)] | PullBudget = 100.0
    """Whole-arm evaluations (100 allows 100 x tasks pulls), ``{pulls: n}`` or ``{seconds: s}``; or
    what ``run`` may extract: ``{gpu_hours: 5}``, ``{bytes: 20GiB}``, ``{checkpoints: 10}``. The
    policy ``exhaustive`` scores every cell, whatever is given here."""
    seed: int = 0
    stop_at_regret: float = Field(default=0.0005, ge=0)
    """Stop early once the expected regret (in score) is below this; 0 never stops early."""
    final_check: int = Field(default=3, ge=0)
    """How many of the top arms are scored on all tasks, in full, at the end."""
    texts_per_pull: int | None = Field(default=None, ge=20)
    """A pull on a larger task scores two seeded subsets of together so many texts (retrieval:
    queries and relevant documents, against the whole corpus), the same for every arm; how far the
    two lie apart is the pull's noise. Default: whole tasks."""
    workers: int = Field(default=1, gt=0)
    """Pulls in parallel, as processes."""

    def budget_for(self, arms: int, tasks: int) -> tuple[int | None, float | None]:
        """(pulls, seconds) that a search of so many arms and tasks may spend: exactly one is set.

        Pulls never exceed the number of cells, and those that the final check takes after a search
        on subsets.
        """
        cells = arms * tasks + (self.final_check * tasks if self.texts_per_pull else 0)
        if self.policy == "exhaustive":
            return cells, None
        if not isinstance(self.budget, PullBudget):
            return min(max(1, round(self.budget * tasks)), cells), None
        if self.budget.seconds is not None:
            return None, self.budget.seconds
        return min(self.budget.pulls or cells, cells), None

    def budget_text(self, tasks: int) -> str:
        """The budget in words: ``100 x 32 tasks``, ``400 pulls``, ``3600 s``, ``every cell``."""
        if self.policy == "exhaustive":
            return "every cell"
        if not isinstance(self.budget, PullBudget):
            return f"{self.budget:g} x {tasks} tasks"
        return self.budget.text()


class Config(Section):
    """A whole sweep."""

    name: Name = "sweep"
    """Names the run's folder. Default: the file's name."""
    models: Annotated[
        tuple[Annotated[ModelConfig, BeforeValidator(_as_model)], ...],
        BeforeValidator(_as_tuple),
        Field(min_length=1),
    ]
    suites: str | None = None
    """A file of your own suites for short names in ``models``, of the form of
    ``batchsweep/config/suites.yaml``."""
    revisions: Revisions = ("main",)
    """Checkpoints of every model: a list (``step1000``), or ``{strategy: sparse}``."""
    tasks: Annotated[tuple[str | LocalTask, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    """Preset, benchmark and task names, and tasks of your own."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    corpus: CorpusConfig = CorpusConfig()
    store: StoreConfig = StoreConfig()
    metrics: MetricsConfig = MetricsConfig()
    rewards: RewardsConfig = RewardsConfig()
    bandit: BanditConfig = BanditConfig()

    def model_of(self, name: str) -> ModelConfig | None:
        """What the config says of a model; None if it isn't in it."""
        return next((model for model in self.models if model.name == name), None)

    @property
    def run_folder(self) -> Path:
        """Where logs and reports go by default: beside a local store, else ``runs/<name>``."""
        path = local_path(self.store_url)
        return Path("runs") / self.name if path is None else path.parent

    @property
    def store_url(self) -> str:
        """Where the store is: ``store.path``, or the default below ``runs/``."""
        if self.store.path is not None:
            return self.store.path
        return f"runs/{self.name}/store{'.zarr' if self.store.format == 'zarr' else '-hdf5'}"

    @property
    def embedding_digest(self) -> str:
        """sha256 (hex) of what decides the bytes of a block, the corpus and weights apart.

        Two configs with one digest write the same arrays from the same corpus and checkpoint.
        """
        embedding = self.embedding.deciding()
        store = self.store.model_dump(mode="json", include={"dtype", "block_texts"})
        text = json.dumps({"embedding": embedding, "store": store}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
