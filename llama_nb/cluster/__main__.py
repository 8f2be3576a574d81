"""The cluster on this machine from a command line: `python -m llama_nb.cluster start`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_nb.cluster import local
from llama_nb.errors import LlamaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for `status` of what doesn't run, or 2."""
    parser = argparse.ArgumentParser(prog="llama_nb.cluster", description=local.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, says in (
        ("start", "start what isn't running"),
        ("status", "say what runs"),
        ("restart", "replace the engines, keep the controller"),
        ("stop", "end all of it"),
    ):
        command = commands.add_parser(name, help=says)
        command.add_argument("--folder", metavar="DIR", help="default: LLAMA_NB_CLUSTER, or cache")
        if name == "start":
            command.add_argument("--hosts", type=int, default=2, metavar="N", help="2")
            command.add_argument("--devices", type=int, default=4, metavar="M", help="per host: 4")
            command.add_argument("--platform", default="cpu", help="for JAX_PLATFORMS: cpu")
            command.add_argument(
                "--notebook", action="store_true", help="leave the first host to a notebook"
            )
    options = vars(parser.parse_args(arguments))
    try:
        return _run(options.pop("command"), options)
    except LlamaError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (`| head`) has gone; keep the interpreter from complaining at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(command: str, options: dict[str, Any]) -> int:
    folder = Path(options["folder"] or local.default_folder()).absolute()
    if command == "start":
        started = local.start(**options)
        print(f"started {', '.join(started)}" if started else "it runs already")
        print(f"connection file: {local.client_file(folder)}")
    elif command == "restart":
        local.restart(folder)
        print("every engine is a new one")
    elif command == "stop":
        ended = local.stop(folder)
        print(f"stopped {', '.join(ended)}" if ended else "nothing ran")
    else:
        there = local.status(folder)
        for name, pids in there.items():
            print(f"{name}: " + (f"processes {', '.join(map(str, pids))}" if pids else "gone"))
        if not there:
            print("no cluster runs")
        return 0 if there and all(there.values()) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
