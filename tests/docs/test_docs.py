"""What the documentation says of the code is true: files, commands, and the steps of its guides."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import measured
import numpy as np
import pytest
import yaml
from architectures import ARCHITECTURES
from simulated import play, problem_of, surface
from store_data import KEY, TASKS, block, spec, states, write_corpus, write_group

from batchsweep.arm import Arm
from batchsweep.bandit.policies import Policy
from batchsweep.cli.main import main
from batchsweep.errors import TryAgain
from batchsweep.score.record import path_of
from batchsweep.store import create_store, repair, verify

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
#: A file or folder of the project, as it is named in backquotes.
NAMED = re.compile(r"`((?:batchsweep|tests|docs|configs|k8s|examples)/[\w./-]*)`")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    named = [ROOT / name for name in NAMED.findall(text)]
    linked = [page.parent / target for target in LINK.findall(text)]
    assert [str(path) for path in [*named, *linked] if not path.exists()] == []


def hooks() -> Any:
    """What mkdocs calls."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_table_of_figures_is_typed_by_hand(page: Path) -> None:
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    assert [line for line in lines if re.search(r"(?<!-)\b\d+\.\d|\d %|\d GiB", line)] == []


@pytest.mark.parametrize("file", sorted(ROOT.glob("docs/figures/*.json")), ids=lambda f: f.stem)
def test_figures_say_where_they_are_from(file: Path) -> None:
    figures = json.loads(file.read_text())
    assert {"machine", "commit", "date", "command"} <= figures.keys()
    lines = hooks().table(file).splitlines()
    assert (
        len(lines) == 4 + len(figures["rows"])
        and len({line.count("|") for line in lines[:-2]}) == 1
    )
    assert figures["commit"] in lines[-1] and figures["date"][:10] in lines[-1]


def test_what_a_benchmark_writes_is_a_table_of_the_docs(tmp_path: Path) -> None:
    columns = [
        measured.column("what", "{what}"),
        measured.column("share", "{share:.1%}", bold="worse"),
        measured.column("time", "{seconds:duration}"),
    ]
    rows = [
        {
            "what": "ours",
            "share": np.float32(0.25),
            "seconds": np.int64(200),
            "worse": np.bool_(True),
        },
        {"what": "theirs", "share": 1, "seconds": 7.2, "worse": False, "undefined": float("nan")},
    ]
    file = tmp_path / "figures" / "some.json"
    measured.write(file, {"columns": columns, "rows": rows})
    assert hooks().table(file).splitlines()[2:4] == [
        "| ours | **25.0%** | 3 min 20 s |",
        "| theirs | 100.0% | 7 s |",
    ]
    written = json.loads(file.read_text())
    assert written["rows"][1]["undefined"] is None
    assert [row["commit"] for row in written["rows"]] == [written["commit"]] * 2
    assert datetime.fromisoformat(written["date"]).tzinfo is not None


def commands() -> dict[str, set[str]]:
    """Command (``launch k8s``) -> flags that a page shows it with."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        shell = "\n".join(re.findall(r"(?ms)^ *```sh\n(.*?)```", page.read_text()))
        for line in shell.replace("\\\n", " ").splitlines():
            words = [
                re.sub(r"^batchsweep:[\d.]+$", "batchsweep", w)
                for w in shlex.split(line, comments=True)
            ]
            if "batchsweep" not in words or words[0] == "kubectl" or "build" in words:
                continue
            # The last one: `docker run ... batchsweep extract`.
            mine = words[len(words) - words[::-1].index("batchsweep") :]
            if mine[0].startswith("-"):
                continue
            name = " ".join(mine[: 2 if mine[0] == "launch" else 1])
            flags = {word.split("=")[0] for word in mine if word.startswith("--")}
            found.setdefault(name, set()).update(flags)
    return found


@pytest.mark.parametrize("command", sorted(commands()))
def test_the_commands_of_the_pages_have_these_flags(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*command.split(), "--help"]) == 0
    known = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    assert commands()[command] - known == set()


def test_the_workflow_calls_what_ci_calls() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    ours = [step["run"] for step in steps if "run" in step]
    ci = (ROOT / ".ci/run").read_text().splitlines()
    assert ours == [line for line in ci if line.startswith("make ")]


def test_the_policy_of_the_guide_is_one() -> None:
    code = re.search(
        r"(?ms)^    ```python\n(.*?)^    ```", (ROOT / "docs/extend/policy.md").read_text()
    )
    assert code is not None
    names: dict[str, Any] = {"Policy": Policy}
    exec(re.sub(r"(?m)^    ", "", code[1]), names)
    problem = problem_of()
    policy = names["FewestSeen"](problem, seed=0, budget=None)
    made = play(policy, surface(problem), pulls=10_000)
    assert len({(a, t) for a, t, _ in made}) == np.prod(problem.shape)
    # Every arm once before any arm twice.
    assert len({a for a, _, _ in made[: len(problem.arms)]}) == len(problem.arms)
    assert policy.best().p_best == 1.0


def test_the_example_of_offline_analysis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create_store(tmp_path / "s.zarr")
    write_corpus(store)
    of = spec(poolings=("mean",), dtype="float32")
    with store.writer("EleutherAI--pythia-14m/step1000", of) as writer:
        for number in range(of.blocks):
            writer.write_block(number, block(states(of), of.block_rows(number)))
        writer.finish()
    script = str(ROOT / "examples/offline_analysis.py")
    monkeypatch.setattr(sys, "argv", [script, store.url])
    runpy.run_path(script, run_name="__main__")
    assert "no arm is scored on every task" in capsys.readouterr().out
    for layer in of.layers:
        for task in ("STSBenchmark", "Bank/77:en", "empty"):
            where = path_of(Arm("EleutherAI--pythia-14m/step1000", layer, "mean"), task)
            record = {"main_score": 0.5 - abs(layer - 2) / 10, "task": task, "layer": layer}
            named = {n: of.provenance[n] for n in ("model", "revision", "step")}
            store.write_json(where, {**record, **named, "pooling": "mean", "seconds": 1.0})
    runpy.run_path(script, run_name="__main__")
    out = capsys.readouterr().out
    assert re.search(r"EleutherAI--pythia-14m/step1000#2 +1000 +2 +0\.5\b", out)
    assert "no arm is scored" not in out


def test_the_place_of_the_guide_holds_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(ROOT / "examples/memory_place.py"))
    example["main"]()
    assert "sealed=2, complete=True" in capsys.readouterr().out

    store = example["memory_store"]("test")
    write_corpus(store)
    of = spec(dtype="float32")
    write_group(store, KEY, of)
    reader = store.reader(KEY)
    for pooling, values in states(of).items():
        np.testing.assert_array_equal(
            reader.read(pooling, 2, [249, 0, 100]), values[1][[249, 0, 100]]
        )
    assert verify(store) == [] and store.keys() == [KEY] and store.corpus().tasks() == list(TASKS)
    with (
        store.lease("bandit/x"),
        pytest.raises(TryAgain, match="bandit/x"),
        store.lease("bandit/x"),
    ):
        pass

    blobs = store.backend.blobs
    shard = next(p for p in blobs.walk(f"checkpoints/{KEY}/mean") if p.endswith("c.0.1.0"))
    blobs.write(shard, [blobs.read(shard)[:-9]])
    assert [fault.key for fault in verify(store)] != []
    repair(store, verify(store))
    assert store.status()[0].sealed == 2
    write_group(store, KEY, of)
    assert verify(store) == []


def test_an_architecture_that_nobody_listed_is_taken_apart() -> None:
    """The guide's claim that there is usually nothing to add."""
    import torch
    import transformers

    from batchsweep.forward.architecture import describe

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 32, "vocab_size": 61}
    config = transformers.Qwen3Config(
        **sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=8
    )
    assert "qwen3" not in ARCHITECTURES
    torch.manual_seed(0)
    loaded = describe("mine@main", transformers.AutoModel.from_config(config).eval())
    assert (loaded.num_layers, loaded.hidden, loaded.causal) == (3, 16, True)
    assert loaded.final_norm is loaded.model.norm
    assert loaded.hidden_states == ((0, False), (1, False), (2, False), (3, True))


def test_what_the_site_takes_over_has_no_links_that_only_the_repository_follows() -> None:
    included = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
    for page in (ROOT / "docs").rglob("*.md"):
        for name in included.findall(page.read_text(encoding="utf-8")):
            text = (ROOT / name).read_text(encoding="utf-8")
            for link in re.findall(r"\]\(([^)#]+)", text):
                assert link.startswith("https://") or (page.parent / link).exists(), (name, link)


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocstrings") is None,
    reason="the site's generator isn't installed: make docs",
)
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference/config/index.html").read_text()
    assert "max_texts_per_task" in reference and ":class:" not in reference
