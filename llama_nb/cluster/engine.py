"""What runs on the engines; its text is sent there, so an engine needs no copy of it.

Only what every Python has is imported at the top: a host whose packages differ must be able to
say so.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import socket
import sys
from pathlib import Path
from typing import Any


def facts(controller: str = "") -> dict[str, Any]:
    """Return who this process is and what it runs, without waking JAX.

    Parameters
    ----------
    controller
        An address: of this host's own addresses, `address` is the one that talks to it.
    """
    rank = os.environ.get("LLAMA_NB_RANK") or os.environ.get("TPU_WORKER_ID")
    return {
        "host": os.environ.get("LLAMA_NB_HOST") or socket.gethostname(),
        "machine": socket.gethostname(),
        "address": _address(_controller() or controller),
        "rank": int(rank) if rank and rank.isdigit() else None,
        "pid": os.getpid(),
        "python": platform.python_version(),
        "jax": _version("jax"),
        "jaxlib": _version("jaxlib"),
        "libtpu": _version("libtpu"),
        "llama_nb": _llama_nb(),
        "platforms": os.environ.get("JAX_PLATFORMS", ""),
        **_group(),
    }


def join(
    coordinator: str,
    count: int,
    rank: int,
    timeout: int,
    heartbeat: int,
    devices: int | None = None,
) -> dict[str, Any]:
    """Make this process one of a group, and return its facts; "error" says why it is not."""
    import jax

    before = _group()
    if before["group"] is not None:
        return facts()
    if before["awake"]:
        return {"error": "JAX has made its devices already, alone"}
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        if devices is not None:
            jax.config.update("jax_num_cpu_devices", devices)
    # On a TPU pod the chips know how many processes there are and which is which.
    places = {} if _on_tpu() else {"num_processes": count, "process_id": rank}
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            # By default the coordinator would listen on every address of its host.
            coordinator_bind_address=coordinator,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=heartbeat,
            **places,
        )
        jax.devices()
    except Exception as error:  # Of any kind: the notebook says it with the host's name.
        return {"error": str(error).strip().partition("\n")[0]}
    return facts()


def free_port(address: str, port: int | None = None) -> int:
    """Return a port of this host that nobody listens on; 0 when the one asked for is taken."""
    with socket.socket() as probe:
        try:
            probe.bind((address, port or 0))
        except OSError:
            return 0
        return probe.getsockname()[1]


def reload(package: str, keep: tuple[str, ...] = ()) -> int:
    """Import a package's modules anew, and point the user's names to what they are now.

    Parameters
    ----------
    package
        Its name; modules below it are meant, too.
    keep
        Modules (and what is below them) that stay as they are.

    Returns
    -------
    int
        Modules imported.
    """

    def below(name: str, parent: str) -> bool:
        return name == parent or name.startswith(parent + ".")

    old = {
        name: module
        for name, module in sys.modules.items()
        if below(name, package) and not any(below(name, parent) for parent in keep)
    }
    for name, module in old.items():
        if cached := getattr(module, "__cached__", None):
            # It is told from its source by whole seconds: two edits within one look alike.
            Path(cached).unlink(missing_ok=True)
        del sys.modules[name]
    importlib.invalidate_caches()
    try:
        for name in old:
            importlib.import_module(name)
    except BaseException:
        sys.modules.update(old)  # What was there goes on working.
        raise
    for name, module in old.items():
        parent, _, child = name.rpartition(".")
        if parent in sys.modules and getattr(sys.modules[parent], child, None) is module:
            setattr(sys.modules[parent], child, sys.modules[name])
    _rebind(old)
    return len(old)


def _rebind(old: dict[str, Any]) -> None:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return
    for name, value in list(shell.user_ns.items()):
        home = getattr(value, "__module__", None)
        if isinstance(value, type(sys)) and old.get(value.__name__) is value:
            shell.user_ns[name] = sys.modules[value.__name__]
        elif isinstance(home, str) and home in old:
            called = getattr(value, "__name__", "")
            if getattr(old[home], called, None) is value and hasattr(sys.modules[home], called):
                shell.user_ns[name] = getattr(sys.modules[home], called)


def _group() -> dict[str, Any]:
    """Return what JAX knows, as far as it was woken before."""
    found: dict[str, Any] = {"group": None, "awake": False, "process": None, "devices": None}
    if "jax" not in sys.modules:
        return found
    import jax
    from jax._src import distributed, xla_bridge

    state = distributed.global_state
    if state.client is not None:
        found["group"] = [state.coordinator_address, state.num_processes]
    found["awake"] = xla_bridge.backends_are_initialized()
    if found["awake"]:
        local = jax.local_devices()
        found["process"] = jax.process_index()
        found["devices"] = [len(local), jax.device_count(), local[0].device_kind]
    return found


def _on_tpu() -> bool:
    return not os.environ.get("JAX_PLATFORMS", "tpu").startswith(("cpu", "cuda", "gpu")) and any(
        path.exists() for path in (Path("/dev/accel0"), Path("/dev/vfio/0"))
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _llama_nb() -> str:
    """Return a digest of the package's sources: a number would miss a copy that was edited."""
    spec = importlib.util.find_spec("llama_nb")
    if spec is None or spec.origin is None:
        return ""
    folder, digest = Path(spec.origin).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def _controller() -> str:
    """Return the address by which this engine reaches its controller, if it is an engine."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    app = getattr(getattr(shell, "kernel", None), "parent", None)
    return getattr(app, "registration_url", "").partition("://")[2].rpartition(":")[0]


def _address(controller: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((controller or socket.gethostname(), 9))  # Sends nothing.
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
