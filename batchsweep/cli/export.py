"""``batchsweep export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchsweep.cli.options import ConfigFile, only_one
from batchsweep.errors import UsageError

if TYPE_CHECKING:
    from batchsweep.config import Config
    from batchsweep.store import Store


def command(
    config: ConfigFile,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="where to (default: export/ beside the store)"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="write an arm as a model into this folder instead"),
    ] = None,
    arm: Annotated[
        str | None,
        typer.Option(metavar="ARM", help="with --model: which arm (default: the search's best)"),
    ] = None,
    texts_of: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="with --model: whose texts a transform's mean is of"),
    ] = None,
) -> None:
    """Write all scores for other tools, or one arm as a model.

    Scores: MTEB result folders and one table (CSV and Parquet). mteb reads the
    folders: ResultCache('DIR/mteb').load_results(load_experiments='match_name').
    A checkpoint is a model there, its layers and poolings are experiments.

    --model: the checkpoint cut to the arm's layer, with its tokenizer, pooling
    and prefix, as a folder that SentenceTransformer and AutoModel load. Its
    vectors are held against the store's before the folder is there.

    example:
      batchsweep export --config configs/quick.yaml --out exported
      batchsweep export --config configs/quick.yaml --model best
      batchsweep export --config configs/quick.yaml --model l3 \\
        --arm EleutherAI--pythia-14m/step1000#3
    """
    from batchsweep.config import load
    from batchsweep.store import open_store

    sweep = load(config)
    store = open_store(sweep.store_url)
    if model is not None:
        only_one(out=out, model=model)
        _model(store, sweep, model, arm, texts_of)
        return
    if arm is not None or texts_of is not None:
        raise UsageError("--arm and --texts-of are of --model; give --model DIR too")
    from batchsweep.score.export import export

    done = export(store, out or sweep.run_folder / "export")
    print(f"{done.pulls} pulls\n{done.table}\n{done.table.with_suffix('.parquet')}\n{done.results}")


def _model(
    store: Store, sweep: Config, folder: Path, arm: str | None, texts_of: str | None
) -> None:
    from batchsweep.arm import Arm
    from batchsweep.bandit.searches import answers, search_of
    from batchsweep.export.embedder import export_model

    if arm is None:
        name = search_of(store, sweep)
        if name is None:
            raise UsageError(
                f"{store.url}: no search has an answer yet; run 'batchsweep bandit', or say --arm"
            )
        arm = str(answers(store)[name]["best"]["arm"])
    done = export_model(store, sweep, Arm.parse(arm), folder, texts_of=texts_of)
    print(
        f"{done.folder}: {done.arm}; vectors of {done.texts} texts are the store's to within "
        f"{done.difference:.1e} of their length"
    )
