"""The audit: which of the config's checkpoints exist, and which are the same under two names.

Published suites mislabel checkpoints: revisions that serve the final weights under another
step's name, or share shards with it. The sha256 of every weight file is in the Hub's metadata, so
that this shows before anything is downloaded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from batchsweep.checkpoints.audited import Audit, Skipped
from batchsweep.checkpoints.checkpoint import (
    PLACEHOLDER,
    Checkpoint,
    final_step,
    normalise_revision,
    step_of,
    steps_in,
)
from batchsweep.checkpoints.hub import Hub
from batchsweep.checkpoints.json_cache import JsonCache, cache_file
from batchsweep.checkpoints.same_weights import Duplicates, identical, partly_shared
from batchsweep.checkpoints.schedules import schedule, schedule_among
from batchsweep.checkpoints.shape import PYTHIA_FINAL_STEP, Shape, is_pythia, known_shape, shape_of
from batchsweep.checkpoints.sources import Listing, Missing, Suite, open_suite
from batchsweep.config import Config, ModelConfig, Schedule
from batchsweep.errors import ConfigError, IndexFailed
from batchsweep.progress import progress

#: Entries of a ``config.json`` that change no vector.
_CONFIG_NOTES = frozenset({"_name_or_path", "architectures", "transformers_version", "use_cache"})

logger = logging.getLogger(__name__)

#: Metadata requests at the same time.
_CONCURRENT = 8


@dataclass
class _Asked:
    """One model of the config with the answers about its revisions."""

    config: ModelConfig
    suite: Suite
    revisions: list[str]
    steps: dict[str, int]
    """Revision -> training step, of all names that are known and hold one."""
    final_step: int | None
    listings: dict[str, Listing] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    def step(self, revision: str) -> int | None:
        named = self.steps.get(revision)
        return self.final_step if named is None and revision == "main" else named

    def learn(self, names: Iterable[str]) -> None:
        """More of the suite's names are known: where a stage begins may have moved."""
        self.steps = steps_in([*names, *self.revisions], self.config.step_pattern)


def audit(config: Config, *, strict: bool = False, hub: Hub | None = None) -> Audit:
    """Ask the Hub (or the directories) about every checkpoint of the config.

    At most one request a revision and a few more; weights are not downloaded. Answers are cached
    by commit.

    Raises:
        IndexFailed: with ``strict``, a checkpoint is missing or has no weights.
        ConfigError: no such model, or nothing usable in the sweep.
        TryAgain: the Hub can't be reached, or asks for more patience than there is.
    """
    hub = hub or Hub()
    with _opened(config, hub) as models:
        _ask_all(models)
        found = [_sort_out(model) for model in models]
    result = _joined(found, asked=True, hub=hub)
    if strict and result.skipped:
        more = f" and {len(result.skipped) - 1} more" if len(result.skipped) > 1 else ""
        raise IndexFailed(f"{result.skipped[0]}{more}; without --strict they are skipped")
    return result


def nominal(config: Config, *, hub: Hub | None = None) -> Audit:
    """The config's checkpoints without an audit: local ones are read, others taken at their word.

    Pythia needs no network. Another Hub model costs one request for its shape, and one for its
    branches if its revisions are given by a schedule.

    Raises:
        ConfigError, TryAgain: as :func:`audit`.
    """
    hub = hub or Hub()
    found: list[Audit] = []
    with _opened(config, hub) as models:
        for model in models:
            if model.suite.local:
                _ask_all([model])
                found.append(_sort_out(model))
            else:
                found.append(_take_at_word(model))
    return _joined(found, asked=all(model.suite.local for model in models), hub=hub)


@contextmanager
def _opened(config: Config, hub: Hub) -> Iterator[list[_Asked]]:
    """The config's models; what is learned of them meanwhile is kept for the next time."""
    digests = JsonCache(cache_file("digests"))
    try:
        models = [_open(model, config, hub, digests) for model in config.models]
        _check_slugs(models)
        yield models
    finally:
        hub.save()
        digests.save()


def _joined(found: Sequence[Audit], *, asked: bool, hub: Hub) -> Audit:
    """The audits of single models as one of the whole config."""
    skipped = tuple(s for f in found for s in f.skipped)
    checkpoints = tuple(c for f in found for c in f.checkpoints)
    if not checkpoints:
        raise ConfigError(f"no checkpoint of the sweep can be used; the first: {skipped[0]}")
    return Audit(
        checkpoints=checkpoints,
        shapes={k: s for f in found for k, s in f.shapes.items()},
        tokenizers={k: t for f in found for k, t in f.tokenizers.items()},
        skipped=skipped,
        duplicates=tuple(d for f in found for d in f.duplicates),
        shared=tuple(s for f in found for s in f.shared),
        asked=asked,
        requests=hub.requests,
    )


def _open(model: ModelConfig, config: Config, hub: Hub, digests: JsonCache) -> _Asked:
    suite = open_suite(model, hub, digests)
    wanted = model.revisions or config.revisions
    step_of("main", model.step_pattern)  # A wrong pattern is refused before the first request.
    listable = PLACEHOLDER not in model.name
    pythia = is_pythia(model.name)
    if not isinstance(wanted, Schedule):
        names = [normalise_revision(name) for name in wanted]
    elif pythia:
        names = schedule(wanted.strategy, wanted.interval, wanted.points)
    else:
        steps = steps_in(suite.revisions(), model.step_pattern)
        try:
            names = schedule_among(steps, wanted.strategy, wanted.interval, wanted.points)
        except ConfigError as error:
            raise ConfigError(f"models: {model.name}: {error}") from None
    asked = _Asked(model, suite, list(dict.fromkeys(names)), {}, None)
    # A schedule has asked for the Hub's branches already, a list of names has not.
    listed = listable and (suite.local or (isinstance(wanted, Schedule) and not pythia))
    asked.learn(suite.revisions() if listed else ())
    known = suite.revisions() if suite.local and listable else asked.revisions
    asked.final_step = final_step(model.name, (s for r, s in asked.steps.items() if r in known))
    return asked


def _check_slugs(models: Sequence[_Asked]) -> None:
    seen: dict[str, str] = {}
    for model in models:
        for revision in model.revisions:
            key = Checkpoint(model.config.name, revision, local=model.suite.local).key
            name = f"{model.config.name}@{revision}"
            if seen.get(key) == name:
                raise ConfigError(f"models: {name} is in the list twice; leave one out")
            if key in seen:
                raise ConfigError(
                    f"models: {seen[key]} and {name} would both be '{key}' in the store; "
                    "leave one out, or rename its directory"
                )
            seen[key] = name


def _ask_all(models: Sequence[_Asked]) -> None:
    """Fill ``listings`` and ``skipped``; ``main`` is asked too, to know the final weights."""
    for model in models:
        if not model.suite.local and PLACEHOLDER not in model.config.name:
            refs = model.suite.revisions()
            model.learn(refs)
            if not is_pythia(model.config.name):
                known = (step for name, step in model.steps.items() if name in refs)
                model.final_step = max(known, default=model.final_step)
    jobs = [
        (model, revision)
        for model in models
        for revision in dict.fromkeys([*model.revisions, *_reference(model)])
    ]

    def ask(job: tuple[_Asked, str]) -> Listing | Missing:
        try:
            return job[0].suite.listing(job[1])
        except Missing as error:
            return error

    pool = ThreadPoolExecutor(_CONCURRENT)
    try:
        with progress("audit", total=len(jobs), unit="revisions") as bar:
            answers = [pool.submit(ask, job) for job in jobs]
            for (model, revision), waiting in zip(jobs, answers, strict=True):
                answer = waiting.result()
                bar.advance()
                if isinstance(answer, Listing):
                    model.listings[revision] = answer
                elif revision in model.revisions:
                    model.skipped.append(
                        Skipped(model.config.name, revision, "missing", str(answer))
                    )
    finally:
        pool.shutdown(cancel_futures=True)


def _reference(model: _Asked) -> list[str]:
    """Revisions that tell what the final weights are: main, and the last step's by its name."""
    if PLACEHOLDER in model.config.name:
        return []
    listed = model.suite.revisions()
    last = [name for name in listed if model.steps.get(name) == model.final_step is not None]
    return ["main", *last][:2]


def _take_at_word(model: _Asked) -> Audit:
    """Checkpoints as named, with the shape from the table or from one ``config.json``."""
    name = model.config.name
    shape = known_shape(name)
    if shape is None:
        try:
            loaded = model.suite.model_config(model.revisions[-1])
        except Missing as error:
            raise ConfigError(f"models: {name}: {error}") from None
        shape = shape_of(loaded, where=f"{name}@{model.revisions[-1]}")
    # Pythia's main is its last step under another name.
    same = [r for r in model.revisions if model.step(r) == PYTHIA_FINAL_STEP]
    aliases = tuple(r for r in same if r != "main") if is_pythia(name) and "main" in same else ()
    checkpoints = tuple(
        Checkpoint(name, r, step=model.step(r), aliases=aliases if r == "main" else ())
        for r in model.revisions
        if r not in aliases
    )
    return Audit(checkpoints, {c.key: shape for c in checkpoints}, {}, asked=False)


def _sort_out(model: _Asked) -> Audit:
    """One model's answers: usable checkpoints, duplicates, shared files."""
    name, usable = model.config.name, _usable(model)
    identicals = identical(usable)
    groups = [part for group in identicals for part in _by_config(model, group, usable)]
    if not is_pythia(name) and _main_is_not_last(model, groups):
        model.final_step = None
    found = [one for group in groups if (one := _checkpoint(model, group, usable)) is not None]
    checkpoints = {checkpoint.revision: checkpoint for checkpoint, _ in found}
    shapes: dict[str, Shape] = {}
    by_content: dict[str, Shape] = {}
    ordered = []
    for checkpoint in (checkpoints[r] for r in model.revisions if r in checkpoints):
        content = str(usable[checkpoint.revision].config_id)
        try:
            if content not in by_content:
                loaded = model.suite.model_config(checkpoint.revision)
                by_content[content] = shape_of(loaded, where=f"{name}@{checkpoint.revision}")
        except (ConfigError, Missing) as error:
            detail = str(error).removeprefix("models: ")
            model.skipped.append(Skipped(name, checkpoint.revision, "incomplete", detail))
            continue
        shapes[checkpoint.key] = by_content[content]
        ordered.append(checkpoint)
    order = {revision: place for place, revision in enumerate(model.revisions)}
    return Audit(
        checkpoints=tuple(ordered),
        shapes=shapes,
        tokenizers={c.key: usable[c.revision].tokenizer for c in ordered},
        skipped=tuple(sorted(model.skipped, key=lambda s: order[s.revision])),
        duplicates=tuple(same for _, same in found if same is not None),
        shared=tuple(partly_shared(name, identicals, usable, model.revisions)),
    )


def _usable(model: _Asked) -> dict[str, Listing]:
    """The revisions that can be loaded; of those asked for, the others are noted as skipped."""
    usable: dict[str, Listing] = {}
    for revision, listing in model.listings.items():
        reason: Literal["no weights", "incomplete"] = "no weights"
        detail = "no model*.safetensors or pytorch_model*.bin"
        if listing.weights and listing.config_id is not None:
            usable[revision] = listing
            continue
        if listing.incomplete:
            reason, detail = "incomplete", f"{listing.incomplete} of its shards are not there"
        elif listing.weights:
            reason, detail = "incomplete", "no config.json"
        if revision in model.revisions:
            model.skipped.append(Skipped(model.config.name, revision, reason, detail))
    return usable


def _main_is_not_last(model: _Asked, groups: Sequence[Sequence[str]]) -> bool:
    """Whether main holds other weights than the last step: chosen, averaged or tuned ones."""
    last = [[r for r in g if r != "main" and model.step(r) == model.final_step] for g in groups]
    return any(last) and not any(
        names and "main" in group for names, group in zip(last, groups, strict=True)
    )


def _by_config(model: _Asked, group: list[str], usable: Mapping[str, Listing]) -> list[list[str]]:
    """Split revisions of identical weights by what their configs and code make of them."""
    if len({usable[revision].settings for revision in group}) == 1:
        return [group]
    parts: dict[str, list[str]] = {}
    for revision in group:
        content = str(usable[revision].config_id)
        # One that can't be read stays apart, and is reported where its shape is asked for.
        with suppress(ConfigError, Missing):
            config = model.suite.model_config(revision)
            told = {name: value for name, value in config.items() if name not in _CONFIG_NOTES}
            content = json.dumps(told, sort_keys=True) + usable[revision].code
        parts.setdefault(content, []).append(revision)
    return list(parts.values())


def _checkpoint(
    model: _Asked, group: Sequence[str], usable: Mapping[str, Listing]
) -> tuple[Checkpoint, Duplicates | None] | None:
    """The checkpoint that stands for a group of identical revisions; None: nobody asked for it."""
    asked = [r for r in model.revisions if r in group]
    if not asked:
        return None
    final = "main" in group and model.final_step is not None
    named = [r for r in asked if r in model.steps]
    kept = next((r for r in [*named, "main"] if r in asked), asked[0])
    if final:
        # Of the names of the final weights, only main and the last step's are right.
        right = [r for r in asked if model.step(r) == model.final_step]
        kept = "main" if "main" in asked else (right or asked)[0]
    others = tuple(r for r in asked if r != kept)
    listing = usable[kept]
    steps = [model.step(r) for r in asked]
    checkpoint = Checkpoint(
        model=model.config.name,
        revision=kept,
        commit=listing.commit,
        # Under the wrong name of an earlier step, the final weights are still the final step's.
        step=model.final_step if final else next((s for s in steps if s is not None), None),
        weights=listing.loaded,
        aliases=others if "main" in asked or "main" not in group else (*others, "main"),
        local=model.suite.local,
    )
    if final:
        wrong = tuple(r for r in named if model.step(r) != model.final_step)
        stands = kept if kept not in wrong else "main"
        found = Duplicates(model.config.name, stands, wrong, final=True)
        return checkpoint, found if wrong else None
    found = Duplicates(model.config.name, kept, others, final=False)
    return checkpoint, found if len(named) > 1 else None
