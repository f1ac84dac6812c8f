"""``run``: the search and the extraction that it asks for, meeting in the store."""

import contextlib
import json
import os
import pty
import random
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_data import stored
from tiny import make_suite, make_tasks, write_sweep

from batchsweep.bandit.costs import planned_costs
from batchsweep.bandit.search import PaidTime, search, search_and_extract
from batchsweep.cli.main import main
from batchsweep.config import load
from batchsweep.errors import IndexFailed, StoreCorrupt, StoreFull, TryAgain, UsageError
from batchsweep.extract.extract import extract
from batchsweep.plan.frozen import frozen_plan
from batchsweep.plan.pairs import Pairs
from batchsweep.plan.timings import timings
from batchsweep.signals import StopRequest
from batchsweep.store import GroupWriter, open_store
from batchsweep.store.pairs import ready_tasks

REVISIONS = ("step0", "step1", "step10", "step100", "step1000", "main")


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return make_suite(tmp_path_factory.mktemp("suite") / "tiny", REVISIONS)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[dict[str, str]]:
    """Of the kind that is scored fastest."""
    folder = tmp_path_factory.mktemp("tasks")
    sizes = {"First": 60, "Second": 50, "Other": 40, "Third": 30}
    return [
        {**make_tasks(folder / name, n=n, seed=seed)[0], "name": name}
        for seed, (name, n) in enumerate(sizes.items())
    ]


def written(folder: Path, name: str, suite: Path, tasks, *, prepared: bool = True, **sections):
    """A config, whose store is prepared; keyword arguments replace whole sections."""
    bandit = {"budget": {"pulls": 40}}
    defaults = {"revisions": list(REVISIONS), "tasks": tasks, "bandit": bandit}
    path = str(write_sweep(folder, name, suite, **{**defaults, **sections}))
    if prepared:
        assert main(["prepare", "--config", path]) == 0
    return path


@pytest.fixture
def sweep(tmp_path, suite, tasks):
    """Writes a config into ``tmp_path`` and prepares its store."""

    def write(name: str = "sweep", **more) -> str:
        return written(tmp_path, name, suite, tasks, **more)

    return write


@pytest.fixture(scope="module")
def finished(tmp_path_factory, suite, tasks):
    """A search that nothing disturbed: what ran it, its name and its outcome. To be read only."""
    run = Extractor(written(tmp_path_factory.mktemp("finished"), "whole", suite, tasks))
    return run, *run.search()


@pytest.fixture
def searched(sweep, finished) -> str:
    """A config with a copy of that search's store."""
    path = sweep(prepared=False)
    shutil.copytree(finished[0].config.store_url, load(path).store_url)
    return path


def no_space(*given: object) -> None:
    raise StoreFull("no space left for a block")


class Extractor:
    """Extracts a wave's pairs in this process, as ``extract --tasks`` does, unless it dies."""

    def __init__(self, path: str, *, dies_at: int = 0) -> None:
        self.config, self.dies_at, self.calls = load(path), dies_at, 0
        self.store = open_store(self.config.store_url)
        self.plan = frozen_plan(self.store, self.config)
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def __call__(self, wave, left) -> None:
        for index, tasks in left.items():
            self.calls += 1
            if self.calls == self.dies_at:
                raise KeyboardInterrupt
            entry = self.plan.entry(index)
            self.asked.append((entry.key, tasks))
            try:
                extract(self.store, self.config, entry, tasks=tasks, stop=StopRequest(1))
            except (IndexFailed, StoreFull):
                continue

    def search(self, *, hours: float | None = None):
        """With ``hours``, so many may be paid: each visit takes one, and nothing else is billed."""

        def pricing(problem):
            costs = planned_costs(Pairs(self.store, self.plan, self.config), problem, device="cpu")
            if hours is None:
                return costs
            free, hour = np.zeros_like(costs.seconds), np.full_like(costs.start, 3600.0)
            return replace(costs, seconds=free, start=hour, download=0 * hour)

        before = sum(len(wave["visits"]) for wave in self.waves().values())

        def paid():
            return PaidTime(3600.0 * hours, 3600.0 * (before + self.calls))

        return search_and_extract(
            self.store, self.config, self, width=2, pricing=pricing,
            paid=None if hours is None else paid,
        )  # fmt: skip

    def waves(self) -> dict[str, dict]:
        return {p: self.store.read_json(p) for p in sorted(self.store.list_json("waves"))}


def test_waves_are_documents_that_say_what_was_asked_and_why(finished) -> None:
    run, name, outcome = finished
    answer = run.store.read_json(f"bandit/{name}/answer.json")
    assert answer.pop("finished")
    assert answer == json.loads(json.dumps(outcome.to_json()))
    waves = run.waves()
    assert list(waves) == [f"waves/{n:04d}.json" for n in range(1, len(waves) + 1)]
    before: dict[str, set[str]] = {}
    for number, wave in enumerate(waves.values(), 1):
        assert (wave["version"], wave["search"], wave["number"]) == (1, name, number)
        assert number > 1 or wave["expected_regret"] is None
        there = {key: set(tasks) for key, tasks in wave["there"].items()}
        assert all(before.get(key, set()) <= tasks for key, tasks in there.items())
        for visit in wave["visits"]:
            assert run.plan.entry(visit["index"]).key == visit["key"]
            assert visit["reason"]
            assert not set(visit["tasks"]) & there.get(visit["key"], set())
        before = there
    # Nothing was extracted that was not asked for, but for what shares its blocks.
    asked = {(v["key"], t) for w in waves.values() for v in w["visits"] for t in v["tasks"]}
    ready = {(key, t) for key, tasks in ready_tasks(run.store).items() for t in tasks}
    assert asked <= ready
    assert {key for key, _ in ready} == {key for key, _ in asked}


def test_while_it_scores_rate_and_time_left_are_said(sweep, monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("batchsweep.progress.PLAIN_INTERVAL", 0.0)
    run = Extractor(sweep())
    run.search()
    said = [r.message for r in caplog.records if r.message.startswith(("search: ", "final check"))]
    each = [
        re.fullmatch(r".*: (\d+)/(\d+) pulls \(.* %\), [\d.]+ pulls/s, .* left", m) for m in said
    ]
    assert all(each) and {m.split(":")[0] for m in said} == {"search", "final check"}
    # What each wave brought is a piece of work of its own, and ends as large as was said.
    closing = [match for match in each if match and match[1] == match[2]]
    assert len(run.waves()) <= len(closing) < len(said)


def test_on_a_terminal_one_thing_is_shown_at_a_time(sweep, tmp_path, commands) -> None:
    """Two live displays at once would be an error."""
    path = sweep(prepared=False, revisions=["step0", "main"])
    main_end, other_end = pty.openpty()
    process = commands.start(
        ["run", "--config", path, "--parallel", "2"],
        tmp_path / "said",
        errors=other_end,
        environment={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    process.pid.result()
    os.close(other_end)
    shown = b""
    with contextlib.suppress(OSError):  # The end of a terminal.
        while more := os.read(main_end, 65536):
            shown += more
    code, out = process.end()
    assert code == 0, shown.decode()
    assert "best arm:" in out and "wave 1:" in shown.decode()


def test_a_job_of_a_wave_extracts_what_its_index_asks_for(sweep, monkeypatch, capsys) -> None:
    path = sweep()
    with pytest.raises(KeyboardInterrupt):
        Extractor(path, dies_at=1).search()
    run = Extractor(path)
    visits = run.waves()["waves/0001.json"]["visits"]
    for position, visit in enumerate(visits):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(position))
        assert main(["extract", "--config", path, "--wave", "1"]) == 0
        assert set(visit["tasks"]) <= set(ready_tasks(run.store)[visit["key"]])
    assert set(ready_tasks(run.store)) == {visit["key"] for visit in visits}
    monkeypatch.setenv("JOB_COMPLETION_INDEX", str(len(visits)))
    assert main(["extract", "--config", path, "--wave", "1"]) == 2
    assert main(["extract", "--config", path, "--wave", "9"]) == 2
    assert main(["extract", "--config", path, "--wave", "1", "--tasks", "Other"]) == 2
    said = capsys.readouterr().err
    assert f"wave 1 has {len(visits)} checkpoints, no entry {len(visits)}" in said
    assert "no wave 9 (waves/0009.json) is there" in said
    run.search()
    assert not {(v["key"], tuple(v["tasks"])) for v in visits} & set(run.asked)


def test_no_workers_at_all_are_refused(sweep, capsys) -> None:
    path = sweep()
    assert main(["run", "--config", path, "--parallel", "0"]) == 2
    assert "--parallel must be at least 1, not 0" in capsys.readouterr().err
    for seconds in ("-1", "nan", "inf", "1e9"):
        assert main(["run", "--config", path, "--grace", seconds]) == 2
        assert "Invalid value for '--grace'" in capsys.readouterr().err


def test_a_search_that_has_everything_asks_for_nothing(sweep) -> None:
    run = Extractor(sweep())
    for entry in run.plan.entries:
        extract(run.store, run.config, entry, stop=StopRequest(1))
    _, outcome = run.search()
    assert run.waves() == {}
    assert run.asked == []
    assert "search" in {o.kind for o in outcome.observations}


@pytest.mark.parametrize("dies_at", [1, 4])
def test_killed_in_a_wave_it_goes_on_and_ends_the_same(sweep, finished, dies_at: int) -> None:
    whole, _, expected = finished
    path = sweep("killed")
    with pytest.raises(KeyboardInterrupt):
        Extractor(path, dies_at=dies_at).search()
    again = Extractor(path)
    _, outcome = again.search()
    assert outcome.answer.arm == expected.answer.arm
    assert [(o.arm, o.task, o.score) for o in outcome.observations] == [
        (o.arm, o.task, o.score) for o in expected.observations
    ]
    first, second = whole.waves(), again.waves()
    for wave in (*first.values(), *second.values()):
        # What a killed wave had brought is there when it is asked for again.
        wave.pop("there")
    assert second == first


def test_completed_after_a_search_the_store_has_the_bytes_of_one_extracted_at_once(
    sweep, searched
) -> None:
    run, whole = Extractor(searched), Extractor(sweep("whole"))
    for one in (run, whole):
        for entry in one.plan.entries:
            extract(one.store, one.config, entry, stop=StopRequest(1))
    assert stored(Path(run.config.store_url)) == stored(Path(whole.config.store_url))


def test_a_checkpoint_that_is_gone_in_mid_search_is_searched_without(
    tmp_path, sweep, tasks, caplog
) -> None:
    suite = make_suite(tmp_path / "own", REVISIONS)
    path = sweep(models=[str(suite)])
    run = Extractor(path)
    gone = f"{run.plan.entry(0).key.split('/')[0]}/main"
    (suite / "main" / "model.safetensors").unlink()
    _, outcome = run.search()
    assert gone in [key for key, _ in run.asked]
    assert not any(arm.startswith(f"{gone}#") for arm in outcome.problem.arms)
    assert len(outcome.problem.arms) == 2 * (len(REVISIONS) - 1)
    assert f"the search goes on without {gone}" in caplog.text
    # Again: it follows the waves that it wrote, asks for nothing more, and says who takes no part.
    caplog.clear()
    later = Extractor(path)
    assert later.search()[1].answer.arm == outcome.answer.arm
    assert later.asked == []
    said = f"1 of {len(REVISIONS)} checkpoints take no part: extraction gave them up ({gone}: "
    index = run.plan.entry_of(gone).index
    assert said in caplog.text and f"'batchsweep extract --index {index}' tries" in caplog.text


def test_a_full_disk_costs_a_search_no_checkpoint(sweep, finished, monkeypatch) -> None:
    """It ends the search; no checkpoint is given up for it."""
    path = sweep()
    run = Extractor(path)
    with monkeypatch.context() as patch:
        patch.setattr(GroupWriter, "write_block", no_space)
        with pytest.raises(StoreFull, match="no space left for a block"):
            run.search()
    notes = [run.store.read_json(p) for p in run.store.list_json("outcomes")]
    assert {(note["state"], note["exit_code"]) for note in notes} == {("refused", 4)}
    again = Extractor(path)
    _, outcome = again.search()
    assert outcome.answer.arm == finished[2].answer.arm
    assert len(outcome.problem.arms) == 2 * len(REVISIONS)
    assert run.store.list_json("outcomes") == []


def test_a_wave_that_brings_nothing_is_for_another_time(sweep) -> None:
    path = sweep()
    run = Extractor(path)
    run.__class__ = type("Idle", (Extractor,), {"__call__": lambda self, wave, left: None})
    with pytest.raises(TryAgain, match="wave 1 brought nothing"):
        run.search()
    assert Extractor(path).search()[1].budget.spent_pulls > 0


def test_searches_of_one_store_follow_their_own_waves(sweep, searched) -> None:
    first = Extractor(searched)
    count = len(first.waves())
    other = Extractor(sweep(prepared=False, bandit={"budget": {"pulls": 40}, "seed": 1}))
    name, _ = other.search()
    mine = [w for w in other.waves().values() if w["search"] == name]
    assert [w["number"] for w in mine] == list(range(1, len(mine) + 1))
    assert len(other.waves()) == count + len(mine)


def test_a_wave_that_is_not_as_specified_is_refused(searched) -> None:
    path = searched
    run = Extractor(path)
    first = "waves/0001.json"
    good = run.waves()[first]
    for change, says in (
        ({"version": 2}, "version 2, and only 1 is known"),
        ({"visits": []}, "without visits"),
        ({"number": "x"}, "not a wave's document"),
        ({"number": 1.5}, "not a wave's document .number"),
        ({"there": {"x/y": "ab"}}, "not a wave's document .there"),
        ({"visits": [{**good["visits"][0], "tasks": ["--debug"]}]}, "'--debug', which is no task"),
        ({"number": 7}, "numbered .*7, 2.* which no search does"),
        ({"number": -1}, "numbered .*-1, 2.* which no search does"),
    ):
        run.store.write_json(first, good | change)
        with pytest.raises(StoreCorrupt, match=says):
            Extractor(path).search()
    run.store.write_json(first, good)
    run.store.write_json("waves/mine.json", good)
    with pytest.raises(StoreCorrupt, match=r"waves/mine\.json has no wave's name"):
        Extractor(path).search()


def test_a_search_goes_on_without_a_wave_that_was_lost(searched, finished, caplog) -> None:
    whole, _, expected = finished
    run = Extractor(searched)
    count = len(run.waves())
    torn = Path(run.config.store_url) / "documents" / "waves" / "0002.json"
    torn.write_bytes(torn.read_bytes()[:40])
    assert main(["run", "--config", searched]) == 4
    assert main(["verify", "--config", searched, "--repair"]) == 0
    _, outcome = run.search()
    assert outcome.answer.arm == expected.answer.arm
    assert caplog.text.count("wave 2 of ") == 1 and "goes on without it" in caplog.text
    # Nothing is extracted twice; a wave more has the next number, and the search is followed again.
    before = {
        (v["key"], t) for w in whole.waves().values() for v in w["visits"] for t in v["tasks"]
    }
    assert not before & {(key, task) for key, tasks in run.asked for task in tasks}
    numbers = [wave["number"] for wave in run.waves().values()]
    assert numbers == [1, *range(3, len(numbers) + 2)] and len(numbers) >= count - 1
    assert Extractor(searched).search()[1].answer.arm == outcome.answer.arm


def test_a_budget_of_bytes_is_a_hard_limit(sweep) -> None:
    path = sweep()
    whole = Extractor(path)
    pairs = Pairs(whole.store, whole.plan, whole.config)
    limit = sum(pairs.whole(entry).store_bytes for entry in whole.plan.entries) // 3
    run = Extractor(sweep(prepared=False, bandit={"budget": {"bytes": limit}}))
    _, outcome = run.search()
    taken = sum(
        pairs.whole(entry, ready_tasks(run.store).get(entry.key, ())).store_bytes
        for entry in run.plan.entries
    )
    assert 0 < taken <= limit
    assert outcome.stopped == "budget"


def test_what_may_be_paid_bounds_the_whole_search_and_counts_what_was_spent(sweep) -> None:
    path = sweep()

    def paid_for(hours: int) -> Extractor:
        run = Extractor(path)
        run.search(hours=hours)
        return run

    def visits(run: Extractor) -> int:
        return sum(len(wave["visits"]) for wave in run.waves().values())

    few = visits(paid_for(4))
    assert 3 <= few <= 4
    # More may be paid: the same search goes on, and what it had spent counts.
    run = paid_for(8)
    assert few < visits(run) <= 8 and len(run.asked) == visits(run) - few
    # Nothing is left to be spent: nothing is extracted, and there is an answer.
    assert paid_for(visits(run)).asked == []


def test_a_limit_that_takes_no_wave_or_has_no_price_is_refused(sweep, capsys) -> None:
    path = sweep()
    command = ["run", "--config", path, "--max-cost", "0"]
    assert main(command) == 2
    assert "--max-cost needs --gpu-price" in capsys.readouterr().err
    assert main([*command, "--gpu-price", "2"]) == 2
    said = capsys.readouterr().err
    assert "allow not even the first wave of the search: its smallest pair takes about" in said
    assert main([*command, "--gpu-price", "2", "--exhaustive"]) == 2
    assert "--max-cost is for a search" in capsys.readouterr().err
    assert open_store(load(path).store_url).list_json("waves") == []


def test_rewards_that_the_budget_cannot_pay_are_refused_before_they_are_extracted(sweep) -> None:
    rewards = {"scale": "z", "baseline": "main"}
    run = Extractor(sweep(rewards=rewards, bandit={"budget": {"pulls": 7}}))
    with pytest.raises(UsageError, match="8 pulls, and the budget is 7 pulls"):
        run.search()
    assert run.asked == []


def test_a_policy_that_cannot_ask_is_refused_before_anything_is_submitted(sweep, capsys) -> None:
    path = sweep(prepared=False, bandit={"policy": "random"}, store={"path": "s3://b/x.zarr"})
    for command in (["slurm"], ["k8s", "--driver"]):
        assert main(["launch", *command, "--config", path, "--search"]) == 2
        assert "bandit.policy random can't say what should be" in capsys.readouterr().err


def test_a_damaged_timing_stops_a_search_with_a_limit_only(sweep, forked, capsys) -> None:
    path = sweep(revisions=["step0", "main"])
    store = open_store(load(path).store_url)
    store.write_json("timings/tiny/step0.json", {"runs": "many"})
    assert main(["run", "--config", path, "--max-cost", "9", "--gpu-price", "1"]) == 4
    assert "timings/tiny/step0.json says no timing" in capsys.readouterr().err
    assert store.list_json("waves") == []
    assert main(["run", "--config", path, "--parallel", "2"]) == 0
    assert "timings/tiny/step0.json says no timing" in capsys.readouterr().err


def test_run_extracts_in_processes_and_writes_the_report(sweep, forked, tmp_path, capsys) -> None:
    path = sweep(prepared=False, revisions=["step0", "main"])
    command = ["run", "--config", path, "--parallel", "2", "--max-cost", "900"]
    assert main([*command, "--gpu-price", "3600"]) == 0
    printed = capsys.readouterr()
    paid = re.findall(r"([\d.]+) of 900 paid, at 3600 a GPU hour", printed.err)
    took = sum(t.all_seconds for t in timings(open_store(load(path).store_url)).values())
    assert float(paid[-1]) == pytest.approx(took, abs=0.01) and took > 0
    assert "best arm:" in printed.out
    assert "extracted:" in printed.out
    assert "wave 1:" in printed.err
    assert "of extraction are spent" in printed.err
    assert (tmp_path / "sweep" / "report" / "report.html").exists()


def test_run_exhaustive_extracts_everything(sweep, forked, capsys) -> None:
    path = sweep(prepared=False, revisions=["step0", "main"])
    assert main(["run", "--config", path, "--exhaustive", "--parallel", "2"]) == 0
    assert "extracted: 8 of 8 (checkpoint, task) pairs (100 %)" in capsys.readouterr().out
    assert open_store(load(path).store_url).list_json("waves") == []


def killed_at_any_moment(commands, path: str, expected: str, *, kills: int) -> None:
    """``run``, killed so many times at random moments, ends with this arm and a sound store."""
    chance = random.Random(kills)
    statuses = []
    for killed in range(kills):
        # The later the kill, the further it came: to the first waves, at least.
        after = chance.uniform(1, 8 + 4 * killed)
        statuses.append(commands.run(Path(path), "run", kill_after=after))
        assert statuses[-1] in (0, -signal.SIGKILL), commands.output
    assert -signal.SIGKILL in statuses
    commands.succeed(Path(path), "run")
    store = open_store(load(path).store_url)
    (found,) = [p for p in store.list_json("bandit") if p.endswith("answer.json")]
    assert store.read_json(found)["best"]["arm"] == expected
    commands.succeed(Path(path), "extract", "--all")
    commands.succeed(Path(path), "verify")


def test_run_killed_three_times_goes_on(sweep, finished, commands) -> None:
    path, expected = sweep("killed", prepared=False), finished[2].answer.arm
    killed_at_any_moment(commands, path, expected, kills=3)
    whole = Extractor(sweep("whole"))
    for entry in whole.plan.entries:
        extract(whole.store, whole.config, entry, stop=StopRequest(1))
    assert stored(Path(load(path).store_url)) == stored(Path(whole.config.store_url))


@pytest.mark.torture
def test_run_killed_many_times_goes_on(sweep, finished, commands) -> None:
    path, expected = sweep("killed", prepared=False), finished[2].answer.arm
    killed_at_any_moment(commands, path, expected, kills=12)
    search(open_store(load(path).store_url), load(path))
