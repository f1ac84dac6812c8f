"""The demo's tasks: six kinds, from the same generator as the training text.

Every label follows from the meanings that the sentences were made of, so it is true by
construction. No text of a task is in the training text on purpose; sentences of the language may
of course be said again by chance.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batchsweep.demo.language import SLOTS, any_event, changed, opine, say

Row = dict[str, Any]
Files = dict[str, list[Row]]


def _sts(rng: random.Random) -> Files:
    """Two sentences; the score is the number of slots in which their meanings agree."""
    rows = []
    for i in range(240):
        event = any_event(rng)
        differ = i % (len(SLOTS) + 1)
        rows.append(
            {
                "sentence1": say(event, rng),
                "sentence2": say(changed(event, differ, rng), rng),
                "score": len(SLOTS) - differ,
            }
        )
    return {"": rows}


def _pairs(rng: random.Random) -> Files:
    """Two sentences; 1 if they mean the same, 0 if they differ in two or three slots."""
    rows = []
    for i in range(240):
        event = any_event(rng)
        other = event if i % 2 else changed(event, rng.choice((2, 3)), rng)
        rows.append({"sentence1": say(event, rng), "sentence2": say(other, rng), "label": i % 2})
    return {"": rows}


def _sentiment(rng: random.Random) -> Files:
    """An opinion; whether people liked it. A third are negated."""
    files: Files = {}
    seen: set[str] = set()
    for part, n in (("train", 160), ("test", 240)):
        rows: list[Row] = []
        while len(rows) < n:
            liked = len(rows) % 2 == 0
            text = opine(liked, rng)
            if text not in seen:
                seen.add(text)
                rows.append({"text": text, "label": "liked" if liked else "disliked"})
        files[part] = rows
    return files


def _scenes(rng: random.Random) -> Files:
    """Sentences to be clustered by topic and agent, whatever words they use."""
    events = [any_event(rng) for _ in range(300)]
    return {"": [{"text": say(e, rng), "label": f"{e.topic}-{e.agent}"} for e in events]}


def _reranking(rng: random.Random) -> Files:
    """Two paraphrases of the query among eight sentences that differ in two or three slots."""
    rows = []
    for _ in range(40):
        event = any_event(rng)
        rows.append(
            {
                "query": say(event, rng),
                "positive": [say(event, rng) for _ in range(2)],
                "negative": [say(changed(event, rng.choice((2, 3)), rng), rng) for _ in range(8)],
            }
        )
    return {"": rows}


def _retrieval(rng: random.Random) -> Files:
    """The two documents that report the query's event, among 360; both add an opinion."""

    def report(event: Any) -> str:
        return f"{say(event, rng)} . {opine(rng.random() < 0.5, rng)} ."

    events = list(dict.fromkeys(any_event(rng) for _ in range(60)))
    corpus: list[Row] = []
    qrels: list[Row] = []
    for i, event in enumerate(events):
        for _ in range(2):
            qrels.append({"query-id": f"q{i}", "corpus-id": f"d{len(corpus)}", "score": 1})
            corpus.append({"id": f"d{len(corpus)}", "text": report(event)})
    while len(corpus) < 360:
        event = any_event(rng)
        if event not in events:  # Else it would be relevant to a query and not say so.
            corpus.append({"id": f"d{len(corpus)}", "text": report(event)})
    queries = [{"id": f"q{i}", "text": say(event, rng)} for i, event in enumerate(events)]
    return {"corpus": corpus, "queries": queries, "qrels": qrels}


#: Task name -> its type in the config, and what makes its files (part -> rows).
TASKS: dict[str, tuple[str, Callable[[random.Random], Files]]] = {
    "DemoSTS": ("sts", _sts),
    "DemoPairs": ("pair_classification", _pairs),
    "DemoSentiment": ("classification", _sentiment),
    "DemoScenes": ("clustering", _scenes),
    "DemoReranking": ("reranking", _reranking),
    "DemoRetrieval": ("retrieval", _retrieval),
}


def task_path(folder: Path, name: str) -> Path:
    """Where a task's file (or, if it has several parts, its folder) is."""
    several = TASKS[name][0] in ("classification", "retrieval")
    return folder / name if several else folder / f"{name}.jsonl"


def write(folder: Path, seed: int = 1) -> None:
    """Write all tasks into ``folder`` as JSONL."""
    for name, (_, make) in TASKS.items():
        path = task_path(folder, name)
        for part, rows in make(random.Random(f"{seed}/{name}")).items():
            file = path / f"{part}.jsonl" if part else path
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(row) + "\n" for row in rows)
            file.write_text("".join(lines), encoding="utf-8")
