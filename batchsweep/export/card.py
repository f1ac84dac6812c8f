"""The model card of an exported arm: where it is from, what it scored, how sure that is."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import yaml

from batchsweep import __version__
from batchsweep.arm import Arm, split_transform
from batchsweep.bandit.searches import answers
from batchsweep.config import Config
from batchsweep.plan.plan import PlanEntry
from batchsweep.score.records import score_rows
from batchsweep.store import Store


def model_card(
    store: Store,
    config: Config,
    entry: PlanEntry,
    arm: Arm,
    difference: float,
    texts_of: str | None = None,
) -> str:
    """The card as Markdown with a YAML head.

    Args:
        store: has the scores and the answers of searches.
        difference: the largest relative distance of a vector from the store's.
        texts_of: the task that a transform's statistics are of.
    """
    checkpoint, embedding = entry.checkpoint, config.embedding
    head: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "batchsweep"],
    }
    if not checkpoint.local:
        head["base_model"] = checkpoint.model
    count = entry.shape.num_layers
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {checkpoint.model.rstrip('/').rsplit('/', 1)[-1]} at {checkpoint.revision}, cut to "
        f"{arm.layer} of its {count} blocks",
        "",
        "A checkpoint of a language model, cut behind one of its blocks and pooled to text "
        f"embeddings. Written by batchsweep {__version__}.",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        'SentenceTransformer("path/of/this/folder").encode(["a text", "another"])',
        "```",
        "",
        "| | |",
        "| --- | --- |",
        f"| model | `{checkpoint.model}` |",
        f"| revision | `{checkpoint.revision}`"
        + (f", the same as {', '.join(checkpoint.aliases)}" if checkpoint.aliases else "")
        + " |",
        f"| commit | `{checkpoint.commit or 'a local folder'}` |",
        f"| training step | {'unknown' if checkpoint.step is None else f'{checkpoint.step:,}'} |",
        f"| digest of the weights | `{checkpoint.weights_digest}` |",
        f"| layer | {arm.layer} of {count}, output `{embedding.layer_output}` |",
        f"| pooling | `{arm.pooling}`, over the prefix too: {_yes(embedding.pool_prefix)} |",
        f"| prefix | `{json.dumps(embedding.prefix)}` |",
        f"| texts are cut to | {embedding.max_length} tokens |",
        f"| vectors differ from the sweep's by | at most {difference:.1e} of their length |",
        "",
        "A text for which the tokenizer has no tokens (an empty one) has the vector of the "
        "end-of-text token in the sweep, and none of its own here.",
        "",
        *_transform(texts_of),
        *_search(store, arm),
        *_scores(store, arm),
        "## The sweep's config",
        "",
        "```yaml",
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _transform(texts_of: str | None) -> list[str]:
    if texts_of is None:
        return []
    return [
        f"The mean (and the components) that its last layer removes are those of the texts of "
        f"{texts_of}. The sweep took those of each task for its scores: only the one on {texts_of} "
        "is this model's.",
        "",
    ]


def _search(store: Store, arm: Arm) -> list[str]:
    """What the searches of the sweep say of the arm."""
    lines: list[str] = []
    for name, answer in answers(store).items():
        best = answer["best"]
        if not _is(best["arm"], arm):
            continue
        low, high = best["interval"]
        p_best, regret = best.get("p_best"), best.get("expected_regret")
        sure = "" if p_best is None else f"; P(best) {p_best:.2f}"
        sure += "" if regret is None else f", expected regret {100 * regret:.2f} points"
        between = (
            "" if low is None or high is None or low == high else f" ({low:.4f} to {high:.4f})"
        )
        lines.append(
            f"- search `{name}`, {answer['pulls']} of {answer['exhaustive_pulls']} "
            f"cells scored: the best arm, {best['mean']:.4f}{between}{sure}. {answer['reward']}."
        )
    return ["## How sure", "", *lines, ""] if lines else []


def _is(text: str, arm: Arm) -> bool:
    other = Arm.parse(text)
    same = (other.key, other.layer) == (arm.key, arm.layer)
    only = other.pooling is None and not split_transform(str(arm.pooling))[1]
    return same and (only or other.pooling == arm.pooling)


def _scores(store: Store, arm: Arm) -> list[str]:
    """The arm's main scores, task by task."""
    rows = score_rows(store)
    at = (rows["key"] == arm.key) & (rows["layer"] == arm.layer) & (rows["pooling"] == arm.pooling)
    if not at.any():
        return []
    lines = ["## Scores", "", "| task | main score | texts |", "| --- | --- | --- |"]
    for row in rows[at].sort_values("task").itertuples():
        capped = f"at most {row.max_texts}: not comparable with published scores"
        texts = "all" if pd.isna(row.max_texts) else capped
        lines.append(f"| {row.task} | {row.score:.6f} | {texts} |")
    return [*lines, ""]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
