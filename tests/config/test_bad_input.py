"""What a config may not be: one line with file and line, soon, and never Python's own complaint."""

import re

import pytest

from batchsweep import config
from batchsweep.errors import ConfigError

MINIMAL = "models: [org/model]\ntasks: [STS12]\n"
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 900))


def task_named(name):
    return f"models: [m]\ntasks:\n  - {{name: {name}, type: sts, path: x.jsonl}}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB + MINIMAL, "more than 100000 values"),
        (CHAIN + MINIMAL, "more than 32 levels"),
        (MINIMAL + "corpus: &c\n  seed: *c\n", "an alias of what it is a part of"),
        ("models: &m [*m]\ntasks: [x]\n", "an alias of what it is a part of"),
        (MINIMAL + "corpus: " + "[" * 3000 + "]" * 3000 + "\n", "more than 32 levels"),
        (MINIMAL + "corpus: " + "{a: " * 3000 + "}" * 3000 + "\n", "more than 32 levels"),
        (MINIMAL + "corpus: {seed: " + "9" * 5000 + "}\n", "no int is written '999"),
        (MINIMAL + "corpus: {seed: 0x" + "f" * 5000 + "}\n", "should fit 64 bits"),
        (MINIMAL + "bandit: {budget: .inf}\n", "a number should be finite"),
        (MINIMAL + "bandit: {budget: {seconds: 1.0e+999}}\n", "a number should be finite"),
        (MINIMAL + "corpus: {seed: !!int foo}\n", "no int is written 'foo'"),
        (MINIMAL + "corpus: {seed: !!float foo}\n", "no float is written 'foo'"),
        (MINIMAL + "corpus: {seed: !!bool foo}\n", "no bool is written 'foo'"),
        (MINIMAL + "corpus: {seed: !!timestamp foo}\n", "no timestamp is written 'foo'"),
        (MINIMAL + "revisions: [2024-13-45]\n", "no timestamp is written '2024-13-45'"),
        (MINIMAL + "revisions: [2024-12-24]\n", "quote it if it is a name"),
        (MINIMAL + 'store: {path: "a\\0b"}\n', "a text with NUL"),
        (MINIMAL + 'store: {path: "a\\ud800"}\n', "half a surrogate pair"),
        (MINIMAL + "a: \0\n", "the character #x0000"),
        ("", "a config is a mapping"),
        (MINIMAL + f"name: {'a' * 300}\n", "name: String should have at most 128"),
        (task_named("a" * 300), "at most 128 characters"),
        (task_named(".."), "not '.' or '..'"),
        (task_named("."), "not '.' or '..'"),
        (MINIMAL + "name: ..\n", "name: should be a name, not '.' or '..'"),
        (f"models: [a/{'m' * 300}]\ntasks: [x]\n", "more than 255 bytes"),
        (MINIMAL + 'store: {path: ""}\n', "store.path: String should have at least 1"),
        (MINIMAL + f"store: {{path: runs/{'a' * 300}}}\n", "more than 255 bytes"),
        (MINIMAL + "corpus: {seed: true}\n", "corpus.seed: should not be true or false"),
        (MINIMAL + "embedding: {layers: [true]}\n", "layers: should not be true or false"),
        (MINIMAL + "bandit: {budget: true}\n", "budget: should not be true or false"),
        (
            MINIMAL + "store: {format: hdf5, path: 's3://bucket/x.h5'}\n",
            "store: an hdf5 store is a local file; use 'format: zarr' for a URL",
        ),
        ("models: [{name: m, step_pattern: '('}]\ntasks: [x]\n", "a regular expression"),
        ("models: [{name: m, step_pattern: 'x'}]\ntasks: [x]\n", "should have a group"),
    ],
)
def test_bad_input_is_refused_in_one_line_with_file_and_line(text, says):
    with pytest.raises(ConfigError) as caught:
        config.parse(text, source="sweep.yaml")
    message = str(caught.value)
    assert re.match(r"sweep\.yaml:[0-9]+: ", message)
    assert says in message
    assert "\n" not in message and len(message) < 300


def test_a_file_in_another_encoding_is_refused_with_its_line(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_bytes(MINIMAL.encode() + b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"sweep\.yaml:3: not UTF-8"):
        config.load(path)


def test_aliases_that_repeat_a_value_are_fine():
    models = "[{name: org/model, revisions: *r}]"
    text = "revisions: &r [step1]\n" + MINIMAL.replace("[org/model]", models)
    sweep = config.parse(text, source="sweep.yaml")
    assert sweep.models[0].revisions == sweep.revisions == ("step1",)


def test_switches_still_take_true_and_false():
    text = MINIMAL + "metrics: {enabled: false, views: true}\nembedding: {pool_prefix: false}\n"
    sweep = config.parse(text, source="sweep.yaml")
    assert (sweep.metrics.enabled, sweep.metrics.views) == (False, True)
    assert sweep.embedding.pool_prefix is False
