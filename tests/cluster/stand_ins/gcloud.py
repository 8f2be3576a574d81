"""Answer for gcloud: pods are entries of a file, workers are hosts that ssh reaches.

Takes the flags that gcloud's reference lists for these commands, and no others.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

LAB = Path(os.environ["LAB"])
WIDE = {"project", "zone", "quiet", "format"}
VM = "accelerator-type spot internal-ips network labels metadata"
FLAGS = {
    "tpu-vm ssh": "worker command internal-ip ssh-flag ssh-key-file plain",
    "tpu-vm scp": "worker internal-ip scp-flag ssh-key-file plain recurse compress",
    "tpu-vm describe": "",
    "tpu-vm list": "filter",
    "tpu-vm create": f"{VM} version",
    "tpu-vm delete": "async",
    "queued-resources list": "filter",
    "queued-resources describe": "",
    "queued-resources create": f"{VM} runtime-version node-id valid-until-duration",
    "queued-resources delete": "force async",
}


def stop(message: str):
    """End as gcloud does when it does not understand or does not find."""
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    sys.exit(1)


def acquaint(pod: str):
    """Make the key and give it to the pod, where it is not yet; two at once are refused."""
    folder = Path.home() / ".ssh"
    for known in (folder / "google_compute_engine", LAB / f"knows-{pod}"):
        known.parent.mkdir(exist_ok=True)
        if known.exists():
            continue
        draft = known.with_name(f"{known.name}.draft")
        try:
            draft.touch(exist_ok=False)
        except FileExistsError:
            stop(f"{known} is being written by somebody else")
        time.sleep(0.5)
        draft.rename(known)


def main(arguments: list[str]) -> int:
    """Run one command."""
    with (LAB / "gcloud.log").open("a") as log:
        print(json.dumps(arguments), file=log)
    assert arguments[:2] == ["compute", "tpus"], arguments
    verb, words = " ".join(arguments[2:4]), arguments[4:]
    words, extra = (
        (words[: words.index("--")], words[words.index("--") + 1 :])
        if "--" in words
        else (words, [])
    )
    flags = dict(w[2:].partition("=")[::2] for w in words if w.startswith("--"))
    names = [w for w in words if not w.startswith("--")]
    unknown = set(flags) - WIDE - set(FLAGS[verb].split())
    if unknown:
        stop(f"unrecognized arguments: {unknown}")
    if not {"project", "zone"} <= set(flags):
        stop("no project or zone")
    path = LAB / "gcloud.json"
    state = (
        json.loads(path.read_text()) if path.exists() else {"tpu-vm": {}, "queued-resources": {}}
    )
    kind, action = verb.split()
    pods = state["tpu-vm"]

    if action in ("ssh", "scp"):
        pod = [n for w in names for n in [w.partition(":")[0]] if n in pods]
        if not pod:
            stop(f"there is no pod {names}")
        count, worker = len(pods[pod[0]]), int(flags["worker"])
        if worker >= count:
            stop(f"worker {worker} is not one of {count}")
        acquaint(pod[0])
        host = pods[pod[0]][worker]
        options = ["-F", str(LAB / "ssh_config"), *flags.get("ssh-flag", "").split()]
        if action == "ssh":
            command = [flags["command"]] if "command" in flags else []
            return subprocess.run(["ssh", *options, *extra, host, *command]).returncode
        files = [n.replace(f"{pod[0]}:", f"{host}:", 1) for n in names]
        return subprocess.run(["scp", "-q", *options, flags["scp-flag"], *files]).returncode

    if action == "list":
        print("\n".join(state[kind]))
    elif action == "create":
        if names[0] in state[kind]:
            stop("it exists already")
        workers = [f"10.77.0.1{n}" for n in range(int(os.environ.get("LAB_WORKERS", 3)))]
        (LAB / f"knows-{names[0]}").unlink(missing_ok=True)
        pods[names[0]] = workers
        state[kind][names[0]] = workers
    elif names[0] not in state[kind]:
        stop(f"NOT_FOUND: {names[0]}")
    elif verb == "queued-resources describe":
        print(os.environ.get("LAB_STATE", "ACTIVE"))
    elif action == "describe":
        print(" ".join(pods[names[0]]))
    elif action == "delete":
        del state[kind][names[0]]
        if "force" in flags:
            pods.pop(names[0], None)
    path.write_text(json.dumps(state))
    return 0


sys.exit(main(sys.argv[1:]))
