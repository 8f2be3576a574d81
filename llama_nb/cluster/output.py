"""What an engine on this machine sends to the notebook."""

from typing import Any

from ipykernel.iostream import OutStream


class Output(OutStream):
    """What Python prints; libraries in C++ write to the engine's log.

    On CPU, JAX's collectives report every connection that they make, which would hide what a cell
    says.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **{**options, "watchfd": False})
