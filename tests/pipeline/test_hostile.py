"""What a hostile user does: every failure is one line with the remedy and the right exit code."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import extracted_store, make_model, make_suite, make_tasks, write_config

from batchsweep import config
from batchsweep.cli.main import main
from batchsweep.errors import ConfigError
from batchsweep.store import open_store
from batchsweep.tasks.resolve import resolve as all_tasks

REVISIONS = ("step0", "main")


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return make_suite(tmp_path_factory.mktemp("suite") / "tiny", REVISIONS)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return make_tasks(tmp_path_factory.mktemp("tasks"), n=30)


@pytest.fixture
def sweep(tmp_path, suite, tasks):
    """Writes a config into ``tmp_path``; keyword arguments replace whole sections."""

    def write(name="sweep", **sections):
        defaults = {
            "models": [str(suite)],
            "revisions": list(REVISIONS),
            "tasks": tasks,
            "store": {"path": str(tmp_path / "store.zarr"), "block_texts": 16},
            "metrics": {"sample": 8},
            "bandit": {"budget": {"pulls": 6}, "policy": "random"},
        }
        return str(write_config(tmp_path / f"{name}.yaml", **{**defaults, **sections}))

    return write


@pytest.fixture(scope="module")
def extracted(tmp_path_factory, suite, tasks):
    folder = tmp_path_factory.mktemp("extracted")
    return extracted_store(folder, suite, REVISIONS, tasks, sample=8)


@pytest.fixture
def copied(sweep, extracted, tmp_path):
    """Like ``sweep``, with a copy of the extracted store in its place."""

    def write(**sections):
        shutil.copytree(extracted, tmp_path / "store.zarr")
        return sweep(**sections)

    return write


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail with this exit code and one line; the line."""

    def run(code, *argv):
        capsys.readouterr()
        assert main(list(argv)) == code
        lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("batchsweep ")]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.mark.parametrize(
    "text", ["models: !!python/object:os.system [x]", "{[a]: 2}", "? {a: 1}\n: 2"]
)
def test_yaml_that_can_not_be_constructed(text):
    with pytest.raises(ConfigError, match=r"sweep.yaml:1: not valid YAML"):
        config.parse(text, source="sweep.yaml")


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"bandit": {"policy": "foo"}}, "bandit.policy: should be 'toptwo_gp', 'gp_ucb'"),
        ({"embedding": {"pooling": ["mean", "mean"]}}, "pooling: should name each only once"),
        ({"embedding": {"device": "gpu"}}, "embedding.device: "),
        ({"models": []}, "models: should not be empty"),
        ({"rewards": {"target": "foo"}}, "rewards.target 'foo'"),
        ({"rewards": {"baseline": "foo"}}, "valid: step0, main"),
    ],
)
def test_a_wrong_value_is_found_before_anything_expensive(sweep, fails, tmp_path, sections, says):
    assert says in fails(2, "prepare", "--config", sweep(**sections))
    assert not (tmp_path / "store.zarr").exists()


@pytest.mark.parametrize(
    "given", [("--policy", "foo"), ("--budget", "-1"), ("--workers", "0"), ("--budget", "nan")]
)
def test_a_wrong_option_of_bandit(sweep, fails, given):
    assert " ".join(given[:1]) in fails(2, "bandit", "--config", sweep(), *given)


def test_with_json_logs_the_failure_is_json_too(sweep, capsys):
    capsys.readouterr()
    assert main(["extract", "--config", sweep(), "--index", "0", "--log-format", "json"]) == 4
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[-1]["level"] == "error"
    assert "batchsweep prepare" in lines[-1]["message"]


def test_verify_with_a_changed_config_says_so_and_drops_nothing(copied, sweep, fails):
    right = copied()
    changed = sweep("changed", embedding={"pooling": "last"})
    for repair in ([], ["--repair"]):
        assert "embedding.pooling" in fails(4, "verify", "--config", changed, *repair)
    assert main(["verify", "--config", right]) == 0


def test_a_file_where_the_store_should_be(sweep, fails, tmp_path):
    (tmp_path / "store.zarr").write_text("mine")
    assert "there is a file in its way" in fails(4, "prepare", "--config", sweep())
    assert (tmp_path / "store.zarr").read_text() == "mine"


@pytest.mark.parametrize("path", ["documents/plan.json", "corpus/zarr.json"])
def test_damage_that_other_commands_need_is_repaired_too(copied, fails, capsys, tmp_path, path):
    given = ("--config", copied())
    damaged = tmp_path / "store.zarr" / path
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert "run 'batchsweep verify --repair'" in fails(4, "bandit", *given)
    assert "1 faults" in fails(4, "verify", *given)
    capsys.readouterr()
    assert main(["verify", *given, "--repair"]) == 0
    assert capsys.readouterr().out.count("--repair") == 0
    assert main(["prepare", *given]) == 0
    capsys.readouterr()
    assert main(["extract", *given, "--all"]) == 0
    assert capsys.readouterr().err.count("already sealed") == 2
    assert main(["verify", *given]) == 0


def test_verify_sees_a_corpus_that_is_gone_and_a_plan_that_status_refuses(copied, fails, tmp_path):
    given = ("--config", copied())
    store = open_store(tmp_path / "store.zarr")
    shutil.rmtree(tmp_path / "store.zarr" / "corpus")
    assert "1 faults" in fails(4, "verify", *given)
    assert main(["prepare", *given]) == 0 and main(["verify", *given]) == 0
    plan = store.read_json("plan.json")
    for name, value in {
        "version": 0,
        "entries": [],
        "poolings": ["../../x"],
        "config": [],
        "skipped": [{"model": 1}],
    }.items():
        store.write_json("plan.json", {**plan, name: value})
        assert "plan.json" in fails(4, "status", *given)
        assert "1 faults" in fails(4, "verify", *given)
    entry = plan["entries"][0]
    for change in (
        {"index": True},
        {"layers": [1, 99]},
        {"layers": "12"},
        {"shape": {**entry["shape"], "hidden": "x"}},
        {"checkpoint": {**entry["checkpoint"], "revision": 7}},
    ):
        entries = [{**entry, **change}, *plan["entries"][1:]]
        store.write_json("plan.json", {**plan, "entries": entries})
        assert "plan.json" in fails(4, "status", *given)
        assert "1 faults" in fails(4, "verify", *given)
    assert main(["verify", *given, "--repair"]) == 0
    assert main(["prepare", *given]) == 0 and main(["verify", *given]) == 0
    assert store.read_json("plan.json") == plan


def test_a_folder_that_can_not_be_written(copied, fails, tmp_path):
    given = ("--config", copied())
    assert main(["bandit", *given]) == 0
    (tmp_path / "mine").write_text("mine")
    says = fails(4, "report", *given, "--out", str(tmp_path / "mine"))
    assert "mine: can't be written" in says and "report --out" in says
    says = fails(2, "demo", "--out", str(tmp_path / "mine" / "demo"))
    assert "a bug" not in says


def test_a_reader_that_leaves_is_no_error(copied):
    given = ("status", "--config", copied())
    process = subprocess.Popen(
        [sys.executable, "-m", "batchsweep", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOENT, errno.EACCES])
def test_a_home_that_can_not_be_written(number, sweep, fails, tmp_path, monkeypatch):
    """ENOENT is what /proc says to who makes a folder there."""
    what = os.strerror(number)

    def makes_a_cache(*args, **more):
        raise OSError(number, what, str(tmp_path / "home" / ".cache"))

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("batchsweep.plan.prepare.prepare", makes_a_cache)
    says = fails(2, "prepare", "--config", sweep())
    assert f".cache: {what}; set HOME to a place that can be written" in says


def test_a_store_on_a_disk_that_became_read_only_is_read_all_the_same(
    copied, fails, tmp_path, monkeypatch
):
    path, store = copied(), tmp_path / "store.zarr"
    assert main(["bandit", "--config", path]) == 0
    true_open, true_unlink = Path.open, Path.unlink

    def refuses(there: Path) -> None:
        if store in there.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(there))

    def opens(there, mode="r", *rest, **more):
        if mode[0] != "r":
            refuses(there)
        return true_open(there, mode, *rest, **more)

    def unlinks(there, missing_ok=False):
        refuses(there)
        true_unlink(there, missing_ok)

    monkeypatch.setattr(Path, "open", opens)
    monkeypatch.setattr(Path, "unlink", unlinks)
    assert main(["report", "--config", path, "--out", str(tmp_path / "page")]) == 0
    says = fails(4, "bandit", "--config", path, "--seed", "1")
    assert "Read-only file system; make it writable for this user" in says


def test_a_path_that_no_file_system_has(copied, fails):
    says = fails(2, "bandit", "--config", copied(), "--results", "a" * 5000)
    assert "File name too long; name a place" in says


def test_with_closed_streams_no_file_of_a_store_gets_what_is_printed(tmp_path):
    code = (
        "import os, pathlib, sys\n"
        "from batchsweep.cli.main import main\n"
        "codes = [main(['--version']), main(['plan', '--config', 'nowhere.yaml'])]\n"
        "number = os.open(os.devnull, os.O_RDONLY)\n"
        "print('nobody reads this'), print('nor this', file=sys.stderr)\n"
        "pathlib.Path(sys.argv[1]).write_text(f'{codes} {number > 2}')\n"
    )
    said = tmp_path / "said"
    closed = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", closed, sys.executable, code, said]).returncode == 0
    assert said.read_text() == "[0, 2] True"


def test_a_disk_that_is_full_when_a_lease_is_taken(tmp_path):
    # A limit on the size of files stands for a full disk: the same error from the same call.
    code = (
        "import pathlib, resource, sys\n"
        "from batchsweep.errors import StoreError\n"
        "from batchsweep.store.places.local import LocalBlobs\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n"
        "    with LocalBlobs(pathlib.Path(sys.argv[1])).lease('bandit/x'): pass\n"
        "except StoreError as error:\n"
        "    print(error, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    assert "no space left for documents/leases/" in done.stderr


def test_workers_end_with_a_search_that_was_killed(tmp_path):
    code = (
        "import os, time\n"
        "from batchsweep.score.workers import score_processes\n"
        "if __name__ == '__main__':\n"
        "    with score_processes(1) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
    )
    (tmp_path / "search.py").write_text(code)
    killed = subprocess.run(
        [sys.executable, str(tmp_path / "search.py")],
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
    )
    # The pipe is at its end once the worker, which has it too, is gone.
    assert killed.returncode == -9 and killed.stdout.strip().isdigit()


def test_an_index_that_fails_does_not_keep_the_others_from_running(sweep, fails, tmp_path):
    root = make_suite(tmp_path / "suite", ("step0", "step1", "main"))
    for revision, name, change in (
        ("step0", "layers.1.mlp.dense_h_to_4h.weight", float("nan")),
        ("step1", "final_layer_norm.weight", 1e6),
    ):
        file = root / revision / "model.safetensors"
        weights = load_file(file)
        weights[name].mul_(change)
        save_file(weights, file, metadata={"format": "pt"})
    given = ("--config", sweep(models=[str(root)], revisions=["step0", "step1", "main"]))
    assert main(["prepare", *given]) == 0
    assert "layer 2, row" in fails(3, "extract", *given, "--index", "0")
    assert "layer 1, row 0" in fails(4, "extract", *given, "--index", "1")
    assert "2 of 3 indexes failed: suite/step0, suite/step1" in fails(3, "extract", *given, "--all")
    assert [s.key for s in open_store(tmp_path / "store.zarr").status() if s.complete] == [
        "suite/main"
    ]


def test_other_metrics_are_named(copied, fails):
    changed = copied(metrics={"sample": 9})
    says = fails(4, "extract", "--config", changed, "--index", "0")
    assert "metrics.sample is 8 in the store, 9 now" in says
    # prepare, which only adds indexes, would add some that can't be extracted.
    says = fails(4, "prepare", "--config", changed)
    assert "metrics.sample was 8 and is now 9" in says


def test_a_task_without_its_data_is_named_before_the_first_pull(
    copied, fails, monkeypatch, tmp_path
):
    class Gone:
        """A task whose data set is neither here nor to be had."""

        def __init__(self, task):
            self.metadata, self.data_loaded = task.metadata, False

        def load_data(self):
            raise ConnectionError("no such data set")

    def resolve(entries):
        first, *others = all_tasks(entries)
        return [first, *(Gone(task) for task in others)]

    given = copied(bandit={"budget": {"pulls": 6}, "policy": "random", "final_check": 0})
    monkeypatch.setattr("batchsweep.bandit.search.resolve", resolve)
    monkeypatch.setattr("batchsweep.tasks.evaluators.large_reranking.is_large", lambda task: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    says = fails(2, "bandit", "--config", given)
    assert "tasks: data set not cached and HF_HUB_OFFLINE is set: TinyClustering" in says
    assert open_store(tmp_path / "store.zarr").list_json("bandit") == []
    # What scores nothing needs no data.
    assert main(["bandit", "--config", given, "--policy", "heuristic"]) == 0


def test_a_damaged_tokenizer_is_one_line(sweep, fails, tmp_path):
    root = make_suite(tmp_path / "suite", ("main",))
    (root / "main" / "tokenizer.json").write_text('{"version": ')
    given = ("--config", sweep(models=[str(root)], revisions=["main"]))
    assert "tokenizer.json" in fails(3, "prepare", *given)


def test_a_model_without_a_tokenizer_is_refused(sweep, fails, tmp_path):
    root = make_suite(tmp_path / "suite", ("main",))
    for path in (root / "main").glob("tokenizer*"):
        path.unlink()
    given = ("--config", sweep(models=[str(root)], revisions=["main"]))
    assert "it has no vocabulary, every text would be empty" in fails(3, "prepare", *given)


def test_texts_without_a_known_word_are_a_warning_with_their_number(sweep, tmp_path, capsys):
    root = make_suite(tmp_path / "suite", ("main",))
    rows = [
        {"sentence1": one, "sentence2": two, "score": i / 3}
        for i, (one, two) in enumerate([("the cat", "qq"), ("zz", "a dog"), ("xx", "cat")])
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "Strange", "type": "sts", "path": str(tmp_path / "pairs.jsonl")}
    given = sweep(models=[str(root)], revisions=["main"], tasks=[task])
    assert main(["prepare", "--config", given]) == 0
    assert "it knows nothing of 3 of 6 texts" in capsys.readouterr().err


@pytest.mark.parametrize("metrics", [False, True])
def test_token_ids_beyond_the_vocabulary_fail_the_index(sweep, fails, tmp_path, metrics):
    root = tmp_path / "suite"
    make_model(root / "main", seed=0, vocab=20)
    sections = {"models": [str(root)], "revisions": ["main"]}
    given = ("--config", sweep(**sections, metrics={"enabled": metrics, "sample": 8}))
    assert main(["prepare", *given]) == 0
    says = fails(3, "extract", *given, "--all")
    assert "the model has embeddings for 0 to 19; the tokenizer is another model's" in says


@pytest.mark.parametrize(
    ("name", "says"), [("config.json", "config.json changed"), ("tokenizer.json", "the tokenizer")]
)
def test_a_checkpoint_whose_config_or_tokenizer_changed_is_refused(
    sweep, fails, tmp_path, name, says
):
    root = make_suite(tmp_path / "suite", ("main",))
    given = ("--config", sweep(models=[str(root)], revisions=["main"]))
    assert main(["prepare", *given]) == 0
    path = root / "main" / name
    before = path.read_text()
    edited = json.loads(before)
    edited["rotary_pct" if name == "config.json" else "version"] = 0.5
    path.write_text(json.dumps(edited))
    assert says in (line := fails(3, "extract", *given, "--all"))
    assert "changed since 'prepare'" in line
    assert "changed since the plan was frozen" in fails(4, "prepare", *given)
    path.write_text(before)
    assert main(["extract", *given, "--all"]) == 0


def test_identical_weights_with_another_config_are_an_index_of_their_own(sweep, tmp_path):
    root = make_suite(tmp_path / "suite", ("step0", "main"))
    for name, change in (("noted", {"use_cache": False}), ("turned", {"rotary_pct": 0.5})):
        shutil.copytree(root / "step0", root / name)
        config = json.loads((root / name / "config.json").read_text())
        (root / name / "config.json").write_text(json.dumps({**config, **change}))
    for revisions in (["step0", "noted"], ["step0", "noted", "turned"]):
        # The second time the plan grows.
        given = sweep(models=[str(root)], revisions=revisions)
        assert main(["prepare", "--config", given]) == 0
    entries = json.loads((tmp_path / "store.zarr/documents/plan.json").read_text())["entries"]
    found = [(e["checkpoint"]["revision"], e["checkpoint"]["aliases"]) for e in entries]
    assert found == [("step0", ["noted"]), ("turned", [])]


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("tokenizer.json", "garbage", 3),
        ("tokenizer.json", "[" * 100_000, 3),
        ("tokenizer.json", 2**31, 3),
        ("tokenizer_config.json", "{", 3),
        ("config.json", "[" * 100_000, 2),
        ("config.json", '{"num_hidden_layers": 1000000000, "hidden_size": 8}', 2),
    ],
    ids=lambda x: str(x)[:30],
)
def test_a_damaged_model_is_named_by_prepare(sweep, fails, tmp_path, name, body, code):
    root = make_suite(tmp_path / "suite", ("main",))
    path = root / "main" / name
    if isinstance(body, int):
        # Token ids that no array of ids can hold.
        value = json.loads(path.read_text())
        vocab = value["model"]["vocab"]
        value["model"]["vocab"] = {word: token + body for word, token in vocab.items()}
        body = json.dumps(value)
    path.write_text(body)
    line = fails(code, "prepare", "--config", sweep(models=[str(root)], revisions=["main"]))
    assert "token" in line if code == 3 else "config.json" in line
