"""A socket that listens, or one sentence that says why it cannot."""

import socket

from errors import UsageError


def listening_socket(host: str, port: int, keys: str) -> socket.socket:
    """A listening socket. port 0: a free port; keys: settings to name in the message. Raises UsageError if the address cannot be bound."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"{keys}: cannot listen on {host} port {port} ({error.strerror})") from error
    # Accepted connections inherit it. asyncio sets it only on sockets that name their protocol; without it the body of a response waits
    # 40 ms for the client to acknowledge the headers.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
