"""An arm as a model: the checkpoint cut to l blocks, as a folder that needs no batchsweep.

``SentenceTransformer("best/")``, ``AutoModel.from_pretrained("best/")`` and ``mteb run -m best/``
load it. Before the folder gets its name, its vectors are held against the store's.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from batchsweep.arm import Arm
from batchsweep.config import Config
from batchsweep.corpus.tokens import load_tokenizer
from batchsweep.errors import IndexFailed, StoreError, StoreMismatch, UsageError, writing
from batchsweep.export.card import model_card
from batchsweep.extract.weights import check_weights
from batchsweep.plan.frozen import frozen_plan
from batchsweep.plan.plan import PlanEntry
from batchsweep.score.transforms import ArmReader, Transform, Unit, has_statistics, parts_of
from batchsweep.store import Store
from batchsweep.store.pairs import ready_tasks

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

    from batchsweep.forward.architecture import LoadedCheckpoint

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]

#: Our pooling -> sentence-transformers' mode.
MODES = {
    "mean": "mean",
    "last": "lasttoken",
    "first": "cls",
    "max": "max",
    "weighted_mean": "weightedmean",
}

#: Texts of the corpus that the folder's vectors are compared on.
_COMPARED = 64

#: How far two vectors of one text may lie apart, as a part of the vector's length: what the dtype
#: that was computed in explains (the folder computes in float32), and what that of the store does.
_COMPUTED = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2, "published": 6e-2}
_STORED = {"float32": 0.0, "float16": 1e-3, "int8": 2e-2}


@dataclass(frozen=True)
class ExportedModel:
    """What was written."""

    folder: Path
    arm: Arm
    texts: int
    """Texts whose vectors were held against the store's."""
    difference: float
    """The largest distance of two vectors of one text, as a part of the vector's length."""


def export_model(
    store: Store, config: Config, arm: Arm, folder: Path, *, texts_of: str | None = None
) -> ExportedModel:
    """Write an arm as a model in the layout of sentence-transformers.

    The folder has the checkpoint cut to the arm's layer in float32, its final norm, its tokenizer,
    the pooling, the prefix as prompts, and a model card with the provenance. A transform is a
    module behind the pooling.

    Args:
        store: holds the arm's vectors, which the model's are compared with.
        arm: which one; its pooling may be left out if the store has one only.
        folder: a new one, or an empty one.
        texts_of: the task that a transformed arm's statistics are taken from; the model's vectors
            are then those that the arm has on this task.

    Raises:
        UsageError: no such arm; one that the layout can't say (``raw`` states of the last layer of
            a model with a final norm); a transform without its task; the folder isn't empty.
        StoreMismatch: the arm's vectors were made with another config.
        StoreError: there is no vector of this arm yet, or the folder can't be written.
        IndexFailed: the checkpoint isn't the planned one, or the model's vectors aren't the
            store's.
    """
    entry, arm = _known(store, config, arm)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is there already; delete it, or choose another folder")
    if has_statistics(str(arm.pooling)) != (texts_of is not None):
        raise UsageError(_which_texts(arm))
    rows = _rows(store, arm)
    model_config = config.model_of(entry.checkpoint.model)
    if model_config is None:
        raise UsageError(f"{arm}: '{entry.checkpoint.model}' is not among the config's models")
    if model_config.trust_remote_code:
        raise UsageError(
            f"{arm}: the model needs Python code from its repo, which an exported model can't bring"
        )
    check_weights(model_config, entry)
    folder.parent.mkdir(parents=True, exist_ok=True)
    vectors = ArmReader.of(store, store.reader(arm.key), arm, str(texts_of))
    # Under another name until it is whole and its vectors are right.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        new = Path(temporary) / "model"
        with writing(folder):
            _write(new, config, entry, arm, vectors.transform)
        difference = _compare(new, store, config, arm, rows, vectors)
        card = model_card(store, config, entry, arm, difference, texts_of)
        (new / "README.md").write_text(card)
        if folder.is_dir():
            folder.rmdir()
        new.replace(folder)
    logger.info("%s: %d vectors are the store's to within %.1e", arm, len(rows), difference)
    return ExportedModel(folder, arm, len(rows), difference)


def _known(store: Store, config: Config, arm: Arm) -> tuple[PlanEntry, Arm]:
    """The arm's index in the plan, and the arm with its pooling named."""
    plan = frozen_plan(store, config, scoring=True)
    entry = plan.entry_of(arm.key)
    if entry is None or arm.layer not in entry.layers:
        some = ", ".join(plan.arms()[:3])
        raise UsageError(f"no arm '{arm}' in {store.url}; there are such as {some}")
    if arm.pooling is None and len(plan.poolings) == 1:
        arm = Arm(arm.key, arm.layer, plan.poolings[0])
    stored, _ = parts_of(str(arm.pooling))
    if stored not in plan.poolings:
        raise UsageError(
            f"arm '{arm}': say which pooling, such as {arm.key}#{arm.layer}#{plan.poolings[0]}; "
            f"there are {', '.join(plan.poolings)}"
        )
    return entry, arm


def _rows(store: Store, arm: Arm) -> npt.NDArray[np.int64]:
    """Rows of the corpus to compare on: seeded, of the tasks that are extracted."""
    corpus = store.require_corpus()
    ready = ready_tasks(store, [arm.key]).get(arm.key, ()) if arm.key in store else ()
    rows = [corpus.rows_of(task) for task in ready]
    there = np.unique(np.concatenate(rows)) if rows else np.empty(0, np.int64)
    if not len(there):
        raise StoreError(
            f"{store.url}: no task of {arm.key} is extracted, so its vectors can't be compared; "
            "run 'batchsweep extract'"
        )
    count = min(_COMPARED, len(there))
    chosen = np.random.default_rng(0).choice(there, count, replace=False)
    return np.sort(chosen).astype(np.int64)


def _which_texts(arm: Arm) -> str:
    if not has_statistics(str(arm.pooling)):
        return f"{arm}: --texts-of is for a transform with statistics; this arm has none"
    return (
        f"{arm}: a transform takes its statistics from the texts of each task that is scored, and "
        "a model has one of each: say of which task with --texts-of TASK, or export the arm as "
        "stored"
    )


def _write(
    folder: Path, config: Config, entry: PlanEntry, arm: Arm, transform: Transform | Unit | None
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from batchsweep.forward.forward import load_checkpoint

    embedding = config.embedding
    loaded = load_checkpoint(
        entry.checkpoint.load_model,
        entry.checkpoint.load_revision,
        dtype="float32",
        device="cpu",
        transformers_own=True,
    )
    tokenizer = load_tokenizer(entry.checkpoint.load_model, entry.checkpoint.load_revision)
    _cut(loaded, arm.layer, embedding.layer_output)
    loaded.model.save_pretrained(folder)  # type: ignore[operator]
    # Padding stands behind a text, whose tokens then have the positions that they were stored with.
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.save_pretrained(folder)
    transformer = Transformer(
        str(folder), max_seq_length=embedding.max_length, model_kwargs={"dtype": "float32"}
    )
    pooling = Pooling(
        loaded.hidden,
        pooling_mode=MODES[parts_of(str(arm.pooling))[0]],
        include_prompt=embedding.pool_prefix,
    )
    prompts, default = _prompts(embedding.prefix)
    model = SentenceTransformer(
        modules=[transformer, pooling, *_behind(transform)],
        device="cpu",
        prompts=prompts,
        default_prompt_name=default,
    )
    model.save(str(folder), create_model_card=False)


def _behind(transform: Transform | Unit | None) -> list[torch.nn.Module]:
    """The transform as modules: a dense one has W = 1 - sum of u_k u_k^T, and b = -W mean."""
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    if transform is None:
        return []
    if isinstance(transform, Unit):
        return [Normalize()]
    hidden = len(transform.mean)
    components = transform.components.astype(np.float64)
    weight = np.eye(hidden) - components.T @ components
    bias = -weight @ transform.mean
    return [
        Dense(
            hidden,
            hidden,
            activation_function=torch.nn.Identity(),
            init_weight=torch.tensor(weight, dtype=torch.float32),
            init_bias=torch.tensor(bias, dtype=torch.float32),
        )
    ]


def _cut(loaded: LoadedCheckpoint, layer: int, layer_output: str) -> None:
    """Leave out the blocks after ``layer``, in the model and in its config."""
    last = layer == loaded.num_layers
    normed = layer_output == "final_norm" or (layer_output == "hidden_states" and last)
    if loaded.final_norm is not None and not normed:
        raise UsageError(
            f"{loaded.name}, layer {layer}: its {layer_output} states come without the final norm, "
            "which a model of transformers always applies; a sweep with 'layer_output: final_norm' "
            "has arms that can be exported"
        )
    if layer_output == "hidden_states":
        layer = loaded.hidden_states[layer][0]  # Mamba's tuple is shifted by one block
    config: Any = loaded.model.config
    text_config = config.get_text_config()
    # What newer architectures say of each block (layer_types, ...).
    for name, value in vars(text_config).items():
        if isinstance(value, list) and len(value) == loaded.num_layers:
            setattr(text_config, name, value[:layer])
    text_config.num_hidden_layers = layer
    setattr(loaded.blocks_owner, loaded.blocks_attribute, loaded.blocks[:layer])


def _prompts(prefix: str | dict[Any, str]) -> tuple[dict[str, str], str | None]:
    """The prefix as sentence-transformers' prompts, and which one is the default."""
    if isinstance(prefix, str):
        return {"query": prefix, "document": prefix}, "document" if prefix else None
    return {"query": prefix.get("query", ""), "document": prefix.get("document", "")}, None


def _compare(
    folder: Path,
    store: Store,
    config: Config,
    arm: Arm,
    rows: npt.NDArray[np.int64],
    vectors: ArmReader,
) -> float:
    """The largest relative distance between the folder's vectors and the store's.

    Raises:
        IndexFailed: it is more than the dtypes explain.
    """
    from sentence_transformers import SentenceTransformer

    corpus, reader = store.require_corpus(), store.reader(arm.key)
    if reader.provenance.get("config_digest") != config.embedding_digest:
        raise StoreMismatch(
            f"{store.url}: the vectors of {arm.key} were made with another 'embedding' than this "
            "config's; export with the config that they were extracted with"
        )
    stored = vectors.read(rows)
    texts = corpus.texts(rows)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    own = _encoded(model, texts, config.embedding.prefix)
    # A text without tokens is the model's end-of-text token here; tokenizers can't say that.
    some = np.array([bool(text.strip()) for text in texts], bool)
    scale = np.linalg.norm(stored, axis=1)
    if has_statistics(str(arm.pooling)):
        # What is left is as exact as what it began with.
        scale = np.linalg.norm(reader.read(parts_of(str(arm.pooling))[0], arm.layer, rows), axis=1)
    scale = np.maximum(scale, 1e-12)
    distances = np.linalg.norm(own - stored, axis=1) / scale
    difference = float(distances[some].max(initial=0.0))
    allowed = _COMPUTED[str(reader.provenance.get("compute_dtype", "published"))]
    allowed += _STORED[config.store.dtype]
    if not difference <= allowed:
        worst = int(rows[some][distances[some].argmax()])
        raise IndexFailed(
            f"{arm}: the exported model's vector of row {worst} differs from the store's by "
            f"{difference:.1e} of its length ({allowed:.1e} are explained by the dtypes), so this "
            "arm can't be exported; nothing was written"
        )
    return difference


def _encoded(
    model: SentenceTransformer, texts: Sequence[str], prefix: str | dict[Any, str]
) -> Float32:
    """The model's vectors [text, hidden] of texts that have their prefix in front."""
    prefixes = [prefix] if isinstance(prefix, str) else list(prefix.values())
    out: Float32 | None = None
    mine = [max((p for p in prefixes if text.startswith(p)), key=len, default="") for text in texts]
    for one in dict.fromkeys(mine):
        places = [i for i, p in enumerate(mine) if p == one]
        vectors = model.encode(
            [texts[i][len(one) :] for i in places],
            prompt=one,
            normalize_embeddings=False,
            show_progress_bar=False,
        )
        if out is None:
            out = np.empty((len(texts), vectors.shape[1]), np.float32)
        out[places] = vectors
    assert out is not None
    return out
