"""The command line: `python -m llama_nb`, installed as `llama-nb`."""

import argparse
import os
import sys
from collections.abc import Sequence

from llama_nb.cli import generate, learn, models, pod
from llama_nb.devices import prefer_cpu_if_alone
from llama_nb.errors import LlamaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 for bad input, said in one sentence."""
    options = _parser().parse_args(arguments)
    prefer_cpu_if_alone()
    try:
        options.run(options)
    except LlamaError as error:
        print(f"llama-nb: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone; keep the interpreter from complaining at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llama-nb", description="Llama models in JAX.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for family in (generate, models, learn, pod):
        family.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
