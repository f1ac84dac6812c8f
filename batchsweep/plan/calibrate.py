"""How fast this machine runs the sweep's models: a few seconds of the real forward pass.

With random weights of the planned widths and few layers, so that nothing is downloaded and a
large model's speed can be measured where the model itself would not fit.
"""

from __future__ import annotations

import logging
import platform
import time

import numpy as np
import torch

from batchsweep.checkpoints.shape import Shape
from batchsweep.config import Config
from batchsweep.corpus.size import CorpusSize
from batchsweep.forward.architecture import describe
from batchsweep.forward.forward import pooled_states
from batchsweep.forward.loading import DTYPES
from batchsweep.plan.plan import Plan

logger = logging.getLogger(__name__)

#: Seconds of measurement for each width.
SECONDS = 2.0
_BLOCKS = 2
_VOCABULARY = 1000


def calibrate(plan: Plan, config: Config, size: CorpusSize) -> tuple[dict[int, float], str]:
    """Measured FLOP/s of this machine for each hidden size of the plan, and the machine's name.

    GPT-NeoX blocks stand in for every architecture; texts have the corpus's mean length.
    """
    device = config.embedding.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = DTYPES.get(config.embedding.dtype)
    if dtype is None:
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
    shapes = {entry.hidden: entry.shape for entry in plan.entries}
    speeds = {
        hidden: _speed(shape, device, dtype, config, size) for hidden, shape in shapes.items()
    }
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name()
    return speeds, f"{name}, {str(dtype).removeprefix('torch.')}"


def _speed(
    shape: Shape, device: str, dtype: torch.dtype, config: Config, size: CorpusSize
) -> float:
    from transformers import GPTNeoXConfig, GPTNeoXModel

    heads = max(shape.hidden // 64, 1)
    while shape.hidden % heads:
        heads -= 1
    small = Shape(_BLOCKS, shape.hidden, shape.ffn, _VOCABULARY)
    with torch.device(device):
        model = GPTNeoXModel(
            GPTNeoXConfig(
                vocab_size=_VOCABULARY,
                hidden_size=shape.hidden,
                intermediate_size=shape.ffn,
                num_hidden_layers=_BLOCKS,
                num_attention_heads=heads,
                max_position_embeddings=max(config.embedding.max_length, 16),
                use_cache=False,
            )
        )
    loaded = describe("calibration", model.to(dtype).eval().requires_grad_(False))
    rng = np.random.default_rng(0)
    mean = min(max(size.mean_length, 2.0), config.embedding.max_length)
    # Lengths of real texts spread about as wide as their mean.
    lengths = np.clip(rng.gamma(2.0, mean / 2, 512), 1, config.embedding.max_length).astype(int)
    texts = [rng.integers(0, _VOCABULARY, n, dtype=np.int32) for n in lengths]

    def run(n: int) -> float:
        start = time.perf_counter()
        for _ in pooled_states(
            loaded,
            texts[:n],
            layers=range(1, _BLOCKS + 1),
            poolings=config.embedding.pooling,
            layer_output=config.embedding.layer_output,
            batch_tokens=config.embedding.batch_tokens,
        ):
            pass
        return time.perf_counter() - start

    n = 8
    run(n)  # The first pass pays for kernels and allocations.
    seconds = run(n)
    while n < len(texts) and seconds < SECONDS / 4:
        n = min(4 * n, len(texts))
        seconds = run(n)
    passes = 1
    while seconds < SECONDS:
        seconds += run(n)
        passes += 1
    tokens = passes * int(lengths[:n].sum())
    speed = small.flops(tokens, float(lengths[:n].mean())) / seconds
    logger.debug("width %d: %.3g FLOP/s in %.1f s", shape.hidden, speed, seconds)
    return speed


def _cpu_name() -> str:
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
