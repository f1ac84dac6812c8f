"""What an index says of its work: in its last log line, and to Prometheus."""

import json
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tiny import make_suite, make_tasks, write_config

from batchsweep.cli.main import main
from batchsweep.errors import UsageError
from batchsweep.extract.figures import Figures, prometheus_text, served
from batchsweep.store import open_store


def samples(text):
    return {
        (s.name, s.labels["checkpoint"], s.labels.get("phase")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_the_last_line_of_an_index_has_its_figures(tmp_path, capsys):
    config = write_config(
        tmp_path / "sweep.yaml",
        models=[str(make_suite(tmp_path / "tiny", ("main",)))],
        revisions=["main"],
        tasks=make_tasks(tmp_path / "tasks"),
        metrics={"sample": 16},
        store={"path": str(tmp_path / "store.zarr"), "block_texts": 16, "dtype": "float16"},
    )
    assert main(["prepare", "--config", str(config)]) == 0
    capsys.readouterr()
    extract = ["extract", "--config", str(config), "--index", "0", "--log-format", "json"]
    assert main(extract) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (figures,) = [line["figures"] for line in lines if "figures" in line]
    store = open_store(str(tmp_path / "store.zarr"))
    (group,) = store.status()
    spec, corpus = store.reader(group.key).spec, store.corpus()
    (tokenizer,) = corpus.tokenizers()
    assert figures["checkpoint"] == group.key
    assert (figures["texts"], figures["blocks"]) == (corpus.n_texts, spec.blocks)
    assert figures["tokens"] == corpus.token_counts(tokenizer).sum()
    assert figures["bytes"] == corpus.n_texts * len(spec.layers) * spec.hidden * 2
    assert set(figures["seconds"]) == {"load", "blocks", "metrics"}
    assert figures["texts_per_second"] == pytest.approx(
        corpus.n_texts / figures["seconds"]["blocks"], rel=0.01
    )


def test_prometheus_reads_the_figures():
    one = Figures('a"b\\c/main')
    one.sealed(texts=3, tokens=50, size=96)
    one.sealed(texts=2, tokens=10, size=64)
    with one.phase("load"):
        pass
    found = samples(prometheus_text([one, Figures("other")]))
    key = one.checkpoint
    assert found["batchsweep_texts_total", key, None] == 5
    assert found["batchsweep_tokens_total", key, None] == 60
    assert found["batchsweep_blocks_total", key, None] == 2
    assert found["batchsweep_bytes_total", key, None] == 160
    assert found["batchsweep_phase_seconds_total", key, "load"] >= 0
    assert found["batchsweep_blocks_total", "other", None] == 0


def test_a_phase_that_breaks_off_is_counted():
    one = Figures("a")
    with pytest.raises(KeyError), one.phase("blocks"):
        raise KeyError
    assert "blocks" in one.to_json()["seconds"]


def test_figures_are_served_while_they_grow():
    figures: list[Figures] = []
    with served(figures, 0) as port:
        url = f"http://localhost:{port}"
        figures.append(Figures("late"))
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert samples(answer.read().decode())["batchsweep_texts_total", "late", None] == 0
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/secrets")
        with pytest.raises(UsageError, match="in use; give another"), served(figures, port):
            pass
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/metrics")


def test_nothing_is_served_unless_asked_for():
    with served([], None) as port:
        assert port is None
