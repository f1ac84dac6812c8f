"""What a card can do at most, by its makers' data sheets, and what the one at hand really does."""

from __future__ import annotations

import gc
import re
import resource
import subprocess
import time
from typing import Any

import torch
import transformers

#: Name as the driver gives it -> dense TFLOP/s (no sparsity) in half precision, and in float32
#: without TensorFloat-32. Data sheets of NVIDIA.
PEAKS: tuple[tuple[str, float, float], ...] = (
    (r"B200\b", 2250, 75),
    (r"H200 NVL", 835, 60),
    (r"H200\b", 989, 67),
    (r"H100 PCIe", 756, 51),
    (r"H100 NVL", 835, 60),
    (r"H100\b", 989, 67),
    (r"A100\b", 312, 19.5),
    (r"L40S\b", 362, 91.6),
    (r"L4\b", 121, 30.3),
    (r"A10\b", 125, 31.2),
    (r"T4\b", 65, 8.1),
    (r"V100-PCIE", 112, 14),
    (r"V100\b", 125, 15.7),
    (r"RTX 4090\b", 165, 82.6),
    (r"RTX 3090\b", 71, 35.6),
)


def peak(card: str, dtype: str) -> float | None:
    """FLOP/s of a card at most; None if the table doesn't have it."""
    for pattern, half, single in PEAKS:
        if re.search(rf"\b{pattern}", card):
            return 1e12 * (single if dtype == "float32" else half)
    return None


def computes_in(device: torch.device, dtype: str) -> bool:
    """Whether the hardware has the dtype; where it doesn't, bfloat16 is emulated, and slow."""
    if device.type == "cpu" or dtype != "bfloat16":
        return True
    return torch.cuda.is_bf16_supported(including_emulation=False)


def product_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of a large square matrix product here."""
    size = 512 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    synchronize(device)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ b
        synchronize(device)
        done += 1
    return 2.0 * size**3 * done / (time.perf_counter() - start)


def copy_rate(device: torch.device) -> float | None:
    """Bytes/s from the card into page-locked memory; None on a CPU, which copies nothing."""
    if device.type == "cpu":
        return None
    there = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    home = torch.empty(there.shape, dtype=torch.uint8, pin_memory=True)
    home.copy_(there)
    start = time.perf_counter()
    for _ in range(10):
        home.copy_(there, non_blocking=True)
    synchronize(device)
    return 10 * there.numel() / (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(device: torch.device) -> int:
    """MiB at most since the last call of :func:`forget`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device)) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def output_of(*command: str) -> str | None:
    """What a command prints; None where it isn't there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine(device: torch.device) -> dict[str, Any]:
    """What figures of a card are worth nothing without."""
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "card": name_of(device),
        "driver": output_of(*query) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
