"""The command line: parse, dispatch, turn an exception into an exit code.

What each command does is in :mod:`batchsweep.cli.commands`; nothing heavy is imported to print
help.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from batchsweep import __version__
from batchsweep.bandit.policy_names import POLICY_NAMES
from batchsweep.cli.launch_arguments import add_launch
from batchsweep.errors import BatchsweepError, Terminated
from batchsweep.log import set_up_logging

logger = logging.getLogger(__name__)

EXIT_CODES = """\
exit codes:
  0    done (a checkpoint that is unavailable is skipped with a warning: also 0)
  2    wrong usage or config            3    this index can never succeed
  4    store mismatch or corruption     75   try again (network, busy index)
  143  stopped by SIGTERM, open block sealed; the same command resumes
"""

DESCRIPTION = """\
Which (model, training checkpoint, layer) gives the best text embeddings?

One forward pass per text and checkpoint writes the pooled states of all layers to a store
(extract: GPU, an indexed job); a bandit then searches the store under a budget (bandit: CPU).

  batchsweep demo                                    all of it in four minutes, offline
  batchsweep plan    --config configs/quick.yaml     what a sweep costs, before anything runs
  batchsweep prepare --config configs/quick.yaml     corpus and frozen plan into the store
  batchsweep extract --config configs/quick.yaml --all
  batchsweep bandit  --config configs/quick.yaml     the best arm
  batchsweep report  --config configs/quick.yaml     pictures and tables of it
"""


#: What says that a folder of the user's (``--out``, a cache) can't be used; the store has its own
#: errors.
UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EEXIST, errno.ENOTDIR}


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    *,
    details: str = "",
    example: str,
    config: bool = True,
) -> argparse.ArgumentParser:
    """Add a subcommand with the options that all have, and an example below its help."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.{chr(10) * 2 if details else ''}{details}",
        epilog=f"example:\n{example}",
        formatter_class=_Help,
    )
    if config:
        parser.add_argument("--config", required=True, metavar="FILE", help="the sweep's YAML file")
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="log as text or JSON lines"
    )
    parser.add_argument("--debug", action="store_true", help="debug messages, full tracebacks")
    parser.set_defaults(command=name)
    return parser


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, not {text!r}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="batchsweep", description=DESCRIPTION, epilog=EXIT_CODES, formatter_class=_Help
    )
    parser.add_argument("--version", action="version", version=f"batchsweep {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    sub = _command(
        commands,
        "checkpoints",
        "list revisions by a schedule, or audit what the Hub serves under their names",
        details="Schedules of Pythia's revisions, or among --model's own: sparse (8), uniform\n"
        "(29, every --interval), log (20), dense (143), all (154). The audit reads metadata\n"
        "only: missing revisions, those without weights, and names that serve the same weights.",
        example="  batchsweep checkpoints --strategy uniform --interval 5000 >> configs/mine.yaml\n"
        "  batchsweep checkpoints --strategy log --write configs/mine.yaml\n"
        "  batchsweep checkpoints --audit --config configs/mteb_layersweep.yaml\n"
        "  batchsweep checkpoints --audit --model EleutherAI/pythia-2.8b --strategy all",
        config=False,
    )
    sub.add_argument("--config", metavar="FILE", help="audit this sweep's checkpoints")
    sub.add_argument("--model", metavar="NAME", help="a Hub id or directory (default: any Pythia)")
    sub.add_argument(
        "--strategy",
        choices=("sparse", "uniform", "log", "dense", "all"),
        help="default: sparse; for an audit of --model: all",
    )
    sub.add_argument("--interval", type=int, metavar="N", help="steps, for uniform and dense")
    sub.add_argument(
        "--format",
        choices=("yaml", "json", "lines", "k8s"),
        default="yaml",
        help="yaml: a 'revisions:' block (default); k8s: the Job's completions",
    )
    sub.add_argument(
        "--write", metavar="FILE", help="put the list into this config, in place; comments stay"
    )
    sub.add_argument(
        "--step-pattern", metavar="REGEX", help="finds the step in --model's revision names"
    )
    sub.add_argument("--audit", action="store_true", help="ask the Hub instead of listing")
    sub.add_argument(
        "--strict", action="store_true", help="an unavailable checkpoint is an error (exit 3)"
    )

    sub = _command(
        commands,
        "plan",
        "show arms, indexes, sizes and times of a sweep; changes nothing",
        example="  batchsweep plan --config configs/mteb_layersweep.yaml --gpu h100",
    )
    sub.add_argument("--gpu", metavar="NAME", help="estimate the time on this GPU (default: h100)")
    sub.add_argument("--calibrate", action="store_true", help="measure this machine's speed first")
    sub.add_argument("--json", action="store_true", help="print JSON instead of tables")

    sub = _command(
        commands,
        "prepare",
        "write the corpus and the frozen plan into the store (CPU, once)",
        details="Run it again after adding models or revisions: new indexes are appended and old\n"
        "ones stay where they are.",
        example="  batchsweep prepare --config configs/quick.yaml",
    )
    sub.add_argument(
        "--strict", action="store_true", help="an unavailable checkpoint is an error (exit 3)"
    )

    sub = _command(
        commands,
        "extract",
        "write the pooled states of all layers of one checkpoint",
        details="Without --index or --all, the index is what Kubernetes (JOB_COMPLETION_INDEX) or\n"
        "Slurm (SLURM_ARRAY_TASK_ID) put into the environment. Run again, it goes on where it\n"
        "was; what is sealed is left alone.",
        example="  batchsweep extract --config configs/quick.yaml --index 3\n"
        "  batchsweep extract --config configs/quick.yaml --index 3 --tasks STS12,SciFact\n"
        "  JOB_COMPLETION_INDEX=3 batchsweep extract --config configs/quick.yaml\n"
        "  batchsweep extract --config configs/quick.yaml --all",
    )
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--index", type=_index, metavar="N", help="the checkpoint's index (plan)")
    which.add_argument("--all", action="store_true", help="all indexes, one after the other")
    which.add_argument(
        "--indexes",
        metavar="LIST",
        help="the job's own list, such as 0,4-6: the environment counts in it",
    )
    sub.add_argument(
        "--tasks", metavar="A,B", help="only the blocks that hold these tasks' rows (default: all)"
    )
    sub.add_argument(
        "--strict", action="store_true", help="an unavailable checkpoint is an error (exit 3)"
    )
    sub.add_argument(
        "--delete-weights",
        action="store_true",
        help="delete a checkpoint's downloaded weights once its last block is sealed",
    )
    sub.add_argument(
        "--grace",
        type=float,
        default=25.0,
        metavar="SECONDS",
        help="time between SIGTERM and kill -9 (default: 25)",
    )

    sub = _command(
        commands,
        "status",
        "show, per checkpoint, which blocks are sealed, skipped or failed",
        example="  batchsweep status --config configs/quick.yaml",
    )
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
    sub.add_argument(
        "--wait",
        metavar="N|all",
        help="first wait until N indexes are sealed, or none is left to wait for",
    )

    sub = _command(
        commands,
        "bandit",
        "search the store for the best arm under the config's budget",
        details="Each pull is in the store before it counts: killed and run again, the search\n"
        "goes on where it was and ends with the same answer.\n\n"
        f"policies: {', '.join(POLICY_NAMES[:6])},\n{', '.join(POLICY_NAMES[6:])}",
        example="  batchsweep bandit --config configs/quick.yaml\n"
        "  batchsweep bandit --config configs/quick.yaml --policy exhaustive",
    )
    sub.add_argument("--policy", metavar="NAME", help="instead of the config's bandit.policy")
    sub.add_argument("--budget", type=float, metavar="N", help="whole-arm evaluations, likewise")
    sub.add_argument("--seed", type=int, metavar="N", help="instead of the config's bandit.seed")
    sub.add_argument("--workers", type=int, metavar="N", help="pulls in parallel, likewise")

    sub = _command(
        commands,
        "report",
        "write an HTML page, CSV and Parquet of what the store knows",
        example="  batchsweep report --config configs/quick.yaml",
    )
    sub.add_argument(
        "--out", type=Path, metavar="DIR", help="where to (default: report/ beside the store)"
    )

    sub = _command(
        commands,
        "export",
        "write all scores as MTEB result folders and as one table (CSV and Parquet)",
        details="mteb reads the folders: mteb.ResultCache('DIR/mteb').load_results(). Each arm is\n"
        "a model of its own there, such as EleutherAI/pythia-14m-step1000-layer3-mean.",
        example="  batchsweep export --config configs/quick.yaml --out exported",
    )
    sub.add_argument(
        "--out", type=Path, metavar="DIR", help="where to (default: export/ beside the store)"
    )

    sub = _command(
        commands,
        "verify",
        "check the whole store: checksums, seals, digests, NaN; exit 4 names each fault",
        example="  batchsweep verify --config configs/quick.yaml\n"
        "  batchsweep verify --config configs/quick.yaml --repair",
    )
    sub.add_argument(
        "--repair", action="store_true", help="drop what is damaged, so that extract makes it anew"
    )

    sub = _command(
        commands,
        "convert",
        "copy a store into the other format, value for value",
        example="  batchsweep convert runs/quick/store.zarr runs/quick/store.h5",
        config=False,
    )
    sub.add_argument("source", metavar="SOURCE", help="directory or URL of a store")
    sub.add_argument("target", metavar="TARGET", help="where the copy goes")
    sub.add_argument("--format", choices=("zarr", "hdf5"), help="default: the other one")

    sub = _command(
        commands,
        "replay",
        "run policies against a complete table of scores and draw their regret",
        details="SCORES is a CSV or Parquet file (revision, layer, task, score; optional model,\n"
        "step, seconds), a folder of MTEB results, or an exhaustively scored store.",
        example="  batchsweep replay --scores scores.csv --policy toptwo_gp,random --seeds 0:40",
        config=False,
    )
    sub.add_argument("--scores", required=True, metavar="SCORES", help="the table of all cells")
    sub.add_argument("--metrics", metavar="FILE", help="label-free metrics: revision, layer, ...")
    sub.add_argument("--policy", default="toptwo_gp,heuristic,random", metavar="A,B")
    spent = sub.add_mutually_exclusive_group()
    spent.add_argument(
        "--budget", type=float, default=10.0, metavar="N", help="whole-arm evaluations (10)"
    )
    spent.add_argument("--pulls", type=int, metavar="N", help="the budget in pulls instead")
    sub.add_argument("--seeds", default="0:10", metavar="A:B", help="default: 0:10 (0 to 9)")
    sub.add_argument("--arms", type=float, default=1.0, metavar="PART", help="part drawn per seed")
    sub.add_argument("--tasks", type=float, default=1.0, metavar="PART", help="likewise of tasks")
    sub.add_argument("--out", type=Path, default=Path("replay"), metavar="DIR")

    add_launch(commands, _command, _Help)

    sub = _command(
        commands,
        "demo",
        "run the whole job offline on a miniature suite that is trained on the spot",
        example="  batchsweep demo --out runs/demo",
        config=False,
    )
    sub.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo"
    )
    sub.add_argument(
        "--make-only", action="store_true", help="make suite, tasks and config; run nothing"
    )
    return parser


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(Terminated.exit_code)


def _say(args: argparse.Namespace, message: str) -> None:
    """The one line that a failed command ends with, in the form that its log has."""
    if args.log_format == "json":
        logger.error("batchsweep %s: %s", args.command, message)
    else:
        print(f"batchsweep {args.command}: {message}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the value is the process's exit code (see ``errors``)."""
    args = build_parser().parse_args(argv)
    set_up_logging(log_format=args.log_format, debug=args.debug)
    # Quiet libraries: their bars and advice are not this tool's output.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # As process 1 of a container, SIGTERM is ignored unless someone handles it. What is written is
    # safe at any moment; extract takes the signal itself, to seal its open block.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    from batchsweep.cli import commands

    try:
        commands.COMMANDS[args.command](args)
        # Here and not when Python ends, where a reader that has left would be an error.
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except BatchsweepError as error:
        if args.debug:
            raise
        _say(args, str(error))
        return error.exit_code
    except SystemExit as stop:
        if stop.code == Terminated.exit_code:
            _say(args, "stopped by SIGTERM; the same command goes on from here")
        raise
    except KeyboardInterrupt:
        _say(args, "interrupted; run it again to go on")
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) left: not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            raise
        if isinstance(error, OSError) and error.errno in UNUSABLE:
            place = error.filename or "output"
            _say(args, f"{place}: {error.strerror}; name a place that can be written")
            return 2
        _say(
            args,
            f"a bug: {type(error).__name__}: {error}; please report it with what --debug prints",
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
