"""The YAML file as frozen, validated models, and the digest of what decides the embeddings.

``load(path)`` gives a :class:`Config` or raises :class:`~batchsweep.errors.ConfigError` with one
line: file, line, key, what is wrong, and the valid choices.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from batchsweep.bandit.policy_names import PolicyName
from batchsweep.errors import ConfigError

logger = logging.getLogger(__name__)

LayerOutput = Literal["final_norm", "raw", "hidden_states"]
Pooling = Literal["mean", "last", "first", "max", "weighted_mean"]
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


class _Section(BaseModel):
    """A frozen section of the config in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Schedule(_Section):
    """Revisions by rule instead of by list: ``{strategy: uniform, interval: 5000}``."""

    strategy: Literal["sparse", "uniform", "log", "dense", "all"]
    """Which rule; ``batchsweep checkpoints --strategy NAME`` prints what it gives."""
    interval: int | None = Field(default=None, gt=0)
    """Training steps between two revisions, for ``uniform`` and ``dense``."""


Revisions = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)] | Schedule


class ModelConfig(_Section):
    """One model of the sweep. In YAML a bare name is enough: ``EleutherAI/pythia-14m``."""

    name: str = Field(min_length=1)
    """Hub repo id, or a local directory (of revisions, or of one model)."""
    revisions: Revisions | None = None
    """This model's own revisions instead of the top-level ones."""
    step_pattern: str | None = None
    """Regular expression whose first group is the training step in a revision's name."""
    trust_remote_code: bool = False
    """Run Python code that the model's repo brings. Off unless you say so for this model."""


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value):
        raise ValueError("should name each only once")
    return value


def _as_model(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class LocalTask(_Section):
    """A task of your own, from a file: see docs/guides/config.md."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """The task's name in tables and in the store."""
    type: TaskType
    """What kind of task it is; decides which evaluator of MTEB scores it. ``python``: the file is
    your own code and defines the mteb task of that name; it is run when the config names it."""
    path: Path
    """A JSONL or Parquet file; for classification (train, test) and retrieval (corpus, queries,
    qrels) a directory of them; for ``python`` a .py file."""
    columns: dict[str, str] = {}
    """Column that the type needs -> what your file calls it."""


class EveryLayers(_Section):
    """Every n-th layer, counted back from the last: ``layers: {every: 2}``."""

    every: int = Field(gt=0)


class EmbeddingConfig(_Section):
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
    """Tokens (padding included) of one forward batch."""


class CorpusConfig(_Section):
    """Which texts of the tasks are used."""

    max_texts_per_task: int | None = Field(default=None, gt=0)
    """Cap per task: a seeded, label-preserving subset. Said in every result."""
    seed: int = 42
    """Seed of the caps."""


class StoreConfig(_Section):
    """Where the embeddings go and in which form."""

    path: str | None = None
    """Directory or URL. Default: ``runs/<config name>/store.zarr`` (``.h5`` for hdf5)."""
    format: Literal["zarr", "hdf5"] = "zarr"
    dtype: Literal["float16", "float32", "int8"] = "float16"
    """What is stored. A value that float16 can't hold is an error, never an inf."""
    block_texts: int = Field(default=4096, gt=0)
    """Texts a block: the unit of writing, sealing and resuming."""
    compression: Literal["none", "zstd"] = "none"
    """Float embeddings hardly compress; zstd saves a few per cent."""


class MetricsConfig(_Section):
    """Label-free metrics of the representations, per layer."""

    enabled: bool = True
    sample: int = Field(default=256, gt=1)
    """Texts in the seeded sample that the metrics are computed on."""
    seed: int = 0
    views: bool = False
    """Also two augmented views a text, for InfoNCE, DiME and LiDAR."""


class RewardsConfig(_Section):
    """How an arm's scores on several tasks become one number."""

    scale: Literal["raw", "z"] = "raw"
    """``raw``: the main scores; ``z``: per task against the baseline checkpoint's layers."""
    aggregate: Literal["mean", "robust_mean", "rank"] = "mean"
    baseline: str | None = None
    """Revision whose layers are the baseline. Default: the last of the sweep."""
    target: str | None = None
    """Only one category of tasks counts, for example ``sts``. Default: all tasks."""


class PullBudget(_Section):
    """A budget in pulls, or in seconds of scoring."""

    pulls: int | None = Field(default=None, gt=0)
    seconds: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_of(self) -> PullBudget:
        if (self.pulls is None) == (self.seconds is None):
            raise ValueError("give exactly one of 'pulls' and 'seconds'")
        return self


class BanditConfig(_Section):
    """The search for the best arm."""

    policy: PolicyName = "toptwo_gp"
    """Which policy decides; ``batchsweep bandit --help`` lists them."""
    budget: Annotated[float, Field(gt=0)] | PullBudget = 100.0
    """Whole-arm evaluations (100 allows 100 x tasks pulls), ``{pulls: n}`` or ``{seconds: s}``.
    The policy ``exhaustive`` scores every cell, whatever is given here."""
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
        if self.budget.pulls is not None:
            return min(self.budget.pulls, cells), None
        return None, self.budget.seconds

    def budget_text(self, tasks: int) -> str:
        """The budget in words: ``100 x 32 tasks``, ``400 pulls``, ``3600 s``, ``every cell``."""
        if self.policy == "exhaustive":
            return "every cell"
        if not isinstance(self.budget, PullBudget):
            return f"{self.budget:g} x {tasks} tasks"
        if self.budget.pulls is not None:
            return f"{self.budget.pulls} pulls"
        return f"{self.budget.seconds:g} s"


class Config(_Section):
    """A whole sweep."""

    name: str = Field(default="sweep", pattern=r"^[A-Za-z0-9_.-]+$")
    """Names the run's folder. Default: the file's name."""
    models: Annotated[
        tuple[Annotated[ModelConfig, BeforeValidator(_as_model)], ...],
        BeforeValidator(_as_tuple),
        Field(min_length=1),
    ]
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

    @property
    def store_url(self) -> str:
        """Where the store is: ``store.path``, or the default below ``runs/``."""
        if self.store.path is not None:
            return self.store.path
        return f"runs/{self.name}/store.{'zarr' if self.store.format == 'zarr' else 'h5'}"

    @property
    def embedding_digest(self) -> str:
        """sha256 (hex) of what decides the bytes of a block, the corpus and weights apart.

        Two configs with one digest write the same arrays from the same corpus and checkpoint.
        ``device`` and ``batch_tokens`` are left out: they move rounding, not meaning.
        """
        embedding = self.embedding.model_dump(mode="json", exclude={"device", "batch_tokens"})
        store = self.store.model_dump(mode="json", include={"dtype", "block_texts"})
        text = json.dumps({"embedding": embedding, "store": store}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def load(path: str | Path) -> Config:
    """Read and validate a config file.

    Relative paths of local models and tasks are relative to the working directory, as in the
    commands that users type, not to the file.

    Raises:
        ConfigError: with file, line, key and the valid choices.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_nearby(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as a config file: {error}") from None
    return parse(text, source=str(path), default_name=path.stem)


def parse(text: str, *, source: str, default_name: str = "sweep") -> Config:
    """Validate the text of a config; ``source`` is what errors call the file."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}{_line_and_problem(error)}") from None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{source}: a config is a mapping of keys, such as 'models: [...]'")
    _check_repeats(root, source, top=True)
    try:
        values: dict[str, Any] = yaml.SafeLoader("").construct_document(root)
    except yaml.YAMLError as error:  # A tag of Python's, a key that is a list.
        raise ConfigError(f"{source}{_line_and_problem(error)}") from None
    values = {"name": default_name, **values}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        # One line: the first fault that is not an alternative of a union the user did not mean.
        raise ConfigError(_explain(error, root, source)) from None


def _line_and_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark is not None else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{line}: not valid YAML: {problem}"


def _nearby(path: Path) -> str:
    """The remedy for a file that is not there: what is there with a similar name."""
    folder = path.parent
    if not folder.is_dir():
        return f" (and no folder {folder})"
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
    if not names:
        return f"; {folder} holds no YAML file"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {folder / close[0]}?" if close else f"; {folder} has {', '.join(names)}"


def _check_repeats(node: yaml.Node, source: str, *, top: bool = False) -> None:
    """Repeated keys are errors; a repeated top-level ``revisions`` takes the last one.

    Users append generated lists (``batchsweep checkpoints ... >> config.yaml``), so that one
    repetition is meant.
    """
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_repeats(item, source)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            line, first = key.start_mark.line + 1, seen[name].start_mark.line + 1
            if not (top and name == "revisions"):
                raise ConfigError(
                    f"{source}:{line}: key '{name}' is there twice (first on line {first}); "
                    "keep one of them"
                )
            logger.warning(
                "%s:%d: 'revisions' is there more than once (first on line %d); "
                "the last one is used",
                source,
                line,
                first,
            )
        seen.setdefault(name, key)
        _check_repeats(value, source)


def _explain(error: ValidationError, root: yaml.MappingNode, source: str) -> str:
    """One line for the fault that is deepest in the file: that is what the user meant to write."""
    faults = error.errors(include_url=False)
    # Of a union's alternatives, pydantic reports all; the one that got furthest is the intended.
    fault = max(faults, key=lambda f: (len(_yaml_path(root, f["loc"])[0]), f["type"] != "missing"))
    keys, line = _yaml_path(root, fault["loc"])
    key = ".".join(str(k) for k in keys) or "(top level)"
    where = f"{source}:{line}: {key}"
    if fault["type"] == "extra_forbidden":
        wrong = str(fault["loc"][-1])
        choices = _choices_at(fault["loc"][:-1])
        close = difflib.get_close_matches(wrong, choices, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"{where}: unknown key; {hint}Valid keys: {', '.join(choices)}"
    if fault["type"] == "missing":
        return f"{where}: missing key '{fault['loc'][-1]}'"
    alternatives = [f for f in faults if _yaml_path(root, f["loc"])[0] == keys]
    reasons = list(dict.fromkeys(_reason(f) for f in alternatives))
    return f"{where}: {' or '.join(reasons)}; got {_shown(fault['input'])}"


def _reason(fault: ErrorDetails) -> str:
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if fault["type"] == "too_short":
        message = "should not be empty"
    return re.sub(r"valid dictionary or instance of \w+|valid tuple", _yaml_word, message)


def _yaml_word(match: re.Match[str]) -> str:
    return "list" if match[0] == "valid tuple" else "mapping"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _yaml_path(
    root: yaml.MappingNode, loc: tuple[int | str, ...]
) -> tuple[tuple[int | str, ...], int]:
    """The part of a pydantic location that is really in the file, and its line."""
    node: yaml.Node = root
    line = root.start_mark.line + 1
    keys: list[int | str] = []
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            # The last of repeated keys is the one that counts.
            found = [(k, v) for k, v in node.value if str(k.value) == str(step)]
            if found:
                key, node = found[-1]
                line = key.start_mark.line + 1
                keys.append(step)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line + 1
            keys.append(step)
        # Other steps name the alternative of a union ("Schedule"), not a place in the file.
    return tuple(keys), line


def _choices_at(loc: tuple[int | str, ...]) -> list[str]:
    """The valid keys of the section at a pydantic location."""
    section: Any = Config
    for step in loc:
        nested = (
            _sections_in(section.model_fields[step].annotation)
            if (isinstance(step, str) and step in section.model_fields)
            else [c for c in _Section.__subclasses__() if c.__name__ == step]
        )
        if nested:
            section = nested[0]
    return list(section.model_fields)


def _sections_in(annotation: Any) -> list[type[_Section]]:
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        return [annotation]
    return [s for argument in get_args(annotation) for s in _sections_in(argument)]
