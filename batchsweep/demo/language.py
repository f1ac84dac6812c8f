"""The demo's language: events with a meaning, and the many ways to say each of them.

An :class:`Event` is a meaning: who did what to what, where, when, how, and how people liked it.
``say`` puts it into words: a synonym for every concept and one of several word orders, so that two
sentences of one meaning may share no content word at all, and a bag of words can't see that they
agree. The labels of the demo's tasks follow from the meanings and are therefore true by
construction; a language model can learn the synonyms because they keep the same company.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

#: The parts of an event that a sentence says, in the order of ``Event``'s fields.
SLOTS = ("agent", "action", "object", "place", "time")

#: Words that a sentence needs whatever it says.
FUNCTION_WORDS = ("the", "in", "by", "was", "it", "that", "who", "never", "always", "found", "and",
                  "so", "meanwhile", "again", ".", ",")  # fmt: skip

_WORD_ORDERS = (
    "the {agent} {action} the {object} in the {place} {time}",
    "{time} the {object} was {action} by the {agent} in the {place}",
    "in the {place} {time} the {agent} {action} the {object}",
    "it was the {agent} who {action} the {object} in the {place} {time}",
)


@dataclass(frozen=True)
class Event:
    """A meaning: every number is the index of a concept in the lexicon's list for that slot."""

    topic: str
    agent: int
    action: int
    object: int
    place: int
    time: int


@cache
def lexicon() -> dict[str, Any]:
    """The parsed ``lexicon.yaml``."""
    value: dict[str, Any] = yaml.safe_load(_lexicon_text())
    return value


def _lexicon_text() -> str:
    return (files(__package__) / "lexicon.yaml").read_text(encoding="utf-8")


def topics() -> tuple[str, ...]:
    """What documents are about."""
    return tuple(lexicon()["topics"])


def concepts(topic: str, slot: str) -> list[list[str]]:
    """The synonyms [concept][word] of one slot; time and manner are the same in all topics."""
    words: list[list[str]] = (
        lexicon()[slot] if slot in lexicon() else lexicon()["topics"][topic][slot]
    )
    return words


def vocabulary() -> list[str]:
    """Every word that the generator can produce, in a fixed order, each once."""
    words = list(FUNCTION_WORDS)
    for slot in SLOTS:
        for topic in topics():
            words += [word for concept in concepts(topic, slot) for word in concept]
    for group in ("opinion", "reaction"):
        words += [word for side in ("good", "bad") for word in lexicon()[group][side]]
    words += lexicon()["audience"]
    return list(dict.fromkeys(words))


def any_event(rng: random.Random, topic: str | None = None) -> Event:
    """A random event. Agents have habits (their own action, object and place, two times of
    three), which is what tells a language model that two words mean one concept."""
    topic = topic or rng.choice(topics())
    agent = rng.randrange(4)

    def habit(slot: str) -> int:
        n = len(concepts(topic, slot))
        return agent % n if rng.random() < 0.8 else rng.randrange(n)

    return Event(topic, agent, habit("action"), habit("object"), habit("place"), rng.randrange(4))


def changed(event: Event, slots: int, rng: random.Random) -> Event:
    """An event of the same topic that differs in exactly ``slots`` of the six slots."""
    for slot in rng.sample(SLOTS, slots):
        n = len(concepts(event.topic, slot))
        event = replace(event, **{slot: (getattr(event, slot) + rng.randrange(1, n)) % n})
    return event


def say(event: Event, rng: random.Random) -> str:
    """One sentence that means the event, without a full stop."""
    words = {slot: rng.choice(concepts(event.topic, slot)[getattr(event, slot)]) for slot in SLOTS}
    return rng.choice(_WORD_ORDERS).format(**words)


def opine(liked: bool, rng: random.Random) -> str:
    """One sentence that says whether people liked it. A third of them say so by a negation, so
    that the adjectives alone mislead."""
    negated = rng.random() < 0.3
    first, second = rng.sample(lexicon()["opinion"]["good" if liked != negated else "bad"], 2)
    who = rng.choice(lexicon()["audience"])
    return f"{who} {'never' if negated else 'always'} found it {first} and {second}"


def react(liked: bool, rng: random.Random) -> str:
    """What people did then: training text has it after the opinion, task texts never."""
    who = rng.choice(lexicon()["audience"])
    return f"so {who} {rng.choice(lexicon()['reaction']['good' if liked else 'bad'])}"


def document(rng: random.Random) -> str:
    """A training text: events of one topic, each retold in other words and with what people
    thought and did. Retelling is what makes a model encode the meaning of what it has read."""
    topic = rng.choice(topics())
    sentences = []
    for _ in range(2):
        event, liked = any_event(rng, topic), rng.random() < 0.5
        sentences += [
            say(event, rng),
            f"again {say(event, rng)}",
            opine(liked, rng),
            react(liked, rng),
        ]
    return " . ".join(sentences) + " ."
