"""Which of a checkpoint's tensors may go unused, and which are no plain floats."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from torch import nn

#: Top-level modules on top of the last layer: heads of language models, classifiers, taggers.
_HEADS = frozenset(
    {
        "classifier",
        "cls",
        "decoder",
        "discriminator_predictions",
        "embed_out",
        "generator_predictions",
        "head",
        "lm_head",
        "lm_loss",
        "lm_predictions",
        "mask_predictions",
        "pooler",
        "prediction_head",
        "predictions",
        "qa_outputs",
        "score",
        "vocab_layer_norm",
        "vocab_projector",
        "vocab_transform",
    }
)

#: Tensors that are no weights: older versions of transformers saved them, today's compute them.
_BUFFER = re.compile(
    r"(.*\.)?((attn|\w*attention)\.bias|masked_bias|position_ids|token_type_ids|inv_freq"
    r"|cos_cached|sin_cached)"
)

_FLOATS = frozenset({"BF16", "F16", "F32", "F64", "bfloat16", "float16", "float32", "float64"})


def left_out(network: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Of the tensors that a model did not take, those that are part of what was trained.

    Such as the biases of a model whose config says that it has none, or the layers beyond the
    number that the config gives.

    Args:
        network: the base model.
        unexpected: names of the tensors that it has no place for.
    """
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    own = {name for name, _ in network.named_children()}
    found = []
    for name in sorted(unexpected):
        top = name.removeprefix(prefix).split(".")[0]
        harmless = _BUFFER.fullmatch(name) or (top in _HEADS and top not in own)
        if not harmless:
            found.append(name)
    return found


def not_floats(folder: Path, files: Collection[str]) -> list[tuple[str, str]]:
    """Name and type of each weight that is stored as something else than plain floats.

    Loading turns integers into floats in silence, without the scales that they need.

    Args:
        folder: the checkpoint's directory.
        files: names of the weight files; only their headers are read.
    """
    return [
        (name, dtype)
        for file in files
        for name, dtype in _types(folder / file)
        if dtype not in _FLOATS and not _BUFFER.fullmatch(name)
    ]


def _types(path: Path) -> Iterator[tuple[str, str]]:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_slice(name).get_dtype()
    else:
        import torch

        # Pickles of before PyTorch 1.6 are no zip files, and have to be read whole.
        tensors = torch.load(
            path, map_location="meta", mmap=zipfile.is_zipfile(path), weights_only=True
        )
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                yield name, str(tensor.dtype).removeprefix("torch.")
