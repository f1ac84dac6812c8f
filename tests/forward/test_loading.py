"""Loading a checkpoint: formats, dtypes, and a clear error for whatever is wrong with it."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from architectures import ARCHITECTURES, random_model
from hub_server import Fault, HubServer, Repo, repo_from_directory
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from batchsweep.errors import IndexFailed, TryAgain, Unavailable, UsageError
from batchsweep.forward.loading import fetch, load_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A suite's directory with one revision."""
    root = tmp_path_factory.mktemp("suite")
    random_model("gpt_neox").save_pretrained(root / "step1")
    return root


@pytest.fixture
def suite(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "suite"))


def weights_of(loaded):
    # Those of products may be in a layout of the processor's.
    return loaded.model.state_dict()["layers.0.input_layernorm.weight"]


def to_bin(folder: Path) -> None:
    """Turn a directory's safetensors into the older pickled format."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_a_revision_is_a_subdirectory_and_a_plain_model_its_own(suite):
    by_revision = load_checkpoint(str(suite), "step1", device="cpu")
    plain = load_checkpoint(str(suite / "step1"), device="cpu")
    assert by_revision.num_layers == 3 and by_revision.hidden == 16
    assert torch.equal(weights_of(by_revision), weights_of(plain))
    with pytest.raises(IndexFailed, match=r"neither .*step2 nor .* has a config.json"):
        load_checkpoint(str(suite), "step2", device="cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto"])
def test_dtype(suite, dtype):
    folder = suite / "step1"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    loaded = load_checkpoint(str(folder), device="cpu", dtype=dtype)
    want = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    assert loaded.dtype == weights_of(loaded).dtype == want


def test_old_checkpoints_have_pickled_weights_only(suite):
    want = weights_of(load_checkpoint(str(suite), "step1", device="cpu"))
    to_bin(suite / "step1")
    got = weights_of(load_checkpoint(str(suite), "step1", device="cpu"))
    assert torch.equal(got, want)


def test_a_pickle_that_runs_code_is_refused(suite, tmp_path):
    class Exploit:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    to_bin(suite / "step1")
    torch.save({"weight": Exploit()}, suite / "step1" / "pytorch_model.bin")
    with pytest.raises(IndexFailed, match="can't load the model"):
        load_checkpoint(str(suite), "step1", device="cpu")
    assert not (tmp_path / "pwned").exists()


def test_remote_code_is_refused_unless_asked_for(suite):
    folder = suite / "step1"
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "home_made",
        "auto_map": {"AutoConfig": "home_made.C", "AutoModel": "home_made.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "home_made.py").write_text(
        "from transformers import GPTNeoXConfig, GPTNeoXModel\n"
        "class C(GPTNeoXConfig):\n    model_type = 'home_made'\n"
        "class M(GPTNeoXModel):\n    config_class = C\n"
    )
    with pytest.raises(IndexFailed, match="trust_remote_code"):
        load_checkpoint(str(folder), device="cpu")
    loaded = load_checkpoint(str(folder), device="cpu", trust_remote_code=True)
    assert type(loaded.model).__name__ == "M"


def test_missing_tensors_are_an_error_not_random_weights(suite):
    path = suite / "step1" / "model.safetensors"
    tensors = load_file(path)
    del tensors["layers.1.mlp.dense_4h_to_h.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(IndexFailed, match=r"lack 1 of .* layers\.1\.mlp\.dense_4h_to_h\.weight"):
        load_checkpoint(str(suite), "step1", device="cpu")


def edit_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def edit_tensors(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "unused"),
    [
        ({"attention_bias": False}, r"6 of .* layers\.0\.attention\.dense\.bias"),
        ({"num_hidden_layers": 2}, r"12 of .* layers\.2\."),
    ],
)
def test_tensors_that_the_config_leaves_unused_are_an_error(suite, change, unused):
    edit_config(suite / "step1", **change)
    with pytest.raises(IndexFailed, match=rf"step1: GPTNeoXModel .* leaves {unused}"):
        load_checkpoint(str(suite), "step1", device="cpu")


@pytest.mark.parametrize("name", ["extra.weight", "layers.1.extra.weight", "layers.3.head.weight"])
def test_an_unknown_tensor_is_an_error(suite, name):
    edit_tensors(suite / "step1", lambda tensors: tensors.update({name: torch.ones(2)}))
    with pytest.raises(IndexFailed, match=f"leaves 1 of .* unused, such as {name}"):
        load_checkpoint(str(suite), "step1", device="cpu")


def test_heads_and_old_buffers_may_go_unused(suite):
    want = weights_of(load_checkpoint(str(suite), "step1", device="cpu"))

    def add(tensors):
        tensors |= {
            "embed_out.weight": torch.ones(61, 16),
            "layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
            "layers.0.attention.masked_bias": torch.tensor(-1e9),
            "layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
            "embed_in.position_ids": torch.arange(4),
        }
        return tensors

    edit_tensors(suite / "step1", add)
    assert torch.equal(weights_of(load_checkpoint(str(suite), "step1", device="cpu")), want)
    to_bin(suite / "step1")
    assert torch.equal(weights_of(load_checkpoint(str(suite), "step1", device="cpu")), want)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("bert", "BertForPreTraining"),
        ("bert", "BertForSequenceClassification"),
        ("bert", "BertForQuestionAnswering"),
        ("gpt2", "GPT2LMHeadModel"),
        ("gpt_neox", "GPTNeoXForCausalLM"),
        ("llama", "LlamaForCausalLM"),
        ("llama", "LlamaForSequenceClassification"),
        ("mamba", "MambaForCausalLM"),
        ("modernbert", "ModernBertForMaskedLM"),
        ("olmo2", "Olmo2ForCausalLM"),
    ],
)
def test_checkpoints_with_a_head_are_loaded_without_it(tmp_path, name, head):
    import transformers

    assert name in ARCHITECTURES
    getattr(transformers, head)(random_model(name).config).save_pretrained(tmp_path)
    assert load_checkpoint(str(tmp_path), device="cpu").num_layers == 3


@pytest.mark.parametrize("pickled", [False, True])
def test_integer_weights_are_refused(suite, pickled):
    name = "layers.1.mlp.dense_4h_to_h.weight"

    def quantise(tensors):
        tensors[name] = (tensors[name] * 10).to(torch.int8)

    edit_tensors(suite / "step1", quantise)
    if pickled:
        to_bin(suite / "step1")
    with pytest.raises(
        IndexFailed, match=rf"step1: 1 of .* no floats, such as {name} \((?i:i.*8)\)"
    ):
        load_checkpoint(str(suite), "step1", device="cpu")


@pytest.mark.parametrize("config", [{"quant_method": "home-made"}, {}])
def test_a_quantization_config_is_refused(suite, config):
    edit_config(suite / "step1", quantization_config=config)
    with pytest.raises(IndexFailed, match=r"step1: config\.json has a quantization_config"):
        load_checkpoint(str(suite), "step1", device="cpu")


@pytest.mark.parametrize("heads", [0, 3, -2, "many"])
def test_a_wrong_number_of_heads_fails_the_index(suite, heads):
    edit_config(suite / "step1", num_attention_heads=heads)
    with pytest.raises(IndexFailed, match="step1"):
        load_checkpoint(str(suite), "step1", device="cpu")


def test_a_cut_off_file_and_no_file(suite):
    path = suite / "step1" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(IndexFailed, match=r"step1.*can't load the model.*delete them"):
        load_checkpoint(str(suite), "step1", device="cpu")
    path.unlink()
    with pytest.raises(IndexFailed, match=r"no model\*.safetensors or pytorch_model\*.bin"):
        load_checkpoint(str(suite), "step1", device="cpu")


def test_unknown_devices(suite):
    with pytest.raises(UsageError, match="no device 'gpu'"):
        load_checkpoint(str(suite), "step1", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="sees no GPU"):
            load_checkpoint(str(suite), "step1", device="cuda")


NAME = "EleutherAI/pythia-14m"


@pytest.fixture
def served(hub: HubServer, suite: Path) -> HubServer:
    hub.repos[NAME] = repo_from_directory(suite)
    return hub


def test_a_hub_repo_at_a_commit_is_downloaded_once(served, suite):
    commit = served.repos[NAME].commit("step1")
    want = weights_of(load_checkpoint(str(suite), "step1", device="cpu"))
    assert torch.equal(weights_of(load_checkpoint(NAME, commit, device="cpu")), want)
    served.faults.append(Fault("status", status=500, times=10_000))
    assert torch.equal(weights_of(load_checkpoint(NAME, commit, device="cpu")), want)


def test_of_two_formats_only_safetensors_is_downloaded(served, suite):
    files = served.repos[NAME].branches["step1"]
    files["pytorch_model.bin"] = b"never to be read"
    names = {p.name for p in fetch(NAME, "step1").iterdir()}
    assert names == {"config.json", "model.safetensors"}


def test_what_the_hub_does_not_have(served):
    with pytest.raises(IndexFailed, match="no such revision"):
        fetch(NAME, "step7")
    with pytest.raises(IndexFailed, match="no such repo"):
        fetch("EleutherAI/pythia-15m", "step1")
    with pytest.raises(IndexFailed, match="neither a directory nor a Hub repo id"):
        fetch("a/b/c", "step1")
    served.repos[NAME].branches["empty"] = {"config.json": b"{}"}
    with pytest.raises(IndexFailed, match=r"no model\*.safetensors"):
        fetch(NAME, "empty")


@pytest.fixture
def no_waiting(monkeypatch):
    """The client's pauses between its own retries, half a minute in all, pass at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def test_a_hub_that_fails_is_a_case_for_trying_again(served, no_waiting):
    served.faults.append(Fault("status", status=500, times=10_000))
    with pytest.raises(TryAgain, match=r"EleutherAI/pythia-14m@step1.*try again"):
        fetch(NAME, "step1")


def test_no_network_is_a_case_for_trying_again(monkeypatch, tmp_path, no_waiting):
    server = HubServer()
    with server:
        server.use(monkeypatch, tmp_path / "hf")
    # The server is gone now.
    with pytest.raises(TryAgain, match="try again"):
        fetch(NAME, "step1")


def test_a_server_that_trickles_is_asked_again_for_the_rest_and_then_given_up(
    served, suite, monkeypatch
):
    monkeypatch.setattr("batchsweep.checkpoints.slow_server.WINDOW", 0.1)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4)
    # The client's pauses; the server's own stay.
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda _: None))
    commit = served.repos[NAME].commit("step1")
    served.faults.append(Fault("drip", "GET /cdn/.*model.safetensors", seconds=0.01))
    weights = (suite / "step1/model.safetensors").read_bytes()
    assert (fetch(NAME, commit) / "model.safetensors").read_bytes() == weights
    (begun,) = served.resumed
    assert 0 < begun < 100
    shutil.rmtree(constants.HF_HUB_CACHE)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 20)
    served.faults.append(Fault("drip", "GET /cdn/.*model.safetensors", seconds=0.01, times=99))
    with pytest.raises(TryAgain, match=r"failed: ReadTimeout: only \d+ bytes in 0\.\d s; try"):
        fetch(NAME, commit)


def test_a_gated_repo_says_what_to_do(served):
    served.repos[NAME] = Repo(served.repos[NAME].branches, gated=True)
    with pytest.raises(IndexFailed, match="HF_TOKEN"):
        fetch(NAME, "step1")


def test_offline_without_the_weights_is_wrong_usage(served, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set and the weights are not in the"):
        fetch(NAME, served.repos[NAME].commit("step1"))


def test_no_right_to_read_names_the_token(served):
    served.faults.append(Fault("status", "/api/models/", status=403, times=99))
    with pytest.raises(Unavailable, match="HF_TOKEN"):
        fetch(NAME, served.repos[NAME].commit("step1"))


def sharded(folder: Path) -> Path:
    """The weights as two shards; the path of their index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2]}
    shards["model-00002-of-00002.safetensors"] = names[1::2]
    for shard, of in shards.items():
        save_file({n: tensors[n] for n in of}, folder / shard, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    where = {n: shard for shard, of in shards.items() for n in of}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_an_index_that_points_elsewhere_is_refused(tmp_path):
    folder = tmp_path / "model"
    random_model("llama").save_pretrained(folder)
    index = sharded(folder)
    load_checkpoint(str(folder), device="cpu")
    (tmp_path / "else").mkdir()
    shutil.copy(folder / "model-00002-of-00002.safetensors", tmp_path / "else/w.safetensors")
    elsewhere = os.path.relpath(tmp_path / "else/w.safetensors", folder)
    index.write_text(index.read_text().replace("model-00002-of-00002.safetensors", elsewhere))
    with pytest.raises(IndexFailed, match=r"else/w\.safetensors' in .*index\.json isn't"):
        load_checkpoint(str(folder), device="cpu")
    for damaged in ('{"weight_map": []}', "{", "[" * 100_000):
        index.write_text(damaged)
        with pytest.raises(IndexFailed, match="can't load the model from"):
            load_checkpoint(str(folder), device="cpu")


def test_a_config_that_names_other_weights_is_refused(suite):
    folder = suite / "step1"
    shutil.copytree(folder, folder / "other")
    config = json.loads((folder / "config.json").read_text())
    named = {**config, "transformers_weights": "other/model.safetensors"}
    (folder / "config.json").write_text(json.dumps(named))
    with pytest.raises(
        IndexFailed, match=r"'other/model\.safetensors' in config\.json isn't among"
    ):
        load_checkpoint(str(folder), device="cpu")


def test_a_token_that_the_hub_does_not_know_is_wrong_usage(served):
    says = "Invalid credentials in Authorization header"
    served.faults.append(Fault("status", "/api/models/", status=401, says=says, times=99))
    with pytest.raises(UsageError, match=f"{NAME}.*set HF_TOKEN to a valid one"):
        fetch(NAME, served.repos[NAME].commit("step1"))


def test_modules_of_sentence_transformers_are_named_as_not_applied(tmp_path, caplog):
    random_model("bert").save_pretrained(tmp_path)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [{"idx": i, "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    load_checkpoint(str(tmp_path), device="cpu")
    assert "modules (Pooling, Normalize) are not applied" in caplog.text
