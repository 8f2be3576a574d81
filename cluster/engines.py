"""Wait until the engines of a cluster have registered, and say which have not."""

import sys
import time

import ipyparallel


def main(file: str, count: int, seconds: float) -> int:
    """Print the engines with their hosts; return 1 when some are missing."""
    end = time.monotonic() + seconds
    try:
        client = ipyparallel.Client(file, timeout=min(seconds, 10))
    except (TimeoutError, ipyparallel.error.TimeoutError):
        print(f"No controller answers at the address in {file}: it is stale.", file=sys.stderr)
        return 1
    while len(client.ids) < count and time.monotonic() < end:
        time.sleep(0.2)
    missing = sorted(set(range(count)) - set(client.ids))
    if len(client.ids) < count:
        names = ", ".join(map(str, missing))
        print(
            f"{len(client.ids)} of {count} engines registered within {seconds:.0f} s; "
            f"missing: {names} (see their logs with: --worker {names.replace(' ', '')} logs).",
            file=sys.stderr,
        )
        return 1
    print(f"{count} engines registered: {', '.join(map(str, sorted(client.ids)))}")
    print(f"connection file: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
