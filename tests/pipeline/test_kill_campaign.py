"""kill -9 at random moments over the real commands, and damage at random places in between."""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from forks import Commands
from store_data import stored
from tiny import answer_and_pulls, make_suite, make_tasks, write_config

from batchsweep.store.store import open_blobs

#: Of the long campaign, for each format.
KILLS = int(os.environ.get("TORTURE_KILLS", "300"))
REVISIONS = ("step0", "main")
COMMANDS = (("prepare",), ("extract", "--all"), ("bandit",))


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("suite")
    return {
        "models": [str(make_suite(folder / "tiny", REVISIONS))],
        "revisions": list(REVISIONS),
        "tasks": make_tasks(folder / "tasks"),
        "metrics": {"sample": 16},
        "bandit": {"budget": {"pulls": 6}, "policy": "random", "seed": 3},
    }


def made(folder: Path, sections: dict, format: str) -> tuple[Path, Path]:
    """A config and the place of its store."""
    folder.mkdir()
    store = folder / "store"
    section = {"path": str(store), "format": format, "block_texts": 16}
    return write_config(folder / "sweep.yaml", **sections, store=section), store


def damage(store: Path, chance: random.Random) -> str:
    """Harm one file at random; says what was done."""
    left = ("documents/tmp/", "documents/leases/")
    files = [p for p in sorted(store.rglob("*")) if p.is_file() and p.stat().st_size]
    files = [p for p in files if not p.relative_to(store).as_posix().startswith(left)]
    if not files:
        return "nothing there"
    path = chance.choice(files)
    body = bytearray(path.read_bytes())
    place = chance.randrange(len(body))
    how = chance.choice(["flip", "cut", "delete"])
    if how == "flip":
        body[place] ^= 1 << chance.randrange(8)
        path.write_bytes(body)
    elif how == "cut":
        path.write_bytes(body[:place])
    else:
        path.unlink()
    return f"{how} {path.relative_to(store)} at {place} of {len(body)}"


def sound(commands: Commands, config: Path, corpus_dropped: bool) -> bool:
    """Whether verify finds nothing wrong.

    A corpus that a repair dropped may be missing until prepare has ended, where embeddings are of
    its texts.
    """
    if commands.run(config, "verify") == 0:
        return True
    missing = "corpus is missing" in commands.output and ": 1 faults" in commands.output
    return corpus_dropped and missing


def campaign(commands: Commands, folder: Path, sections: dict, format: str, kills: int) -> None:
    """Kill the commands ``kills`` times; then the same commands end as if nothing had been."""
    chance = random.Random(kills)
    config, store = made(folder / "undisturbed", sections, format)
    took = {command: commands.succeed(config, *command) for command in COMMANDS}
    whole, found = stored(store), answer_and_pulls(store)

    config, store = made(folder / "disturbed", sections, format)
    log: list[str] = []
    killed = 0
    corpus_dropped = False
    while killed < kills:
        finished = True
        for command in COMMANDS:
            status = commands.run(
                config, *command, kill_after=chance.uniform(0, 1.1) * took[command]
            )
            log.append(f"{command[0]}: {status}")
            assert status in (0, -signal.SIGKILL), f"{log[-8:]}: {commands.output}"
            if status != 0:
                killed += 1
                finished = False
                break
            corpus_dropped = False
        if finished:
            assert stored(store) == whole and answer_and_pulls(store) == found, log[-8:]
            shutil.rmtree(store)
        elif (store / "documents/plan.json").exists():
            # What was killed has left nothing behind that is wrong.
            assert sound(commands, config, corpus_dropped), f"{log[-8:]}: {commands.output}"
            if chance.random() < 0.3:
                log.append(damage(store, chance))
                # What checks against the plan waits for the plan, where that is what is gone.
                if (store / "documents/plan.json").exists():
                    assert commands.run(config, "verify", "--repair") in (0, 4), commands.output
                corpus_dropped = corpus_dropped or not any((store / "corpus").glob("*"))
                if (store / "documents/plan.json").exists() and any((store / "corpus").glob("*")):
                    assert sound(commands, config, corpus_dropped), f"{log[-8:]}: {commands.output}"
    for command in COMMANDS:
        commands.succeed(config, *command)
    commands.succeed(config, "verify")
    assert stored(store) == whole, log
    assert answer_and_pulls(store) == found, log


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_killed_commands_end_with_the_same_bytes_and_answer(
    format: str, commands: Commands, sections: dict, tmp_path: Path
) -> None:
    campaign(commands, tmp_path, sections, format, kills=6)


@pytest.mark.torture
@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_hundreds_of_kills(format: str, commands: Commands, sections: dict, tmp_path: Path) -> None:
    campaign(commands, tmp_path, sections, format, kills=KILLS)


@pytest.mark.torture
def test_kills_over_s3(commands: Commands, sections: dict, s3_url: str, tmp_path: Path) -> None:
    """No rename, no lock of the kernel's: puts and leases, on a real server that speaks S3."""
    chance = random.Random(KILLS)
    configs, took = {}, {}
    for name in ("undisturbed", "disturbed"):
        store = {"path": s3_url.replace("store.zarr", name), "block_texts": 16}
        configs[name] = write_config(tmp_path / f"{name}.yaml", **sections, store=store)
    for command in COMMANDS:
        took[command] = commands.succeed(configs["undisturbed"], *command)
    killed = 0
    while killed < KILLS // 10:
        for command in COMMANDS:
            after = chance.uniform(0, 1.1) * took[command]
            status = commands.run(configs["disturbed"], *command, kill_after=after)
            assert status in (0, -signal.SIGKILL), commands.output
            killed += status != 0
            if status != 0:
                break
    for command in (*COMMANDS, ("verify",)):
        commands.succeed(configs["disturbed"], *command)
    for name in configs:
        blobs = open_blobs(s3_url.replace("store.zarr", name))
        for path in blobs.walk(""):
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(blobs.read(path) or b"")
    left, right = tmp_path / "disturbed", tmp_path / "undisturbed"
    assert stored(left) == stored(right)
    assert answer_and_pulls(left) == answer_and_pulls(right)
