"""Task names, presets, and tasks of one's own from files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hub_server import Fault, HubServer

from batchsweep.config import LocalTask
from batchsweep.errors import ConfigError, TryAgain, UsageError
from batchsweep.tasks import resolve as tasks
from batchsweep.tasks.local import KINDS, from_columns
from batchsweep.tasks.resolve import LAYER_BY_LAYER_32, check_data, resolve


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


#: What the Hub says to a token that it doesn't know.
INVALID = "Invalid credentials in Authorization header"
PAIRS: list[dict[str, Any]] = [
    {"sentence1": f"a{i}", "sentence2": f"b{i}", "score": i} for i in range(4)
]


def local(path: Path, type: Any = "sts", **more: Any) -> LocalTask:
    return LocalTask(name="mine", type=type, path=path, **more)


# Names


def test_the_32_tasks_are_english_and_test_only() -> None:
    found = resolve(["layer_by_layer_32"])
    assert [task.metadata.name for task in found] == list(LAYER_BY_LAYER_32)
    assert len(found) == 32
    for task in found:
        assert list(task.eval_splits) == ["test"]
        assert len(task.hf_subsets) == 1
        assert task.hf_subsets[0] in ("default", "en", "en-en")


def test_the_fast_preset_takes_what_supersedes() -> None:
    names = {task.metadata.name for task in resolve(["layer_by_layer_32_fast"])}
    assert len(names) == 32
    replaced = set(LAYER_BY_LAYER_32) - names
    assert len(replaced) == 11
    assert {"Banking77Classification.v2", "RedditClustering.v2", "STSBenchmark.v2"} <= names
    assert "ArXivHierarchicalClusteringS2S" in names
    for task in resolve(["layer_by_layer_32_fast"]):
        assert task.superseded_by is None
        assert list(task.eval_splits) == ["test"] and len(task.hf_subsets) == 1


def test_a_name_means_the_same_alone_and_in_the_preset() -> None:
    [alone] = resolve(["STS17"])
    assert alone.hf_subsets == ["en-en"] and list(alone.eval_splits) == ["test"]
    assert resolve(["STS17", "layer_by_layer_32"])[0].metadata.name == "STS17"
    assert len(resolve(["STS17", "layer_by_layer_32"])) == 32


def test_tasks_are_our_own_objects() -> None:
    assert resolve(["BIOSSES"])[0] is not resolve(["BIOSSES"])[0]


def test_benchmarks_and_aggregates_stand_for_their_tasks() -> None:
    names = [task.metadata.name for task in resolve(["MTEB(eng, v1)"])]
    assert "CQADupstackRetrieval" not in names and "CQADupstackAndroidRetrieval" in names
    assert len(resolve(["CQADupstackRetrieval"])) == 12


@pytest.mark.parametrize(
    ("wrong", "close"),
    [
        ("sts13", "STS13"),
        ("Banking77", "Banking77Classification"),
        ("layer_by_layer_23", "layer_by_layer_32"),
        ("MTEB(eng,v1)", "MTEB(eng, v1)"),
    ],
)
def test_an_unknown_name_tells_the_closest(wrong: str, close: str) -> None:
    with pytest.raises(ConfigError, match="unknown task") as error:
        resolve([wrong])
    assert re.search(rf"did you mean .*{re.escape(close)}", str(error.value))
    assert "\n" not in str(error.value)


def test_images_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'CIFAR10' needs image; .*text only"):
        resolve(["STS12", "CIFAR10"])


def test_no_network_and_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    mine = from_columns("mine", "sts", {k: [r[k] for r in PAIRS] for k in PAIRS[0]})
    with pytest.raises(TryAgain, match=r"not cached .*out of reach: STS12, BIOSSES"):
        check_data([mine, *resolve(["STS12", "BIOSSES"])])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set: STS12"):
        check_data(resolve(["STS12"]))
    check_data([mine])


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("GatedRepo", "gated: accept its terms on the Hub and set HF_TOKEN"),
        ("RepoNotFound", r"no such data set on the Hub \(or private: set HF_TOKEN\)"),
        ("", None),
    ],
)
def test_a_data_set_that_the_hub_refuses_is_named(
    code: str, says: str | None, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    tasks = resolve(["BIOSSES", "STS12"])
    there, other = (task.metadata.dataset["path"] for task in tasks)
    hub.datasets = {there: "", other: code}
    if says is None:
        check_data(tasks)
        return
    with pytest.raises(UsageError, match=f"data set '{other}' of STS12: .*{says}") as caught:
        check_data(tasks)
    assert "BIOSSES" not in str(caught.value)


def test_a_token_that_is_wrong_is_said(hub: HubServer, tmp_path: Path) -> None:
    tasks = resolve(["STS12"])
    hub.faults.append(Fault("status", "auth-check", status=401, says=INVALID, times=9))
    with pytest.raises(UsageError, match="of STS12: the Hub refuses access: set HF_TOKEN"):
        check_data(tasks)


# Tasks from files


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".jsonl":
        write(path, PAIRS)
    else:
        pd.DataFrame(PAIRS).to_parquet(path)
    [task] = resolve([local(path)])
    assert task.metadata.name == "mine"
    assert task.dataset["test"]["sentence2"][:2] == ["b0", "b1"]
    assert len(task.metadata.revision) == 40
    changed = write(tmp_path / "changed.jsonl", [*PAIRS[:3], {**PAIRS[3], "score": 9}])
    assert resolve([local(changed)])[0].metadata.revision != task.metadata.revision


def test_other_column_names(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"q": "a", "b": "c", "score": i} for i in range(3)])
    columns = {"sentence1": "q", "sentence2": "b"}
    [task] = resolve([local(path, columns=columns)])
    assert task.dataset["test"]["sentence1"][:] == ["a", "a", "a"]
    with pytest.raises(ConfigError, match=r"no column 'x' \(for 'sentence1'\); it has q, b, score"):
        resolve([local(path, columns={"sentence1": "x"})])


def test_a_folder_of_parts(tmp_path: Path) -> None:
    for part, n in (("train", 8), ("test", 4)):
        rows = [{"text": f"{part} {i}", "label": "ab"[i % 2]} for i in range(n)]
        write(tmp_path / "c" / f"{part}.jsonl", rows)
    [task] = resolve([local(tmp_path / "c", "classification")])
    assert task.dataset["train"]["label"][:] == [0, 1] * 4
    (tmp_path / "c" / "train.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"has no train.jsonl or train.parquet"):
        resolve([local(tmp_path / "c", "classification")])


def test_retrieval_from_files(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    write(folder / "corpus.jsonl", [{"id": i, "text": f"d{i}"} for i in range(3)])
    write(folder / "queries.jsonl", [{"id": "q", "text": "ask"}])
    write(folder / "qrels.jsonl", [{"query-id": "q", "corpus-id": 2, "score": 2}])
    [task] = resolve([local(folder, "retrieval")])
    assert task.dataset["default"]["test"]["relevant_docs"] == {"q": {"2": 2}}
    write(folder / "qrels.jsonl", [{"query-id": "q", "corpus-id": 9}])
    with pytest.raises(ConfigError, match="qrels row 0: corpus-id '9' is nowhere defined"):
        resolve([local(folder, "retrieval")])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows|needs a column"),
        ([{"sentence1": "a", "score": 1}], "needs a column 'sentence2'; there is sentence1, score"),
        (
            [*PAIRS, {"sentence1": "a", "score": 1}],
            r"x.jsonl:5: task 'mine', column 'sentence2': must be a text",
        ),
        (
            [{**PAIRS[0], "sentence1": 7}],
            r"x.jsonl:1: task 'mine', column 'sentence1': must be a text, not 7",
        ),
        ([{**PAIRS[0], "score": "high"}], "column 'score': must be a finite number, not 'high'"),
        ([{**PAIRS[0], "score": float("nan")}], "column 'score': must be a finite number"),
        ([PAIRS[1], PAIRS[1]], "all scores are equal"),
        ([{**PAIRS[0], "sentence1": "half \ud83d"}], "column 'sentence1': must be a text"),
    ],
)
def test_a_wrong_file(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = write(tmp_path / "x.jsonl", rows)
    with pytest.raises(ConfigError, match=message) as error:
        resolve([local(path)])
    assert "x.jsonl" in str(error.value) and "mine" in str(error.value)
    assert "\n" not in str(error.value)


def test_broken_lines_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"sentence1": "a"}\n{"sentence1": \n')
    with pytest.raises(ConfigError, match=r"x.jsonl:2: not valid JSON"):
        resolve([local(path)])
    path.write_text("[1]\n")
    with pytest.raises(ConfigError, match=r"x.jsonl:1: a line is one JSON object"):
        resolve([local(path)])
    path.write_bytes(b'{"sentence1": "a"}\n\xff\xfe\n')
    with pytest.raises(ConfigError, match=r"x.jsonl:2: not valid UTF-8"):
        resolve([local(path)])
    path.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(r) + "\r\n" for r in PAIRS).encode())
    assert len(resolve([local(path)])[0].dataset["test"]) == 4
    for absent, message in (
        (tmp_path / "no.jsonl", "no such file"),
        (tmp_path, "needs a file, not a folder"),
        (tmp_path / "no.csv", "ends in .jsonl or .parquet"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve([local(absent)])
    (tmp_path / "x.parquet").write_text("this is no Parquet")
    with pytest.raises(ConfigError, match=r"x.parquet: can't be read \(task 'mine'\)"):
        resolve([local(tmp_path / "x.parquet")])


@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        ("pair_classification", {"sentence1": ["a"], "sentence2": ["b"], "label": [1]}, "0 .*1"),
        ("clustering", {"text": ["a", "b"], "label": ["x", "x"]}, "two different labels"),
        ("reranking", {"query": ["a"], "positive": [["b"]], "negative": [[]]}, "row 0: needs"),
        ("reranking", {"query": ["a"], "positive": ["b"], "negative": [["c"]]}, "a list of texts"),
        ("bitext_mining", {"sentence1": ["a", "b"], "sentence2": ["c"]}, "unequal length"),
        (
            "summarization",
            {
                "text": ["a"],
                "human_summaries": [["b"]],
                "machine_summaries": [["c", "d"]],
                "relevance": [[1.0]],
            },
            "row 0: 2 machine_summaries, 1 relevance",
        ),
        (
            "classification",
            {"train": {"text": ["a"], "label": [["x"]]}, "test": {"text": ["a"], "label": ["x"]}},
            r"\(train\).*a name or a whole number",
        ),
        (
            "multilabel_classification",
            {"train": {"text": ["a"], "label": ["x"]}, "test": {"text": ["a"], "label": [["x"]]}},
            "a list of labels",
        ),
        ("retrieval", {"corpus": {"id": [1], "text": ["a"]}}, "no part 'queries'"),
        (
            "retrieval",
            {
                "corpus": {"id": [1, "1"], "text": ["a", "b"]},
                "queries": {"id": ["q"], "text": ["c"]},
                "qrels": {"query-id": ["q"], "corpus-id": [1]},
            },
            "corpus: the id '1' is there twice",
        ),
        ("sorting", {}, "unknown type 'sorting'; valid: sts"),
    ],
)
def test_wrong_columns(kind: str, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_columns("mine", kind, columns)


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", PAIRS)
    mine = LocalTask(name="STS12", type="sts", path=path)
    with pytest.raises(ConfigError, match="'STS12' names two tasks"):
        resolve(["STS12", mine])


def test_every_type_of_the_config_has_a_class() -> None:
    from typing import get_args

    from batchsweep.config import TaskType

    assert set(KINDS) | {"python"} == set(get_args(TaskType))


PYTHON = """
from datasets import Dataset, DatasetDict
from mteb import TaskMetadata
from mteb.abstasks import AbsTaskSTS

class Mine(AbsTaskSTS):
    metadata = TaskMetadata(
        name="mine", description="", type="STS", eval_langs=["eng-Latn"],
        main_score="cosine_spearman", dataset={"path": "x/y", "revision": "1"},
    )
    def load_data(self, **kwargs):
        rows = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [0.0, 1.0]}
        self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
        self.data_loaded = True
"""


def test_a_python_file(tmp_path: Path) -> None:
    path = tmp_path / "my_tasks.py"
    path.write_text(PYTHON)
    [task] = resolve([local(path, "python")])
    assert type(task).__name__ == "Mine" and len(task.source_digest) == 64
    with pytest.raises(ConfigError, match="defines no mteb task named 'other'; it has mine"):
        resolve([LocalTask(name="other", type="python", path=path)])
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"broken.py: ZeroDivisionError while it was run"):
        resolve([local(broken, "python")])
    with pytest.raises(ConfigError, match="no such file"):
        resolve([local(tmp_path / "none.py", "python")])


@pytest.mark.parametrize("code", ["0", "", "'done'", "2"])
def test_a_python_file_that_exits_is_an_error(tmp_path: Path, code: str) -> None:
    path = tmp_path / "exits.py"
    path.write_text(f"import sys\nsys.exit({code})\n")
    with pytest.raises(ConfigError, match=r"exits\.py: SystemExit while it was run"):
        resolve([local(path, "python")])


def test_a_python_file_that_sigterm_stops_is_not_blamed(tmp_path: Path) -> None:
    path = tmp_path / "stopped.py"
    path.write_text("import sys\nsys.exit(143)\n")
    with pytest.raises(SystemExit):
        resolve([local(path, "python")])


@pytest.mark.parametrize(
    "line", ["9" * 5000, "[" * 100_000, '{"a": ' * 100_000, "{", "[1]"], ids=lambda x: x[:3]
)
def test_a_broken_line_of_a_task_file_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"sentence1": "a", "sentence2": "b", "score": 1}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"x\.jsonl:2: "):
        resolve([local(path, "sts")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": float("inf")}, "column 'score': must be a finite number, not inf"),
        ({"score": 10**400}, "column 'score': must be a finite number"),
        ({"score": True}, "column 'score': must be a finite number, not True"),
        ({"sentence2": "a\0b"}, "column 'sentence2': must be a text"),
        ({"sentence2": None}, "column 'sentence2': must be a text, not None"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_its_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.jsonl"
    lines = [json.dumps(PAIRS[0]), "", json.dumps({**PAIRS[1], **change})]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=rf"x\.jsonl:3: task 'mine', {message}"):
        resolve([local(path, "sts")])


def test_columns_that_no_data_set_can_hold_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [PAIRS[0], {**PAIRS[1], "score": 10**30}])
    with pytest.raises(ConfigError, match=r"x\.jsonl: task 'mine': no data set: "):
        resolve([local(path, "sts")])


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "x.parquet"
    pd.DataFrame(PAIRS).to_parquet(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            resolve([local(path, "sts")])
        except ConfigError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_a_python_file_is_run_only_for_type_python(tmp_path: Path) -> None:
    path = tmp_path / "evil.py"
    path.write_text("raise SystemExit('ran')")
    with pytest.raises(ConfigError, match=r"ends in .jsonl or .parquet"):
        resolve([local(path, "sts")])


def test_presets_are_what_the_errors_list() -> None:
    assert set(tasks.PRESETS) == {"layer_by_layer_32", "layer_by_layer_32_fast"}
