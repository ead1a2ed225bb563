"""What systemd is told of the server, where it is run as a service of `Type=notify`; see sd_notify(3).

So what is ordered after the service starts when the model is loaded, and a server whose engine is lost is started anew:
it stops saying that it is well, and the watchdog ends it.
"""

from __future__ import annotations

import os
import socket

READY = "READY=1"
STOPPING = "STOPPING=1"
WELL = "WATCHDOG=1"


def notify_systemd(message: str) -> None:
    """Sends a message; without a systemd that wants it, nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)  # the event loop must not wait for it
        try:
            # An @ stands for the zero byte with which an abstract name begins.
            sender.sendto(message.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError:  # nobody listens any more, or is too busy to: the next message comes in a second
            return
