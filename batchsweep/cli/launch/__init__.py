"""``batchsweep launch``: the indexed job at one of several places, one file each."""

from batchsweep.cli.command import add, group
from batchsweep.cli.launch import docker, hf_jobs, k8s, local, skypilot, slurm

app = group(
    "Run the indexed job: local, docker, k8s, slurm, skypilot, hf-jobs.\n\n"
    "One worker per index, retries by exit code.",
    name="launch",
    epilog="example:\n"
    "  batchsweep launch local --config configs/quick.yaml\n"
    "  batchsweep launch docker --help",
)
for place in (local, docker, k8s, slurm, skypilot, hf_jobs):
    add(app, place.command)
