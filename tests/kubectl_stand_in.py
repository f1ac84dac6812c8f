"""A kubectl that keeps its objects in a file; a released Job of its cluster ends at once.

Files beside it say what happens: ``fails`` (component -> positions that fail), ``away`` (verb ->
how often the server doesn't answer), ``pods`` and ``events`` (what ``get`` shows), ``hold``
(components whose Jobs don't end).
"""

import stat
import sys

SCRIPT = """\
import json, pathlib, sys
here = pathlib.Path({folder!r})
args = sys.argv[1:]
namespace = None
if args[0] == "--namespace":
    namespace, args = args[1], args[2:]
with (here / "calls").open("a") as calls:
    calls.write(" ".join(args[:3]) + "\\n")

def kept(name, default):
    path = here / name
    return json.loads(path.read_text()) if path.exists() else default

state = kept("state.json", {{}})
fails, away, hold = kept("fails", {{}}), kept("away", {{}}), kept("hold", [])
if (here / "namespace").exists() and (here / "namespace").read_text() != namespace:
    print(json.dumps({{"items": []}}))
    sys.exit(0)

def settle(job):
    component = job["metadata"]["labels"]["app.kubernetes.io/component"]
    if job["spec"].get("suspend") or component in hold:
        job["status"] = {{}}
        return
    bad = sorted(map(int, fails.get(component, {{}})))
    kind = "Failed" if bad else "Complete"
    job["status"] = {{"conditions": [{{"type": kind, "status": "True", "message": "said so"}}]}}
    n = job["spec"].get("completions")
    if n is not None:
        good = [i for i in range(n) if i not in bad]
        job["status"]["completedIndexes"] = ",".join(map(str, good))
        job["status"]["failedIndexes"] = ",".join(map(str, bad))

verb = args[0]
if away.get(verb):
    away[verb] -= 1
    (here / "away").write_text(json.dumps(away))
    said = here / "away-words"
    words = said.read_text() if said.exists() else (
        "The connection to the server 10.0.0.1:6443 was refused - did you specify the right host "
        "or port?")
    sys.exit(words)
KINDS = {{"jobs": "Job", "configmaps": "ConfigMap", "pvc": "PersistentVolumeClaim",
         "persistentvolumeclaims": "PersistentVolumeClaim"}}
if verb == "get":
    if args[1] in ("pods", "events"):
        found = kept(args[1], [])
    else:
        sweep = args[3].rsplit("=", 1)[1]
        found = [o for o in state.values() if o["kind"] == KINDS[args[1]]]
        found = [o for o in found
                 if o["metadata"]["labels"]["app.kubernetes.io/instance"] == sweep]
    print(json.dumps({{"items": found}}))
elif verb == "apply":
    for item in map(json.loads, sys.stdin.read().splitlines()):
        name = item["kind"] + "/" + item["metadata"]["name"]
        if item["kind"] == "Job":
            if name in state:
                sys.exit("field is immutable: " + name)
            settle(item)
        state[name] = item
elif verb == "delete":
    del state["Job/" + args[2]]
elif verb == "patch":
    job = state["Job/" + args[2]]
    job["spec"] |= json.loads(args[-1])["spec"]
    settle(job)
elif verb == "logs":
    print("the log of " + " ".join(args[1:]))
else:
    sys.exit("unknown command: " + verb)
(here / "state.json").write_text(json.dumps(state))
"""


def write(folder):
    """Put the program into a folder, which also holds its files; its path."""
    tool = folder / "kubectl"
    tool.write_text(f"#!{sys.executable}\n" + SCRIPT.format(folder=str(folder)))
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return tool


def pod(index=None, *, job="demo-extract", created="1", phase="Pending", code=None, **status):
    """A pod as ``kubectl get`` shows it."""
    reason = status.pop("reason", "Error")
    ended = [
        {"name": "extract", "state": {"terminated": {"exitCode": code, "reason": reason}}},
    ]
    labels = {"batch.kubernetes.io/job-name": job}
    if index is not None:
        labels["batch.kubernetes.io/job-completion-index"] = str(index)
    return {
        "kind": "Pod",
        "metadata": {"name": f"{job}-{index}-x", "creationTimestamp": created, "labels": labels},
        "status": {
            "phase": phase,
            "containerStatuses": ended if code is not None else [],
            **status,
        },
    }
