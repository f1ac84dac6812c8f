"""One checkpoint, from a Hub repo or a directory to a model ready for the forward pass."""

from __future__ import annotations

import errno
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from batchsweep.checkpoints.slow_server import refuse_trickles
from batchsweep.checkpoints.weight_files import _weight_files
from batchsweep.errors import (
    BatchsweepError,
    IndexFailed,
    TryAgain,
    Unavailable,
    UsageError,
    first_line,
)
from batchsweep.forward import gpt_neox
from batchsweep.forward.architecture import LoadedCheckpoint, describe
from batchsweep.forward.products import pack
from batchsweep.forward.tensors import left_out, not_floats

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_checkpoint(
    model: str,
    revision: str = "main",
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    transformers_own: bool = False,
) -> LoadedCheckpoint:
    """Load the weights of one checkpoint, directly in the dtype that it will compute in.

    Args:
        model: Hub repo id, or a directory of revisions or of one model.
        revision: Branch, tag or commit; for a directory the sub-directory of that name.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: as published on a GPU,
            float32 on a CPU.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: the first GPU if there is one.
        trust_remote_code: Run Python code that the repo brings.
        transformers_own: The model is transformers' own class, which can be saved, for every
            architecture.

    Raises:
        TryAgain: the Hub can't be reached, or failed in passing.
        Unavailable: no such checkpoint, or no weights in it.
        IndexFailed: damaged or quantised weights, tensors that the architecture of the config
            has no place for, or one that can't be taken apart into layers.
        UsageError: the device isn't there.
    """
    name = f"{model}@{revision}"
    torch_device = check_device(device)
    folder = fetch(model, revision, trust_remote_code=trust_remote_code)
    weights = _weight_files([p.name for p in folder.iterdir()])
    _name_left_out_modules(name, folder)
    if dtype == "auto" and torch_device.type == "cpu":
        dtype = "float32"
    network: nn.Module | None = None
    if not transformers_own:
        network = gpt_neox.load(folder, weights, dtype)
    if network is None:
        network = _by_transformers(name, folder, weights, dtype, trust_remote_code)
    network = network.to(torch_device).eval().requires_grad_(False)
    if isinstance(network, gpt_neox.GPTNeoX):
        network.fuse()
    elif not transformers_own:
        pack(network)
    try:
        return describe(name, network)
    except (IndexFailed, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise IndexFailed(
            f"{name}: {type(network).__name__} with this config.json can't compute three tokens: "
            f"{first_line(error, typed=True)}; is config.json the one that the weights were saved "
            "with?"
        ) from error


def _name_left_out_modules(name: str, folder: Path) -> None:
    """Sentence-transformers' models have modules behind the transformer, which aren't applied."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError):
        kinds = ["of modules.json, which can't be read"]
    behind = [kind for kind in kinds if kind != "Transformer"]
    if behind:
        logger.warning(
            "%s: its sentence-transformers modules (%s) are not applied: every layer is pooled as "
            "the config's 'embedding' says, and vectors are not normalised",
            name,
            ", ".join(behind),
        )


def _by_transformers(
    name: str, folder: Path, weights: Sequence[str], dtype: str, trust_remote_code: bool
) -> nn.Module:
    """Whatever ``AutoModel`` can load, if all of its tensors are there and are used."""
    from transformers import AutoConfig, AutoModel

    if trust_remote_code and (elsewhere := _code_elsewhere(folder)):
        raise IndexFailed(
            f"{name}: config.json takes its code from {elsewhere}, which the plan doesn't pin; use "
            "a local copy of the checkpoint with that code beside config.json, and without "
            f"'{elsewhere}--' in its auto_map"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        config.use_cache = False
        config.output_hidden_states = False
        if getattr(config, "quantization_config", None) is not None:
            raise IndexFailed(
                f"{name}: config.json has a quantization_config, and quantised weights aren't "
                "supported; use the checkpoint that they were made from"
            )
        if stranger := _named_elsewhere(folder, weights, config):
            raise IndexFailed(
                f"{name}: {stranger} isn't among the weight files of {folder}, which the plan "
                "knows; put the weights beside config.json under their usual names"
            )
        with _quiet_transformers():
            network, report = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=DTYPES.get(dtype, "auto"),
                use_safetensors=weights[0].endswith(".safetensors"),
                weights_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except IndexFailed:
        raise
    except Exception as error:
        # transformers lets every kind of error through, from safetensors' to KeyError.
        if "trust_remote_code" in str(error):
            raise IndexFailed(
                f"{name}: the model needs Python code from its repo; if you trust it, set "
                "trust_remote_code: true for this model"
            ) from None
        raise IndexFailed(
            f"{name}: can't load the model from {folder}: {first_line(error, typed=True)}; if the "
            "files are damaged, delete them and run again"
        ) from error
    # The pooler sits on top of the last layer, and checkpoints of other heads come without it.
    missing = sorted(k for k in report["missing_keys"] if not k.startswith("pooler."))
    if missing:
        raise IndexFailed(
            f"{name}: the weights in {folder} lack {len(missing)} of the model's tensors, "
            f"such as {missing[0]}; the checkpoint is incomplete"
        )
    if unused := left_out(network, report["unexpected_keys"]):
        raise IndexFailed(
            f"{name}: {type(network).__name__} with this config.json leaves {len(unused)} of the "
            f"weights' tensors unused, such as {unused[0]}; is config.json the one that the "
            "weights were saved with?"
        )
    if strange := not_floats(folder, weights):
        raise IndexFailed(
            f"{name}: {len(strange)} of the weights' tensors are no floats, such as "
            f"{strange[0][0]} ({strange[0][1]}), and quantised weights aren't supported; use the "
            "checkpoint that they were made from"
        )
    loaded: nn.Module = network.eval()
    return loaded


def _named_elsewhere(folder: Path, weights: Sequence[str], config: object) -> str | None:
    """A file of weights that transformers would load instead of, or besides, the known ones."""
    named = getattr(config, "transformers_weights", None)
    if named is not None:
        return f"{named!r} in config.json"
    index = folder / _index_name(weights)
    if weights[0] in ("model.safetensors", "pytorch_model.bin") or not index.is_file():
        return None
    strangers = sorted(_shards_in(index) - set(weights))
    return f"{strangers[0]!r} in {index.name}" if strangers else None


def _code_elsewhere(folder: Path) -> str | None:
    """The repo that a config's ``auto_map`` takes code from, if it isn't the checkpoint's own."""
    try:
        auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8"))["auto_map"]
        classes = [str(value) for value in auto_map.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # No such thing; what else is wrong, loading says.
    return next((c.partition("--")[0].strip("['\"") for c in classes if "--" in c), None)


def _index_name(weights: Sequence[str]) -> str:
    """The file that says which shard has which tensor."""
    stem = "model.safetensors" if weights[0].endswith(".safetensors") else "pytorch_model.bin"
    return f"{stem}.index.json"


def _shards_in(index: Path) -> set[str]:
    """The names of the shards.

    Raises:
        ValueError: it isn't such an index.
    """
    value = json.loads(index.read_text())
    if not isinstance(value, dict) or not isinstance(value.get("weight_map"), dict):
        raise ValueError(f"{index.name} has no weight_map")
    return {str(name) for name in value["weight_map"].values()}


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No report of the head's unused weights, no progress bar beside ours."""
    from transformers.utils import logging as verbosity

    before, bar = verbosity.get_verbosity(), verbosity.is_progress_bar_enabled()
    verbosity.set_verbosity_error()
    verbosity.disable_progress_bar()
    try:
        yield
    finally:
        verbosity.set_verbosity(before)
        if bar:
            verbosity.enable_progress_bar()


def fetch(model: str, revision: str, *, trust_remote_code: bool = False) -> Path:
    """The local directory of a checkpoint's config and weights, downloaded if need be.

    Of the weights' formats only the best is downloaded: safetensors if there is one, else
    ``pytorch_model*.bin``. A commit that is complete in the cache costs no request.

    Raises:
        TryAgain: the Hub can't be reached, or failed in passing.
        Unavailable: no such repo or revision, no weights in it, or no right to read it.
        UsageError: HF_HUB_OFFLINE is set and the weights are not cached; the token is wrong.
    """
    name = f"{model}@{revision}"
    root = Path(model)
    if root.is_dir():
        folder = next((d for d in (root / revision, root) if (d / "config.json").is_file()), None)
        if folder is None:
            raise Unavailable(f"{name}: neither {root / revision} nor {root} has a config.json")
        if not _weight_files([p.name for p in folder.iterdir()]):
            raise Unavailable(f"{name}: no model*.safetensors or pytorch_model*.bin in {folder}")
        return folder
    cached = None if trust_remote_code else _cached(model, revision)
    return cached or _download(model, revision, trust_remote_code=trust_remote_code)


def _cached(model: str, commit: str) -> Path | None:
    """The cached snapshot of a commit, if config and all weights are in it."""
    from huggingface_hub import try_to_load_from_cache

    if re.fullmatch("[0-9a-f]{40}", commit) is None:
        return None  # a branch or tag may have moved since
    config = try_to_load_from_cache(model, "config.json", revision=commit)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    weights = _weight_files([p.name for p in folder.iterdir()])
    if weights in (["model.safetensors"], ["pytorch_model.bin"]):
        return folder
    # Shards: the index names them all.
    index = folder / _index_name(weights or [""])
    try:
        shards = _shards_in(index)
    except (OSError, ValueError):
        return None
    return folder if shards <= set(weights) else None


def _download(model: str, revision: str, *, trust_remote_code: bool) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # of whichever HTTP client huggingface_hub is built on
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"{model}@{revision}"
    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"{name}: HF_HUB_OFFLINE is set and the weights are not in the cache "
            f"{constants.HF_HUB_CACHE}; unset it, or mount a cache that has them (HF_HOME)"
        )
    refuse_trickles()
    try:
        files = HfApi().list_repo_files(model, revision=revision)
        wanted = _weight_files(files)
        if not wanted:
            raise Unavailable(f"{name}: no model*.safetensors or pytorch_model*.bin in the repo")
        wanted += [f for f in files if f.endswith(".json") and "/" not in f]
        if trust_remote_code:
            wanted += [f for f in files if f.endswith(".py")]
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except HFValidationError:
        raise Unavailable(f"{name}: neither a directory nor a Hub repo id (owner/name)") from None
    except GatedRepoError:
        raise Unavailable(
            f"{name}: the repo is gated: accept its terms on the Hub and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise Unavailable(f"{name}: no such repo on the Hub (or private: set HF_TOKEN)") from None
    except RevisionNotFoundError:
        raise Unavailable(f"{name}: the repo has no such revision") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, HTTPError, OSError) as error:
        lasting = _lasting(error, name)
        if lasting is not None:
            raise lasting from None
        raise TryAgain(
            f"{name}: the Hub failed: {first_line(error, typed=True)}; try again"
        ) from error


def _lasting(error: Exception, name: str) -> BatchsweepError | None:
    """What is wrong, where asking again at once can't mend it; None for a passing fault."""
    from huggingface_hub import constants

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:  # No other revision, and no other index, will fare better.
        return UsageError(f"{name}: the Hub doesn't know the token: set HF_TOKEN to a valid one")
    if status == 403:
        return Unavailable(
            f"{name}: the Hub refuses access: set HF_TOKEN to a token that may read it"
        )
    if getattr(error, "errno", None) == errno.ENOSPC:
        return TryAgain(
            f"{name}: no space left for the weights in {constants.HF_HUB_CACHE}; free some, "
            "set HF_HOME elsewhere, or use 'extract --delete-weights'"
        )
    return None


def check_device(device: str) -> torch.device:
    """The device of that name.

    Raises:
        UsageError: PyTorch has none of that name here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device '{device}': PyTorch sees no GPU here; use 'cpu' or 'auto'")
    try:
        return torch.device(device)
    except RuntimeError:
        raise UsageError(f"no device '{device}'; use 'auto', 'cpu', 'cuda' or 'cuda:N'") from None
