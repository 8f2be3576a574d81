"""Many hosts from one notebook: `connect`, look at the `table`, `join`, then `%%px`.

Nothing here imports JAX into the notebook's own process, which would take its host's chips, unless
that process joins the mesh itself (`connect(local=True)`).
"""

from llama_nb.cluster.client import Client
from llama_nb.cluster.connect import connect
from llama_nb.cluster.join import join
from llama_nb.cluster.recover import interrupt, reload, restart
from llama_nb.cluster.table import MismatchError, Table, table

__all__ = [
    "Client",
    "MismatchError",
    "Table",
    "connect",
    "interrupt",
    "join",
    "reload",
    "restart",
    "table",
]
