"""Whatever a checkpoint's files say, it is loaded, or refused in one line with exit code 3."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from architectures import random_model
from hostile import bounded, changed, damaged, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchsweep.forward.loading import load_checkpoint

fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "15")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def folders() -> Iterator[dict[str, Path]]:
    """One model that is loaded by our own code, one by transformers'."""
    with tempfile.TemporaryDirectory() as made:
        folders = {name: Path(made) / name for name in ("gpt_neox", "llama")}
        for name, folder in folders.items():
            random_model(name).save_pretrained(folder)
            load_checkpoint(str(folder), device="cpu")
        yield folders


def put(path: Path, body: bytes) -> None:
    """Load the checkpoint with this file's bytes replaced."""
    whole = path.read_bytes()
    path.write_bytes(body)
    try:
        with bounded():
            error = refused(lambda: load_checkpoint(str(path.parent), device="cpu"))
        assert error is None or error.exit_code == 3, error
    finally:
        path.write_bytes(whole)


@fuzzed
@given(data=st.data())
def test_configs(folders: dict[str, Path], data: st.DataObject) -> None:
    path = folders[data.draw(st.sampled_from(sorted(folders)))] / "config.json"
    if data.draw(st.booleans()):
        put(path, data.draw(damaged(path.read_bytes())))
    else:
        put(path, json.dumps(data.draw(changed(json.loads(path.read_bytes())))).encode())


@fuzzed
@given(data=st.data())
def test_weights(folders: dict[str, Path], data: st.DataObject) -> None:
    path = folders[data.draw(st.sampled_from(sorted(folders)))] / "model.safetensors"
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header, rest = whole[8 : 8 + size], whole[8 + size :]
    how = data.draw(st.sampled_from(["bytes", "header", "size"]))
    if how == "bytes":
        put(path, data.draw(damaged(whole[: 8 + size])) + rest)
    elif how == "header":
        new = json.dumps(data.draw(changed(json.loads(header)))).encode()
        put(path, struct.pack("<Q", len(new)) + new + rest)
    else:
        put(path, struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1))) + header + rest)
