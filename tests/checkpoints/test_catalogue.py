"""The list of faults that an audit writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hub_server import HubServer, Repo

from batchsweep.cli.main import main

SMALL = "EleutherAI/pythia-14m"
CONFIG = {"model_type": "gpt_neox", "num_hidden_layers": 6, "hidden_size": 128, "vocab_size": 50304}


def files(weights: str) -> dict[str, bytes]:
    """A revision's files."""
    config = json.dumps(CONFIG).encode()
    return {
        "config.json": config,
        "tokenizer.json": b"{}",
        "model.safetensors": weights.encode(),
    }


@pytest.fixture
def faulty(hub: HubServer) -> HubServer:
    last = files("the last weights")
    hub.repos[SMALL] = Repo(
        {
            "main": last,
            "step0": files("the first weights"),
            "step1": files("the first weights"),
            "step1000": last,
            "step2000": {"README.md": b"no weights yet"},
            "step143000": last,
        }
    )
    return hub


def audited(out: Path) -> int:
    return main(["checkpoints", "--audit", "--model", SMALL, "--catalogue", str(out)])


def test_every_form_has_each_fault_with_its_evidence_and_source(
    faulty: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("faults.json", "faults.csv", "faults.md"):
        assert audited(tmp_path / "new" / name) == 0
    document = json.loads((tmp_path / "new/faults.json").read_text())
    assert document["audited"] == [SMALL] and "no weights were downloaded" in document["how"]
    own = [f for f in document["faults"] if f["fault"] not in ("reported", "missing")]
    assert {(f["fault"], *f["revisions"]) for f in own} == {
        ("no weights", "step2000"),
        ("identical weights", "step0", "step1"),
        ("identical weights", "step143000", "step1000"),
    }
    for fault in own:
        assert fault["source"].startswith(f"https://huggingface.co/{SMALL}/tree/step")
    same = [f for f in own if f["fault"] == "identical weights"]
    assert all("sha256" in f["evidence"] and "commit " in f["evidence"] for f in same)
    reported = [f for f in document["faults"] if f["fault"] == "reported"]
    assert {f["model"] for f in reported} == {"pythia"}
    assert "https://github.com/EleutherAI/pythia/issues/83" in {f["source"] for f in reported}

    rows = list(csv.DictReader((tmp_path / "new/faults.csv").open(encoding="utf-8")))
    assert len(rows) == len(document["faults"])
    assert {"step0 step1", "step143000 step1000"} <= {row["revisions"] for row in rows}
    text = (tmp_path / "new/faults.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert {line.replace("\\|", "").count("|") for line in table} == {7}
    assert "No faults:" in text and "main is step143000" in text
    assert f"{len(rows)} faults" in capsys.readouterr().out


def test_a_sound_suite_has_no_faults_of_its_own(hub: HubServer, tmp_path: Path) -> None:
    hub.repos["own/sound"] = Repo({"main": files("a"), "step1": files("b")})
    out = tmp_path / "faults.md"
    arguments = ["checkpoints", "--audit", "--model", "own/sound", "--catalogue", str(out)]
    assert main(arguments) == 0
    assert "No fault was found." in out.read_text()


def test_wrong_use_is_told_before_anything_is_asked(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audited(tmp_path / "faults.pdf") == 2
    assert "should end in .md, .csv, .json" in capsys.readouterr().err
    assert main(["checkpoints", "--catalogue", str(tmp_path / "x.md")]) == 2
    assert "give --audit too" in capsys.readouterr().err
