"""The messages on the troubleshooting page are those that the package prints."""

import ast
import re

import pytest

from book import build

PAGE = (build.ROOT / "book/troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^```text\n(.+)\n```$", PAGE, re.MULTILINE)
# Not the package's: each names the error's type, or begins as JAX and its compilers do.
THEIRS = re.compile(
    r"\w+Error: |RESOURCE_EXHAUSTED|Unable to initialize|Internal error when accessing libtpu"
    r"|An NVIDIA GPU may be|Some donated buffers|Gloo context"
)
OURS = [message for message in QUOTED if not THEIRS.match(message)]


def text(node):
    """Return what a string expression says, with dots where it is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "..."


@pytest.fixture(scope="module")
def sentences():
    """Return every string in the package's sources."""
    found = set()
    for path in (build.ROOT / "llama_nb").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr | ast.Constant):
                found.add(text(node))
    return found


def test_the_page_quotes_both_the_package_and_others():
    assert len(OURS) > 20
    assert len(QUOTED) - len(OURS) > 10


@pytest.mark.parametrize("message", OURS)
def test_message_is_in_the_source(message, sentences):
    parts = [part.strip() for part in message.split("...")]
    assert max(map(len, parts)) > 10, "too little is quoted to be found"
    wanted = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    assert any(wanted.search(sentence) for sentence in sentences)
