"""rpc: TVM's RPC server and tracker, reduced to what measuring on other machines needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeAlias

from sparsec.errors import ConfigError

#: key (empty for a server asked directly), host and port
Place: TypeAlias = tuple[str, str, int]

#: seconds a session may last
_PATIENCE = 120.0


def connect(place: Place) -> Any:
    """A session with a server, or with one that a tracker lends under a key.

    Raises:
        ConfigError: nobody answers there, or a package is missing.
    """
    rpc, (key, host, port) = _rpc(), place
    try:
        if not key:
            return rpc.connect(host, port, session_timeout=_PATIENCE)
        return rpc.connect_tracker(host, port).request(key, session_timeout=_PATIENCE)
    except Exception as error:  # TVM raises many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(f"{host}:{port}: nobody answers ({reason})") from error


def call(place: Place, name: str, *arguments: Any) -> Any:
    """What a function that a server offers returns; bytes travel as they are."""
    return connect(place).get_function(name)(*arguments)


def register(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Make functions known under names; a server's process does so before it serves."""
    import tvm_ffi

    for name, function in functions.items():
        tvm_ffi.register_global_func(name, function, override=True)


class Server:
    """Listens on the first free port from ``port`` on, in a process of its own.

    ``initialise`` runs there first: a function of a module, for it is sent by name.
    """

    def __init__(self, host: str, port: int, tracker: Place | None, initialise: Callable[[], None]) -> None:
        key, address = (tracker[0], tracker[1:]) if tracker else ("", None)
        self._server = _rpc().Server(
            host, port, port + 100, key=key, tracker_addr=address, server_init_callback=initialise
        )
        self.port = int(self._server.port)

    def join(self) -> None:
        """Wait for its end."""
        self._server.proc.join()

    def terminate(self) -> None:
        """End it."""
        self._server.terminate()


def _rpc() -> Any:
    try:
        for name in ("psutil", "tornado"):
            import_module(name)
        from tvm import rpc
    except ImportError as missing:
        raise ConfigError(
            f"measuring elsewhere needs {missing.name}: pip install 'sparsec[rpc]'"
        ) from missing
    return rpc
