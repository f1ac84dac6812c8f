"""``batchsweep convert``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from batchsweep.errors import UsageError


def command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="directory or URL of a store")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="where the copy goes")],
    format: Annotated[
        Literal["zarr", "hdf5"] | None, typer.Option(help="default: the other one")
    ] = None,
) -> None:
    """Copy a store into the other format, value for value.

    example:
      batchsweep convert runs/quick/store.zarr runs/quick/store-hdf5
    """
    from batchsweep.store import create_store, open_store
    from batchsweep.store.convert import convert

    store = open_store(source)
    wanted = format or ("hdf5" if store.format == "zarr" else "zarr")
    if wanted == "hdf5" and target.endswith((".h5", ".hdf5")):
        folder = target.rpartition(".")[0] + "-hdf5"
        raise UsageError(
            f"{target}: an hdf5 store is a folder, and h5py opens the file sweep.h5 in it; name "
            f"the folder, such as {folder}"
        )
    convert(store, create_store(target, format=wanted))
    print(f"{target}: {wanted}, converted from {store.url}")
    if wanted == "hdf5":
        print(f"open {target.rstrip('/')}/sweep.h5 with h5py: it shows the whole store")
