"""A file system that has no locks: nothing is written unguarded, and the user hears what to do."""

import errno
import os

import pytest
from store_data import KEY, spec, write_group

from batchsweep.cli.main import main
from batchsweep.errors import StoreError
from batchsweep.store import create_store, open_store

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@pytest.fixture
def flock_says(monkeypatch):
    def says(number):
        def flock(file, operation):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", flock)

    return says


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_a_store_there_is_read_and_not_written(format, flock_says, tmp_path):
    store = create_store(tmp_path / "store", format=format)
    write_group(store, KEY, spec())
    for number in NO_LOCKS:
        flock_says(number)
        assert open_store(tmp_path / "store").reader(KEY).complete
        with pytest.raises(StoreError, match=r"no locks \(flock: .*mount it with them.*s3://"):
            store.writer("EleutherAI--pythia-14m/main", spec()).__enter__()
        with pytest.raises(StoreError, match="no locks"), store.corpus_writer():
            pass
    assert store.keys() == [KEY]


def test_the_demo_says_so_before_it_trains(flock_says, tmp_path, capsys):
    flock_says(errno.ENOLCK)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "no locks" in line


def test_another_failure_of_the_lock_is_told_as_it_is(flock_says, tmp_path):
    store = create_store(tmp_path / "store")
    flock_says(errno.EIO)
    with pytest.raises(StoreError, match="can't access a lock: Input/output error"):
        store.writer(KEY, spec()).__enter__()
