"""remote: trials measured on other machines, through TVM's RPC server and tracker.

A board runs ``python -m sparsec.tuning.remote --tracker HOST:PORT --key NAME`` (or alone, with
``--port``); ``sparsec tune --remote NAME@HOST:PORT`` builds here and measures there.  Model files cross
the wire, so the board needs no compiler, only sparsec and TVM's RPC server.  As TVM says of it: whoever
reaches the port can run code there, so keep it within a network you trust.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict

from sparsec.errors import ConfigError
from sparsec.targets import rpc
from sparsec.targets.processor import this_processor
from sparsec.tuning.worker import Answer, compare

#: the functions a server offers
_MEASURE, _NAME = "sparsec.measure", "sparsec.processor"


def parse_remote(text: str) -> rpc.Place:
    """Key (empty without a tracker), host and port of ``KEY@HOST:PORT`` or ``HOST:PORT``.

    Raises:
        ConfigError: another form.
    """
    key, _, place = text.rpartition("@")
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{text}: expected HOST:PORT of a server, or KEY@HOST:PORT of a tracker")
    return key, host, int(port)


def measure(
    remote: str, default: bytes, trial: bytes, node: str, threads: int, active: float | None = None
) -> Answer:
    """:func:`sparsec.tuning.worker.compare` on another machine.

    Raises:
        ConfigError: nobody answers there.
    """
    place = parse_remote(remote)
    found = json.loads(rpc.call(place, _MEASURE, bytearray(default), bytearray(trial), node, threads, active))
    return Answer(found["seconds"], found["default"], found["status"])


def name_of(remote: str) -> str:
    """The processor of another machine, as its records are found by.

    Raises:
        ConfigError: nobody answers there.
    """
    return str(rpc.call(parse_remote(remote), _NAME))


def offer() -> None:
    """Register what a server offers in this process."""
    rpc.register({_MEASURE: _answer, _NAME: lambda: this_processor().key})


def _answer(default: bytes, trial: bytes, node: str, threads: int, active: float | None) -> str:
    try:
        found = compare(bytes(default), bytes(trial), node, int(threads), active)
    except Exception as error:  # whatever it is, the other side wants to read it
        found = Answer(None, None, f"failed: {type(error).__name__}: {str(error)[:200]}")
    return json.dumps(asdict(found))


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=9090, help="first port to try (9090)")
    parser.add_argument("--tracker", metavar="HOST:PORT", help="tracker to register with")
    parser.add_argument("--key", default="board", help="what the tracker lends this machine as (board)")
    options = parser.parse_args()
    tracker = (options.key, *parse_remote(options.tracker)[1:]) if options.tracker else None
    server = rpc.Server(options.host, options.port, tracker, offer)
    print(f"listening on {options.host}:{server.port}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.join()
    except KeyboardInterrupt:
        return
    finally:
        server.terminate()


if __name__ == "__main__":
    # pickled functions belong to the module's own name, not to __main__
    from sparsec.tuning import remote

    remote.main()
