"""``batchsweep launch``: the indexed job at one of several places, one file each."""

from batchsweep.cli.command import add, group
from batchsweep.cli.launch import docker, k8s, local, slurm

app = group(
    "Run the indexed job: local, docker, k8s or slurm.\n\n"
    "One worker per index, retries by exit code.",
    name="launch",
    epilog="example:\n"
    "  batchsweep launch local --config configs/quick.yaml\n"
    "  batchsweep launch docker --help",
)
for function in (local.command, docker.command, k8s.command, slurm.command):
    add(app, function)
