"""Exercises of chapter 26."""

from collections.abc import Callable, Sequence

from llama_nb.check.compare import Verdict, run


def open_ports(function: Callable[[int, tuple[int, int], int, int], list[int]]) -> Verdict:
    """Check `f(worker, controller (first, last), coordinator, notebook) -> sorted ports`.

    Ports of a worker that others must reach: ssh's, and on worker 0 the controller's and the
    coordinator's.
    """

    def cases():
        for worker, controller, coordinator, notebook in (
            (0, (10_000, 10_019), 8476, 8888),
            (1, (10_000, 10_019), 8476, 8888),
            (0, (9000, 9015), 20_000, 8889),
            (3, (9000, 9015), 20_000, 8889),
        ):
            expected = [22]
            if worker == 0:
                expected = sorted([22, coordinator, *range(controller[0], controller[1] + 1)])
            about = f"worker {worker}, controller {controller}, coordinator {coordinator}"
            yield about, (worker, controller, coordinator, notebook), expected

    return run("open_ports", function, cases())


def host_bytes(function: Callable[[Sequence[int], int, int], list[int]]) -> Verdict:
    """Check `f(hosts, parts, size) -> bytes that each host reads`, each part of it once.

    `hosts` names the host of each position on the mesh; neighbours share a part.
    """

    def cases():
        ring = [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]
        for hosts, parts, size, about in (
            ([0, 0, 0, 0, 1, 1, 1, 1], 8, 800, "two hosts of four chips, 8 parts"),
            ([0, 0, 0, 0, 1, 1, 1, 1], 4, 800, "two hosts of four chips, 4 parts"),
            ([0, 1] * 4, 4, 800, "chips of two hosts in turn, 4 parts"),
            (ring, 16, 1 << 20, "a ring of four hosts, 16 parts"),
            (ring, 8, 1 << 20, "a ring of four hosts, 8 parts"),
            ([0, 1, 2], 1, 30, "three hosts, one part for all"),
        ):
            share = len(hosts) // parts
            expected = [
                len({i // share for i, name in enumerate(hosts) if name == host}) * size // parts
                for host in range(max(hosts) + 1)
            ]
            yield about, (hosts, parts, size), expected

    return run("host_bytes", function, cases())
