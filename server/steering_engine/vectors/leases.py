"""Who uses which version of a vector: a request leases what it names, and keeps it to its end."""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import Future
from typing import Protocol

from steering_engine.vectors.registered import RegisteredVector
from steering_spec import VectorFacts, VectorRef


class Version:
    """A version of a vector, from its load to the end of its last lease; changed under its registry's lock only.

    Attributes:
        registered: What is loaded.
        leases: Of the requests that use it.
        unloaded: Whether nobody finds it any more.
        freed: Done when its rows have been given back; can't be cancelled.
    """

    def __init__(self, registered: RegisteredVector) -> None:
        self.registered = registered
        self.leases: set[VectorLease] = set()
        self.unloaded = False
        self.freed: Future[None] = Future()
        self.freed.set_running_or_notify_cancel()  # else whoever waits for it could cancel it

    @property
    def key(self) -> tuple[str, str]:
        """Name and digest."""
        return self.registered.id, self.registered.vector.sha256


class Lessor(Protocol):
    """What leases are of: the registry."""

    def acquire(self, ref: VectorRef, lease: VectorLease) -> Version | None:
        """The version that a name means, kept for the lease; None when it is not loaded."""
        ...

    def release(self, versions: Collection[Version], lease: VectorLease) -> None:
        """Gives versions back that were kept for the lease."""
        ...


class VectorLease:
    """The versions that one request uses: found once, and kept until the request has ended.

    Whoever judges a request and whoever compiles it look its vectors up here, so both see the same versions. Safe from
    any thread; a lease that was released finds nothing more.
    """

    def __init__(self, lessor: Lessor) -> None:
        """Begins empty."""
        self._lessor = lessor
        self._held: dict[VectorRef, Version | None] = {}
        self._released = False
        self._lock = threading.Lock()

    def find(self, ref: VectorRef) -> RegisteredVector | None:
        """The version that a name means for this request: what it meant when the request first asked."""
        with self._lock:
            if self._released:
                return None
            if ref not in self._held:
                self._held[ref] = self._lessor.acquire(ref, self)
            version = self._held[ref]
        return None if version is None else version.registered

    def facts(self, ref: VectorRef) -> VectorFacts | None:
        """What admission needs to know of that version."""
        found = self.find(ref)
        return None if found is None else found.facts

    def release(self) -> None:
        """Gives all of them back. Safe to call twice."""
        with self._lock:
            self._released = True
            held = {version for version in self._held.values() if version is not None}
            self._held = {}
        self._lessor.release(held, self)
