"""A model over HTTP, on this machine only: python -m tools.serve."""

import errno
import socket

from stages.base.errors import InputError

HOST = "127.0.0.1"  # the server asks for no password, so nobody else may reach it


def check_port(port: int, hint: str) -> None:
    """Raise InputError, ending in `hint`, unless a server can listen on this port of HOST."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will, just after another has ended
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            reason = "is taken, perhaps by an earlier server" if taken else f"cannot be used ({error})"
            raise InputError(f"port {port} of {HOST} {reason}; another: {hint}") from error
