"""What systemd is told of the server, where it is run as a service of `Type=notify`; see sd_notify(3).

So what is ordered after the service starts when the model is loaded, and a server whose engine is lost is started anew:
it stops saying that it is well, and the watchdog ends it.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

READY = "READY=1"
STOPPING = "STOPPING=1"
WELL = "WATCHDOG=1"


class Systemd:
    """What this process was started by, where that was systemd; else nothing happens."""

    def __init__(self) -> None:
        """Reads where systemd listens from the environment."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        # An @ stands for the zero byte with which an abstract name begins.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def tell(self, message: str) -> None:
        """Sends one of the messages."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # the event loop must not wait for it
            # Where nobody listens any more, or is too busy to, the next message comes in a second.
            with suppress(OSError):
                sender.sendto(message.encode(), self._address)
