"""The command line: `python -m llama_nb`, installed as `llama-nb`."""

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llama_nb.devices import prefer_cpu_if_alone, virtual_cpu_devices
from llama_nb.errors import InputError, LlamaError

if TYPE_CHECKING:
    from pathlib import Path

    from llama_nb.config import LlamaConfig


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

    generate = commands.add_parser("generate", help="continue a prompt")
    generate.set_defaults(run=_generate)
    generate.add_argument("prompt", metavar="PROMPT")
    _add_model(generate)
    generate.add_argument("--chat", action="store_true", help="wrap the prompt as a user message")
    generate.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    generate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: greedy")
    generate.add_argument("--top-k", type=int, default=0, metavar="K", help="0: off")
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="1: off")
    generate.add_argument("--min-p", type=float, default=0.0, metavar="P", help="0: off")
    generate.add_argument("--seed", type=int, default=0, metavar="S")
    generate.add_argument("--json", action="store_true", help="print one JSON object at the end")
    generate.add_argument("--dtype", choices=["bfloat16", "float32"], help="of the weights")
    generate.add_argument("--cache", choices=["int8"], help="keep keys and values in int8")
    generate.add_argument("--mesh", metavar="DATAxMODEL", help="split over devices, such as 2x4")
    generate.add_argument(
        "--strategy", default="2d", metavar="S", help="how: dp, tp, 2d, fsdp, fsdp_tp"
    )

    generate.add_argument("--attention", default="auto", metavar="A", help="auto, xla, pallas")

    info = commands.add_parser("info", help="print a model's parameters, bytes and FLOPs")
    info.set_defaults(run=_info)
    _add_model(info)

    convert = commands.add_parser("convert", help="write a checkpoint as a Hugging Face folder")
    convert.set_defaults(run=_convert)
    convert.add_argument("source", metavar="SRC", help="a name, folder or .gguf file")
    convert.add_argument("target", metavar="DST", help="a new or empty folder")
    convert.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    convert.add_argument("--quant", choices=["int8"], help="of the projections")

    download = commands.add_parser("download", help="fetch a model from the Hugging Face Hub")
    download.set_defaults(run=_download)
    download.add_argument("repo", metavar="REPO", help="owner/name")
    download.add_argument("--to", metavar="DIR", help="default: the Hub's own cache")
    download.add_argument("--revision", metavar="R", help="a branch, tag or commit")
    download.add_argument("--original", action="store_true", help="Meta's own files instead")

    compile_ = commands.add_parser("compile", help="compile a step for a TPU slice, without a TPU")
    compile_.set_defaults(run=_compile)
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
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        metavar="NAME|DIR|FILE.gguf",
        help="default: smollm2-135m, fetched once",
    )
    parser.add_argument("--quant", choices=["int8"], help="keep the matrices in int8")


def _generate(options: argparse.Namespace) -> None:
    import jax

    from llama_nb import generation, loading, sharding
    from llama_nb.sampling import Sampling

    settings = {
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "seed": options.seed,
    }
    Sampling(**settings)  # Say what is wrong before loading anything.
    if options.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens is {options.max_new_tokens}; it must be 1 or more.")
    if not options.prompt:
        raise InputError("the prompt is empty; give the model some text to continue.")
    mesh = None
    if options.mesh is not None:
        shape = sharding.mesh_shape(options.mesh)
        virtual_cpu_devices(math.prod(shape))
        mesh = sharding.make_mesh(shape)
    model, tokenizer = loading.load(
        options.model,
        dtype=options.dtype,
        quant=options.quant,
        mesh=mesh,
        strategy=options.strategy,
        attention_impl=options.attention,
    )
    if options.attention == "pallas" and jax.default_backend() == "cpu":
        print(
            "llama-nb: on CPU the kernels are interpreted, which is slow; leave --attention out.",
            file=sys.stderr,
        )
    if model.layout is not None and model.config.num_heads % model.layout.size("heads"):
        print(
            f"llama-nb: {model.config.num_heads} query heads can't be split into "
            f"{model.layout.size('heads')} equal parts; attention stays whole on every device.",
            file=sys.stderr,
        )
    arguments = {
        "max_new_tokens": options.max_new_tokens,
        "chat": options.chat,
        "cache_dtype": options.cache,
        **settings,
    }
    if options.json:
        (done,) = generation.complete(model, tokenizer, [options.prompt], **arguments)
        print(json.dumps(dataclasses.asdict(done), ensure_ascii=False))
        return
    for piece in generation.stream(model, tokenizer, options.prompt, **arguments):
        print(piece, end="", flush=True)
    print()


def _info(options: argparse.Namespace) -> None:
    from pathlib import Path

    from llama_nb import presets

    if options.model in presets.PRESETS:
        config, stored = presets.get(options.model), None
    else:
        from llama_nb import loading
        from llama_nb.checkpoint import open_checkpoint

        checkpoint = open_checkpoint(loading.locate(options.model))
        config = checkpoint.config
        path = Path(checkpoint.path)
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        stored = sum(file.stat().st_size for file in files)
    count = config.param_count()
    rows = [
        ("vocabulary V", f"{config.vocab_size:,}"),
        ("width D", f"{config.embed_dim:,}"),
        ("feed-forward F", f"{config.ffn_dim:,}"),
        ("layers L", f"{config.num_layers}"),
        ("query heads N", f"{config.num_heads}"),
        ("KV heads K", f"{config.num_kv_heads}"),
        ("head width H", f"{config.head_dim}"),
        ("context", f"{config.context:,} tokens"),
        ("head", "tied to the embedding" if config.tied else "its own matrix"),
        ("parameters", f"{count:,}"),
        *([("bytes on disk", f"{stored:,}")] if stored is not None else []),
        *_bytes(config, options.quant),
        ("FLOPs per token", f"{config.flops_per_token():,}"),
        ("... at full context", f"{config.flops_per_token(config.context):,}"),
    ]
    width = max(len(name) for name, _ in rows)
    print(options.model)
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")


def _bytes(config: "LlamaConfig", quant: str | None) -> list[tuple[str, str]]:
    count, cache = config.param_count(), config.cache_bytes_per_token()
    if quant is None:
        return [
            ("bytes in float32", f"{4 * count:,}"),
            ("bytes in bfloat16", f"{2 * count:,}"),
            ("KV cache, bfloat16", f"{cache:,} bytes per token"),
        ]
    from llama_nb.quantize import int8_bytes

    scales = 2 * 4 * config.num_layers * config.num_kv_heads
    return [
        ("bytes in int8", f"{int8_bytes(config):,} (norms and scales in float32)"),
        ("KV cache, int8", f"{cache // 2 + scales:,} bytes per token"),
    ]


def _compile(options: argparse.Namespace) -> None:
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


def _convert(options: argparse.Namespace) -> None:
    from llama_nb import loading
    from llama_nb.checkpoint.save import convert

    source = loading.locate(options.source)
    print(convert(source, options.target, dtype=options.dtype, quant=options.quant))


def _download(options: argparse.Namespace) -> None:
    from llama_nb.download import download

    print(download(options.repo, options.to, revision=options.revision, original=options.original))


if __name__ == "__main__":
    sys.exit(main())
