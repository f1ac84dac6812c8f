"""How long a sweep takes on many GPUs: the plan's indexes, simulated on shared links.

    batchsweep plan --config CONFIG --gpu h100 --json > plan.json
    python tests/benchmarks/at_scale.py plan.json

Each GPU takes the next index: a start, a download, then compute or writing, whichever is slower.
Downloads share the link to the Hub and writes share the volume, equally among those that use it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import measured

from batchsweep.plan.speed import DOWNLOAD_RATE, WRITE_RATE

HUB = 1e9
"""Bytes a second that the cluster gets from the Hub in all."""
GPUS = (1, 8, 32, 128)
VOLUMES = (1e9, 5e9, 20e9)


def makespan(entries, gpus, volume, hub=HUB):
    """Seconds until the last index is done."""
    queue = sorted(entries, key=lambda e: -e["gpu_seconds"])
    running: list[Any] = []
    now = 0.0
    while queue or running:
        while queue and len(running) < gpus:
            entry = queue.pop(0)
            alone = entry["start_seconds"] + entry["download_bytes"] / DOWNLOAD_RATE
            # Compute that outlasts writing slows its writing down, nobody else's.
            most = min(WRITE_RATE, entry["store_bytes"] / (entry["gpu_seconds"] - alone))
            running.append(
                [("start", entry["start_seconds"], 1.0),
                 ("hub", entry["download_bytes"], DOWNLOAD_RATE),
                 ("volume", entry["store_bytes"], most)]
            )  # fmt: skip
        users = {link: sum(job[0][0] == link for job in running) for link in ("hub", "volume")}
        share = {"hub": hub / max(users["hub"], 1), "volume": volume / max(users["volume"], 1)}
        rates = [min(job[0][2], share.get(job[0][0], job[0][2])) for job in running]
        step = min(job[0][1] / rate for job, rate in zip(running, rates, strict=True))
        now += step
        for job, rate in zip(running, rates, strict=True):
            phase, left, most = job[0]
            left -= rate * step
            if left > 1e-6 * rate:
                job[0] = (phase, left, most)
            else:
                del job[0]
        running = [job for job in running if job]
    return now


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--json", type=Path, default=measured.FOLDER / "at_scale.json")
    args = parser.parse_args()
    entries = json.loads(args.plan.read_text())["costs"]["entries"]
    rows = []
    print("volume".ljust(10), *(f"{gpus:>4} GPUs" for gpus in GPUS))
    for volume in VOLUMES:
        hours = [makespan(entries, gpus, volume) / 3600 for gpus in GPUS]
        busy = [h * g for h, g in zip(hours, GPUS, strict=True)]
        rows.append(
            {"gigabytes": volume / 1e9}
            | {f"seconds_{g}": 3600 * h for g, h in zip(GPUS, hours, strict=True)}
            | {f"hours_{g}": b for g, b in zip(GPUS, busy, strict=True)}
        )
        print(f"{volume / 1e9:.0f} GB/s".ljust(10), *(f"{h * 60:5.0f} min" for h in hours))
        print("  GPU hours".ljust(10), *(f"{b:7.1f}" for b in busy))
    columns = [
        measured.column("volume sustains", "{gigabytes:.0f} GB/s"),
        *(
            measured.column(
                f"{g} GPU{'s' if g > 1 else ''} (GPU hours)",
                f"{{seconds_{g}:duration}} ({{hours_{g}:.1f}})",
            )
            for g in GPUS
        ),
    ]
    measured.write(args.json, {"indexes": len(entries), "columns": columns, "rows": rows})


if __name__ == "__main__":
    main()
