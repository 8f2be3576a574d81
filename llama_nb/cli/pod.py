"""`compile`: a step compiled for a TPU slice that is not there."""

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from llama_nb.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def add(commands: Any) -> None:
    """Add the command to the parser."""
    compile_ = commands.add_parser("compile", help="compile a step for a TPU slice, without a TPU")
    compile_.set_defaults(run=run)
    compile_.add_argument("--model", required=True, metavar="NAME|DIR", help="such as llama3.1-70b")
    compile_.add_argument("--topology", required=True, metavar="T", help="such as v5e:4x4")
    compile_.add_argument("--phase", default="decode", help="decode (default), prefill or train")
    compile_.add_argument("--batch", type=int, default=8, metavar="B", help="sequences: 8")
    compile_.add_argument("--context", type=int, default=2048, metavar="S", help="tokens: 2048")
    compile_.add_argument("--quant", choices=["int8"], help="of weights and cache")
    compile_.add_argument("--strategy", metavar="S", help="dp, tp, 2d, fsdp, fsdp_tp")
    compile_.add_argument("--attention", default="auto", metavar="A", help="auto, xla, pallas")
    compile_.add_argument("--hlo", metavar="FILE", help="write the compiled program's text here")
    compile_.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> None:
    """Compile, and print what it takes and how long it lasts."""
    from pathlib import Path

    from llama_nb import aot, presets

    if Path(options.model).is_dir():
        from llama_nb.checkpoint import open_checkpoint

        config = open_checkpoint(options.model).config
    else:
        config = presets.get(options.model)
    file = Path(options.hlo) if options.hlo else None
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise InputError(f"--hlo {file}: there is no such folder, or it is no file's name.")
    report, text = aot.compile_for(
        options.topology,
        config,
        phase=options.phase,
        batch=options.batch,
        context=options.context,
        quant=options.quant,
        strategy=options.strategy,
        attention=options.attention,
    )
    if file is not None:
        _write_hlo(file, text, report.layers_compiled)
    if options.json:
        print(json.dumps({"model": options.model, **dataclasses.asdict(report)}))
    else:
        print(aot.describe(options.model, report))


def _write_hlo(file: "Path", text: str, layers: list[int]) -> None:
    if not text:
        raise InputError(f"--hlo {file}: there is no program to write; leave --hlo out to see why.")
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--hlo {file} can't be written: {error.strerror}.") from None
    if layers:
        print(f"llama-nb: {file} is the program of {layers[-1]} layers.", file=sys.stderr)
