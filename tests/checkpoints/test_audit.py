"""The audit, against a Hub on loopback that the real huggingface_hub asks."""

import json
import os
import subprocess
import sys
import time

import pytest
from hub_server import Fault, HubServer, Repo

from batchsweep.checkpoints.audit import audit, nominal
from batchsweep.checkpoints.hub import Hub
from batchsweep.checkpoints.schedules import schedule
from batchsweep.cli.audit_table import audit_table
from batchsweep.config import parse
from batchsweep.errors import ConfigError, IndexFailed, TryAgain, UsageError

CONFIG = json.dumps(
    {"model_type": "gpt_neox", "num_hidden_layers": 6, "hidden_size": 128, "vocab_size": 50304}
).encode()
SMALL = "EleutherAI/pythia-14m"
BIG = "EleutherAI/pythia-2.8b"


def files(*weights, suffix=".safetensors", config=CONFIG):
    """The files of one revision: one weight file, or shards."""
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = (
        [f"{stem}{suffix}"]
        if len(weights) == 1
        else [f"{stem}-{i + 1:05d}-of-{len(weights):05d}{suffix}" for i in range(len(weights))]
    )
    content = {name: weight.encode() for name, weight in zip(names, weights, strict=True)}
    return {"config.json": config, "tokenizer.json": b"{}", "README.md": b"hello", **content}


def suite(revisions, final="step143000"):
    """A repo in which every revision has weights of its own, and main has the last one's."""
    branches = {name: files(f"weights of {name}") for name in revisions}
    return Repo({"main": files(f"weights of {final}"), **branches})


def config(model, revisions, **model_keys):
    document = {
        "models": [{"name": model, **model_keys}],
        "revisions": revisions,
        "tasks": ["STS12"],
    }
    return parse(json.dumps(document), source="test.yaml")


def test_planted_duplicates_among_154_branches_are_all_named_and_no_other(hub: HubServer):
    # As pythia-2.8b was published: many branches serve the final weights, and step0 = step1.
    names = schedule("all")
    wrong = [f"step{s}" for s in range(20_000, 96_000, 1000)]
    assert len(wrong) == 76
    repo = suite(names)
    for name in wrong:
        repo.branches[name] = files("weights of step143000")
    repo.branches["step1"] = files("weights of step0")
    hub.repos[BIG] = repo
    start = time.monotonic()
    found = audit(config(BIG, {"strategy": "all"}))
    seconds = time.monotonic() - start
    final, first = sorted(found.duplicates, key=lambda d: not d.final)
    assert final.final and final.kept == "step143000"
    assert sorted(final.others) == sorted(wrong)
    assert (first.revisions, first.final) == (("step0", "step1"), False)
    assert len(found.duplicates) == 2 and not found.shared and not found.skipped
    # One index for each set of weights, in order of training.
    kept = [n for n in names if n not in wrong and n != "step1"]
    assert [c.revision for c in found.checkpoints] == kept
    last = found.checkpoints[-1]
    assert last.revision == "step143000" and last.step == 143_000
    assert set(last.aliases) == {*wrong, "main"}
    # 154 revisions and main, the list of branches, one config.json.
    asked = [r for r in hub.requests if BIG in r]
    assert len(asked) == found.requests <= 154 + 4
    assert not [r for r in asked if "/cdn/" in r]
    assert hub.most_at_once > 1
    assert seconds < 10
    text = "\n".join(found.warnings)
    assert "both names may be right: with a warm-up" in str(first)
    shown = audit_table(found)
    assert "EleutherAI/pythia-2.8b: main is step143000 under another name: one index" in shown
    assert all(name in text.replace(",", " ").split() or f"{name};" in text for name in wrong)


def test_a_clean_suite_gives_no_warning(hub: HubServer):
    hub.repos[SMALL] = suite(schedule("all"))
    found = audit(config(SMALL, {"strategy": "all"}))
    assert len(found.checkpoints) == 154
    assert found.warnings == ()
    assert {s.num_layers for s in found.shapes.values()} == {6}


def test_a_second_audit_asks_for_the_branches_only(hub: HubServer):
    hub.repos[SMALL] = suite(schedule("sparse")[:-1])
    wanted = config(SMALL, {"strategy": "sparse"})
    first = audit(wanted)
    hub.requests.clear()
    second = audit(wanted)
    assert hub.requests == [f"GET /api/models/{SMALL}/refs"]
    assert second.checkpoints == first.checkpoints
    # A branch that moved is another commit: it is asked for again.
    hub.repos[SMALL].branches["step1000"] = files("other weights")
    hub.changed()
    assert audit(wanted).checkpoints[0].weights != first.checkpoints[0].weights


def test_main_is_step143000_and_one_index(hub: HubServer):
    hub.repos[SMALL] = suite(["step1000", "step143000"])
    found = audit(config(SMALL, ["step1000", "step143000", "main"]))
    assert [(c.revision, c.step, c.aliases) for c in found.checkpoints] == [
        ("step1000", 1000, ()),
        ("main", 143_000, ("step143000",)),
    ]
    assert found.warnings == ()


def test_the_final_weights_under_one_earlier_name_are_named_even_if_main_is_not_asked_for(hub):
    repo = suite(["step1000", "step50000"])
    repo.branches["step50000"] = files("weights of step143000")
    hub.repos[SMALL] = repo
    found = audit(config(SMALL, ["step1000", "step50000"]))
    (duplicate,) = found.duplicates
    assert (duplicate.kept, duplicate.others, duplicate.final) == ("main", ("step50000",), True)
    # Its point on a training curve is where its weights belong.
    assert found.checkpoints[1].revision == "step50000"
    assert found.checkpoints[1].step == 143_000


def test_shards_are_compared_one_by_one(hub: HubServer):
    # pythia-12b's step50000 and step58000 carry the first shard of the final weights.
    repo = Repo(
        {
            "main": files("final 1", "final 2", "final 3"),
            "step50000": files("final 1", "own 2", "own 3"),
            "step60000": files("a", "b", "c"),
            "step70000": files("a", "b", "c"),
        }
    )
    hub.repos[BIG] = repo
    found = audit(config(BIG, ["step50000", "step60000", "step70000", "main"]))
    (shared,) = found.shared
    assert set(shared.revisions) == {"step50000", "main"}
    assert shared.files == ("model-00001-of-00003.safetensors",)
    assert [d.revisions for d in found.duplicates] == [("step60000", "step70000")]
    assert len(found.checkpoints) == 3


def test_the_same_weights_in_an_older_format_are_the_same(hub: HubServer):
    both = {**files("final"), **files("final in bin", suffix=".bin")}
    repo = Repo({"main": both, "step143000": files("final in bin", suffix=".bin")})
    hub.repos[SMALL] = repo
    (only,) = audit(config(SMALL, ["step143000", "main"])).checkpoints
    assert only.names == ("main", "step143000")
    assert [w.name for w in only.weights] == ["model.safetensors"]


def test_missing_and_weightless_revisions_are_skipped_by_name(hub: HubServer):
    repo = suite(["step1000", "step2000", "step3000", "step4000"])
    repo.branches["step2000"] = {"config.json": CONFIG, "README.md": b""}
    del (shards := files("a", "b", "c"))["model-00002-of-00003.safetensors"]
    repo.branches["step3000"] = shards
    del repo.branches["step4000"]["config.json"]
    hub.repos[SMALL] = repo
    wanted = config(SMALL, ["step1000", "step-2000", "step3000", "step4000", "step10000"])
    found = audit(wanted)
    assert [c.revision for c in found.checkpoints] == ["step1000"]
    assert [(s.revision, s.reason) for s in found.skipped] == [
        ("step2000", "no weights"),
        ("step3000", "incomplete"),
        ("step4000", "incomplete"),
        ("step10000", "missing"),
    ]
    assert [s.revision for s in found.missing] == ["step10000"]
    assert "did you mean step1000?" in found.missing[0].detail
    with pytest.raises(IndexFailed, match=r"step2000.*and 3 more"):
        audit(wanted, strict=True)


def test_an_incomplete_format_gives_way_to_a_complete_one(hub: HubServer):
    del (shards := files("a", "b"))["model-00002-of-00002.safetensors"]
    hub.repos[SMALL] = Repo({"main": {**shards, **files("whole", suffix=".bin")}})
    (only,) = audit(config(SMALL, ["main"])).checkpoints
    assert [w.name for w in only.weights] == ["pytorch_model.bin"]


def test_a_sweep_without_any_usable_checkpoint_is_an_error(hub: HubServer):
    hub.repos[SMALL] = suite(["step1000"])
    with pytest.raises(ConfigError, match="no checkpoint of the sweep can be used; the first: "):
        audit(config(SMALL, ["step7"]))


def test_no_such_repo(hub: HubServer):
    with pytest.raises(
        ConfigError, match=r"no repo 'EleutherAI/pythia-14m' at http.*, and no such dir"
    ):
        audit(config(SMALL, ["main"]))


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("name", ["suite/demo-neox-xs", "here/other"])
def test_a_missing_folder_is_told_at_once_where_no_hub_can_be_asked(
    hub: HubServer, tmp_path, monkeypatch, name, offline
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    asked = Hub()
    with pytest.raises(ConfigError, match=f"no directory '{name}' in {tmp_path}, where relative"):
        audit(config(name, ["main"]), hub=asked)
    assert asked.requests == (0 if offline else 1)


def test_the_hub_may_have_an_owner_that_is_called_like_a_folder(hub: HubServer):
    hub.repos["suite/tiny"] = suite(["step1000"])
    assert audit(config("suite/tiny", ["step1000"])).checkpoints


def test_tags_and_commits_are_revisions_too(hub: HubServer):
    repo = suite(["step1000"])
    repo.tags["v1"] = files("weights of v1")
    hub.repos["org/model"] = repo
    commit = repo.commit("step1000")
    found = audit(config("org/model", ["v1", commit, "main"]))
    assert [c.revision for c in found.checkpoints] == ["v1", commit, "main"]
    assert found.checkpoints[1].commit == commit
    # And a commit that is not there is missing, not an error.
    assert audit(config("org/model", ["0" * 40, "main"])).missing[0].revision == "0" * 40


def test_a_hub_that_limits_the_rate_is_waited_for(hub: HubServer):
    hub.repos[SMALL] = suite(schedule("sparse")[:-1])
    hub.faults += [
        Fault("status", "/refs", status=429, retry_after=1),
        Fault("status", "/revision/", status=429, retry_after=1, times=3),
    ]
    start = time.monotonic()
    found = audit(config(SMALL, {"strategy": "sparse"}))
    assert len(found.checkpoints) == 8
    # Waited as asked; and all threads together, not one after the other.
    assert 1.9 < time.monotonic() - start < 6


def test_passing_faults_are_overcome(hub: HubServer):
    hub.repos[SMALL] = suite(schedule("sparse")[:-1])
    hub.faults += [
        Fault("status", "/revision/", status=503, times=2),
        Fault("hang up", "/revision/"),
        Fault("cut", "/revision/"),
        Fault("slow", "/revision/", seconds=3),
    ]
    found = audit(config(SMALL, {"strategy": "sparse"}), hub=Hub(timeout=1))
    assert len(found.checkpoints) == 8


def test_a_hub_that_stays_away_means_try_again_and_keeps_what_it_said(hub: HubServer):
    hub.repos[SMALL] = suite(schedule("sparse")[:-1])
    wanted = config(SMALL, {"strategy": "sparse"})
    last = hub.repos[SMALL].commit("main")
    hub.faults.append(Fault("status", last, status=502, times=99))
    with pytest.raises(TryAgain, match=r"failed 2 times \(status 502\); try again later"):
        audit(wanted, hub=Hub(attempts=2))
    answered = len([r for r in hub.requests if "blobs=true" in r and last not in r])
    hub.faults.clear()
    hub.requests.clear()
    assert len(audit(wanted).checkpoints) == 8
    assert len([r for r in hub.requests if "blobs=true" in r]) == 8 - answered


@pytest.mark.parametrize("says", ["", "Invalid credentials in Authorization header"])
def test_a_token_that_is_refused_names_the_model_and_hf_token(hub: HubServer, says: str):
    hub.repos[SMALL] = suite([])
    hub.faults.append(Fault("status", "/refs", status=401, says=says, times=99))
    with pytest.raises(ConfigError, match=f"{SMALL}.*set HF_TOKEN"):
        audit(config(SMALL, ["main"]))
    assert len(hub.requests) == 1


def test_an_answer_that_drips_has_an_end(hub: HubServer):
    hub.repos[SMALL] = suite(schedule("sparse")[:-1])
    hub.faults.append(Fault("drip", "/refs", seconds=0.01, times=99))
    with pytest.raises(TryAgain, match=r"failed 2 times \(TimeoutError: no whole answer within"):
        audit(config(SMALL, ["main"]), hub=Hub(timeout=0.2, attempts=2))


def test_a_wait_beyond_all_patience_means_try_again(hub: HubServer):
    hub.repos[SMALL] = suite([])
    hub.faults.append(Fault("status", "/refs", status=429, retry_after=3600, times=99))
    start = time.monotonic()
    with pytest.raises(TryAgain, match="asks to wait 1 h 00 min"):
        audit(config(SMALL, ["main"]))
    assert time.monotonic() - start < 2


def test_no_hub_at_all_means_try_again(hub: HubServer, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TryAgain, match=r"http://127\.0\.0\.1:9 failed 2 times \(ConnectError"):
        audit(config(SMALL, ["main"]), hub=Hub(attempts=2))


def test_something_that_is_no_hub_is_not_believed(hub: HubServer):
    hub.repos[SMALL] = suite([])
    hub.faults.append(Fault("status", "/refs", status=200, says='["no", "refs"]', times=99))
    with pytest.raises(TryAgain, match="no Hub gives; check HF_ENDPOINT"):
        audit(config(SMALL, ["main"]))


def test_offline_is_said_at_once(hub: HubServer, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        audit(config(SMALL, ["main"]))
    assert hub.requests == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1, "values": 3}'])
def test_a_damaged_cache_counts_as_empty(hub: HubServer, tmp_path, content):
    hub.repos[SMALL] = suite([])
    wanted = config(SMALL, ["main"])
    first = audit(wanted)
    for path in (tmp_path / "hf" / "batchsweep").iterdir():
        path.write_bytes(content)
    assert audit(wanted).checkpoints == first.checkpoints


def test_two_models_that_would_share_a_place_in_the_store_are_refused(tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "model").mkdir(parents=True)
        (tmp_path / parent / "model" / "config.json").write_bytes(CONFIG)
    document = {
        "models": [str(tmp_path / "a" / "model"), str(tmp_path / "b" / "model")],
        "tasks": ["STS12"],
    }
    with pytest.raises(ConfigError, match="would both be 'model/main' in the store"):
        audit(parse(json.dumps(document), source="test.yaml"))


# Other suites


def test_olmo_branches(hub: HubServer):
    names = [f"stage1-step{s}-tokens{s // 240}B" for s in (1000, 101_000, 596_057)]
    repo = Repo({n: files(n) for n in (*names, "stage2-ingredient1-step1000-tokens5B")})
    repo.branches["main"] = files("merged")
    hub.repos["allenai/OLMo-2-7B"] = repo
    pattern = r"stage1-step(\d+)"
    found = audit(config("allenai/OLMo-2-7B", {"strategy": "all"}, step_pattern=pattern))
    assert [(c.revision, c.step) for c in found.checkpoints] == [
        (n, s) for n, s in zip(names, (1000, 101_000, 596_057), strict=True)
    ]
    # Without a pattern of its own, the second stage is in the list too, behind the first.
    for revisions in ({"strategy": "all"}, list(repo.branches)[:4]):
        both = audit(config("allenai/OLMo-2-7B", revisions))
        assert [c.step for c in both.checkpoints] == [1000, 101_000, 596_057, 597_057]
    alone = audit(config("allenai/OLMo-2-7B", ["stage2-ingredient1-step1000-tokens5B"]))
    assert [c.step for c in alone.checkpoints] == [597_057]


def test_llm360_branches_with_duplicates_in_the_middle(hub: HubServer):
    repo = suite([f"ckpt_{n:03d}" for n in range(10)], final="ckpt_009")
    repo.branches["ckpt_005"] = repo.branches["ckpt_006"] = files("weights of ckpt_004")
    hub.repos["LLM360/Amber"] = repo
    found = audit(config("LLM360/Amber", {"strategy": "all"}))
    assert [d.revisions for d in found.duplicates] == [("ckpt_004", "ckpt_005", "ckpt_006")]
    last = found.checkpoints[-1]
    assert (last.revision, last.step, last.aliases) == ("ckpt_009", 9, ("main",))


def test_separate_repos_are_checkpoints_of_one_model(hub: HubServer):
    for step in ("20k", "40k"):
        hub.repos[f"org/bert-step_{step}"] = Repo({"main": files(f"weights of {step}")})
    wanted = config("org/bert-{revision}", ["step_20k", "step_40k", "step_60k"])
    found = audit(wanted)
    assert [(c.key, c.step) for c in found.checkpoints] == [
        ("org--bert/step_20k", 20_000),
        ("org--bert/step_40k", 40_000),
    ]
    assert found.checkpoints[1].load_model == "org/bert-step_40k"
    assert found.checkpoints[1].load_revision == hub.repos["org/bert-step_40k"].commit("main")
    assert [s.revision for s in found.missing] == ["step_60k"]


def test_a_main_that_is_not_the_last_step_claims_no_step(hub: HubServer):
    # OLMo's main is an average of several runs.
    hub.repos["org/model"] = suite(["step10", "step20", "step30"], final="an average")
    found = audit(config("org/model", ["step10", "step30", "main"]))
    assert [(c.revision, c.step) for c in found.checkpoints] == [
        ("step10", 10),
        ("step30", 30),
        ("main", None),
    ]
    # A main that was chosen in the middle of the training is that step's, and no wrong name.
    hub.repos["org/chosen"] = suite(["step10", "step20", "step30"], final="step20")
    found = audit(config("org/chosen", ["step10", "step20", "main"]))
    assert [(c.names, c.step) for c in found.checkpoints] == [
        (("step10",), 10),
        (("step20", "main"), 20),
    ]
    assert found.warnings == ()


def test_a_damaged_config_on_the_hub_costs_one_checkpoint(hub: HubServer):
    repo = suite(["step1000", "step2000", "step3000"])
    repo.branches["step2000"]["config.json"] = b"{"
    repo.branches["step3000"]["config.json"] = b'{"model_type": "mlp"}'
    hub.repos[SMALL] = repo
    found = audit(config(SMALL, ["step1000", "step2000", "step3000", "main"]))
    assert [c.revision for c in found.checkpoints] == ["step1000", "main"]
    assert [(s.revision, s.reason) for s in found.skipped] == [
        ("step2000", "incomplete"),
        ("step3000", "incomplete"),
    ]
    assert "config.json is not a JSON object" in found.skipped[0].detail
    assert "no num_hidden_layers" in found.skipped[1].detail


def test_a_gated_repo_says_what_to_do(hub: HubServer):
    hub.repos["org/gated"] = Repo({"main": files("final")}, gated=True)
    with pytest.raises(ConfigError, match="is gated: accept its terms on the Hub and set HF_TOKEN"):
        audit(config("org/gated", ["main"]))


@pytest.mark.parametrize("revision", ["../../etc", "main?x=1", "main#f", "", "a/../main", "né"])
def test_a_hostile_revision_is_missing_and_nothing_else(hub: HubServer, revision):
    hub.repos[SMALL] = suite([])
    found = audit(config(SMALL, [revision, "main"]))
    assert [s.reason for s in found.skipped] == ["missing"]
    assert [c.key for c in found.checkpoints] == ["EleutherAI--pythia-14m/main"]


def test_a_branch_with_a_slash_has_a_place_in_the_store(hub: HubServer):
    hub.repos[SMALL] = Repo({"main": files("m"), "run/step5": files("5")})
    (found,) = audit(config(SMALL, ["run/step5"])).checkpoints
    assert (found.key, found.step) == ("EleutherAI--pythia-14m/run--step5", 5)


def test_a_model_in_the_list_twice(hub: HubServer):
    hub.repos[SMALL] = suite([])
    document = {"models": [SMALL, SMALL], "tasks": ["STS12"]}
    with pytest.raises(ConfigError, match="is in the list twice"):
        audit(parse(json.dumps(document), source="test.yaml"))


# The real clients, end to end


def test_the_cut_off_download_of_a_pinned_checkpoint_is_resumed(hub: HubServer, tmp_path):
    weights = "w" * 300_000
    hub.repos[SMALL] = Repo({"main": files("final"), "step1000": files(weights)})
    (checkpoint,) = audit(config(SMALL, ["step1000"])).checkpoints
    hub.faults.append(Fault("cut", "GET /cdn/"))
    code = (
        "import sys; from huggingface_hub import snapshot_download;"
        f"print(snapshot_download({SMALL!r}, revision={checkpoint.commit!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **hub.environ(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with open(os.path.join(done.stdout.strip(), "model.safetensors")) as file:
        assert file.read() == weights
    assert len([r for r in hub.requests if r.startswith("GET /cdn/")]) == 2


def test_transformers_reads_a_branch(hub: HubServer, tmp_path):
    hub.repos[SMALL] = Repo({"main": files("final"), "step1000": files("early")})
    code = (
        "from transformers import AutoConfig;"
        f"print(AutoConfig.from_pretrained({SMALL!r}, revision='step1000').num_hidden_layers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **hub.environ(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "6", done.stderr


# Without an audit


def test_pythia_is_planned_without_network(hub: HubServer):
    found = nominal(config(SMALL, {"strategy": "all"}))
    assert len(found.checkpoints) == 154 and not found.asked
    assert hub.requests == []


def test_another_hub_model_costs_one_request_to_plan(hub: HubServer):
    hub.repos["org/model"] = suite(["step1000"])
    found = nominal(config("org/model", ["step1000", "main"]))
    assert [s.hidden for s in found.shapes.values()] == [128, 128]
    assert len(hub.requests) == 1
