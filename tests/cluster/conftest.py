"""A cluster of two hosts with four devices each, real processes on this machine."""

import textwrap

import pytest

pytest.importorskip("ipyparallel")
pytest.importorskip("psutil")

from llama_nb import cluster
from llama_nb.cluster import local


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster") / "c"
    try:
        started = local.start(folder=folder)
        assert started == ["controller", "host0", "host1"]
        yield folder
    finally:
        local.stop(folder)


@pytest.fixture(scope="module")
def client(folder):
    client = cluster.connect(local.client_file(folder))
    yield client
    client.close()


@pytest.fixture
def joined(client):
    cluster.join(client)
    return client


@pytest.fixture(scope="module")
def run(client):
    """Return a function that runs code on every host and returns each one's `found`."""

    def run(code, **names):
        view = client[:]
        view.push(names).get(30)
        # Never for ever: a host that waits for another must fail the test, not hang it.
        view.execute(textwrap.dedent(code)).get(90)
        return view.pull("found").get(30)

    return run
