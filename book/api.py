"""The API reference: which module is described on which page, and the Markdown that asks for it.

Sphinx's autodoc writes the descriptions, from docstrings. `stage` in `book/build.py` puts what
`pages` returns beside the pages that include it.
"""

import importlib
import pkgutil
import sys

import llama_nb

# Every module is on the first page that names it or its package; the last page has the rest.
PAGES = {
    "api_model": (
        *("config", "config_files", "presets", "layers", "attending", "cache", "packed", "lora"),
        *("loss", "model"),
    ),
    "api_kernels": ("kernels",),
    "api_text": (
        *("tokenizer", "tokenizer_files", "byte_pairs", "sentence_pieces", "chat", "sampling"),
        *("steps", "session", "loading", "generation", "perplexity"),
    ),
    "api_files": ("checkpoint", "quantize", "gguf_reader", "assets", "download", "sources"),
    "api_learning": ("data", "train"),
    "api_devices": ("sharding", "tensor_parallel", "pod", "cluster"),
    "api_cost": (
        "roofline",
        "hardware",
        "placement",
        "calculator",
        "topology",
        "answers",
        "hlo",
        "aot",
    ),
    "api_check": ("check",),
    "api_tools": (),
}


def modules() -> list[str]:
    """Return the name of every public module, packages before what is in them."""
    found = pkgutil.walk_packages(llama_nb.__path__, "llama_nb.")
    return sorted(module.name for module in found if "._" not in module.name)


def listed(page: str) -> list[str]:
    """Return the modules that a page describes, in the order in which `PAGES` names them."""
    named = [top for tops in PAGES.values() for top in tops]
    tops = PAGES[page] or sorted({_top(module) for module in modules()} - set(named))
    return [module for top in tops for module in modules() if _top(module) == top]


def _top(module: str) -> str:
    return module.split(".")[1]


def described(module: str) -> str:
    """Return the Markdown that describes a module's own names, under its own heading."""
    short = module.partition(".")[2]  # the whole name is too long for the page's contents
    text = f"## `{short}`\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n"
    names = getattr(importlib.import_module(module), "__all__", ())
    if "__path__" not in vars(sys.modules[module]) or not names:
        return f"{text}```\n"
    # A package describes nothing twice: its names are links to the modules that they come from.
    homes = (getattr(getattr(sys.modules[module], name), "__module__", module) for name in names)
    links = ", ".join(f"{{py:obj}}`{n} <{home}.{n}>`" for n, home in zip(names, homes, strict=True))
    return f"{text}   :ignore-module-all:\n```\n\nIt has the names {links}.\n"


def front_door() -> str:
    """Return a table of the names that `llama_nb` itself has."""
    rows = []
    for name in llama_nb.__all__:
        thing = getattr(llama_nb, name)
        role = "class" if isinstance(thing, type) else "func"
        first = thing.__doc__.split("\n\n")[0].replace("\n", " ")
        rows.append(f"| {{py:{role}}}`llama_nb.{name} <{thing.__module__}.{name}>` | {first} |\n")
    return "| name | |\n|---|---|\n" + "".join(rows)


def contents() -> str:
    """Return a table of every module, with the first sentence of its docstring."""
    rows = []
    for page in PAGES:
        for module in listed(page):
            first = importlib.import_module(module).__doc__.split("\n\n")[0].replace("\n", " ")
            rows.append(f"| {{py:mod}}`{module}` | {first} |\n")
    return "| module | |\n|---|---|\n" + "".join(rows)


def pages() -> dict[str, str]:
    """Return the Markdown of every part that a page includes, by the part's file name."""
    parts = {page: "\n".join(map(described, listed(page))) for page in PAGES}
    parts |= {"api_front": front_door(), "api_modules": contents()}
    return {f"_{name}.md": text for name, text in parts.items()}
