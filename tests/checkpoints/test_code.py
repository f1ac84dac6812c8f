"""The code of a checkpoint, where it may run, is part of what the checkpoint is."""

import json
import shutil

import pytest
from hub_server import Repo, repo_from_directory
from tiny import make_model, make_tasks, write_config

from batchsweep import config
from batchsweep.checkpoints.audit import audit
from batchsweep.cli.main import main
from batchsweep.errors import IndexFailed
from batchsweep.forward.loading import load_checkpoint

CODE = (
    "from transformers import GPTNeoXConfig, GPTNeoXModel\n"
    "class C(GPTNeoXConfig):\n    model_type = 'home_made'\n"
    "class M(GPTNeoXModel):\n    config_class = C\n"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two revisions of the same weights and config, whose code differs by a comment."""
    root = tmp_path_factory.mktemp("code") / "made"
    make_model(root / "step1", seed=0)
    path = root / "step1" / "config.json"
    own = {"AutoConfig": "home_made.C", "AutoModel": "home_made.M"}
    told = {"auto_map": own, "model_type": "home_made"}
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    (root / "step1" / "home_made.py").write_text(CODE)
    shutil.copytree(root / "step1", root / "main")
    (root / "main" / "home_made.py").write_text(f"{CODE}# Another day.\n")
    return root


@pytest.fixture
def suite(made, tmp_path):
    return shutil.copytree(made, tmp_path / "suite")


def sweep(model, folder, **more):
    path = write_config(
        folder / "sweep.yaml",
        models=[{"name": str(model), **more}],
        revisions=["step1", "main"],
        tasks=make_tasks(folder / "tasks", n=8),
        metrics={"sample": 8},
        store={"path": str(folder / "store"), "block_texts": 8},
    )
    return str(path)


def keys(path):
    return [c.key.rpartition("/")[2] for c in audit(config.load(path)).checkpoints]


def test_other_code_is_another_checkpoint(suite, tmp_path):
    assert keys(sweep(suite, tmp_path, trust_remote_code=True)) == ["step1", "main"]
    # Code that doesn't run makes no difference.
    assert keys(sweep(suite, tmp_path)) == ["main"]


def test_so_it_is_on_the_hub(suite, tmp_path, hub):
    hub.repos["own/model"] = repo_from_directory(suite)
    assert keys(sweep("own/model", tmp_path, trust_remote_code=True)) == ["step1", "main"]
    assert keys(sweep("own/model", tmp_path)) == ["main"]


def test_code_that_changed_in_the_middle_of_an_index_ends_it(suite, tmp_path, capsys):
    path = sweep(suite, tmp_path, trust_remote_code=True)
    assert main(["prepare", "--config", path]) == 0
    extract = ["extract", "--config", path, "--index", "0"]
    assert main([*extract, "--tasks", "TinySTS"]) == 0
    code = suite / "step1" / "home_made.py"
    code.write_text(CODE.replace("home_made'", "home_made'  # Changed"))
    capsys.readouterr()
    assert main(extract) == 3
    assert "step1: config.json or the code changed since 'prepare'" in capsys.readouterr().err
    assert main(["prepare", "--config", path]) == 4
    code.write_text(CODE)
    assert main(extract) == 0


def test_a_damaged_download_of_code_is_seen(suite, tmp_path, hub, capsys):
    for revision in ("step1", "main"):
        (suite / revision / "parts").mkdir()
        (suite / revision / "parts" / "more.py").write_text("")
    branches = {
        name: {**files, "parts/more.py": b"A = 1\n"}
        for name, files in repo_from_directory(suite).branches.items()
    }
    hub.repos["own/model"] = Repo(branches)
    path = sweep("own/model", tmp_path, trust_remote_code=True)
    assert main(["prepare", "--config", path]) == 0
    extract = ["extract", "--config", path, "--index", "0"]
    assert main([*extract, "--tasks", "TinySTS"]) == 0
    (more,) = {p.resolve() for p in (tmp_path / "hf").rglob("more.py")}
    more.write_bytes(b"A = 2\n")
    capsys.readouterr()
    assert main(extract) == 3
    assert "more.py is not the file" in capsys.readouterr().err


def test_code_of_another_repo_is_refused_since_nothing_pins_it(suite):
    path = suite / "main" / "config.json"
    elsewhere = {"AutoModel": "other/repo--home_made.M"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": elsewhere}))
    with pytest.raises(IndexFailed, match="takes its code from other/repo, which the plan"):
        load_checkpoint(str(suite / "main"), device="cpu", trust_remote_code=True)
