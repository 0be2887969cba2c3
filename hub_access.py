"""Whether the Hugging Face Hub can be reached: found out once, instead of by the retries of its client, which take half a minute."""

import functools
import os
import socket
import sys
import threading
import urllib.request
from urllib.parse import urlsplit

CONNECT_SECONDS = 2.0
"""Time to find the host's address and to connect to it."""


@functools.cache
def work_offline_if_unreachable() -> bool:
    """Make the clients of the Hub use what was fetched before, if it cannot be reached; says so once. Returns whether they do."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or connects(constants.ENDPOINT):
        return bool(constants.HF_HUB_OFFLINE)
    print(f"{constants.ENDPOINT} cannot be reached: what was fetched before is used", file=sys.stderr)
    constants.HF_HUB_OFFLINE = True
    # Child processes and datasets, which reads it when it is imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    if (imported := sys.modules.get("datasets.config")) is not None:
        vars(imported)["HF_HUB_OFFLINE"] = True
    return True


def connects(url: str) -> bool:
    """Whether the host of an address, or the proxy that leads to it, accepts a connection."""
    address = urlsplit(url)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy is not None and not urllib.request.proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connected = threading.Event()

    def connect() -> None:
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname, port), CONNECT_SECONDS).close()
        except OSError:
            return
        connected.set()

    # In a thread: the time to look up a name has no limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return connected.is_set()
