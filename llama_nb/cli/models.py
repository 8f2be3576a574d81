"""`info`, `convert` and `download`: models as files."""

import argparse
from typing import TYPE_CHECKING, Any

from llama_nb.cli.options import add_model

if TYPE_CHECKING:
    from llama_nb.config import LlamaConfig


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    info = commands.add_parser("info", help="print a model's parameters, bytes and FLOPs")
    info.set_defaults(run=_info)
    add_model(info)

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


def _convert(options: argparse.Namespace) -> None:
    from llama_nb import loading
    from llama_nb.checkpoint.save import convert

    source = loading.locate(options.source)
    print(convert(source, options.target, dtype=options.dtype, quant=options.quant))


def _download(options: argparse.Namespace) -> None:
    from llama_nb.download import download

    print(download(options.repo, options.to, revision=options.revision, original=options.original))
