"""The registry of loaded vectors: names, versions of them by digest, and who uses which.

A name may have several versions loaded, one of which is current: that is what the plain name means. A request leases
the versions that it names and keeps them to its end. A version that is unloaded is found by nobody from that moment on;
its rows and its memory are given back when the last lease of it ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from steering_engine.engine.limits import DEFAULT_VECTOR_MEMORY_BYTES
from steering_engine.errors import (
    EngineError,
    VectorExistsError,
    VectorFileError,
    VectorMemoryError,
)
from steering_engine.loading import LoadedModel
from steering_engine.steering.table import DirectionTable
from steering_engine.vectors.file import check_inside, parse_vector, read_vector_file
from steering_engine.vectors.leases import VectorLease, Version
from steering_engine.vectors.registered import RegisteredVector, check_model, memory_of, place
from steering_engine.vectors.schema import SteeringVector
from steering_spec import InvalidRequestError, VectorFacts, VectorInfo, VectorRef, Violation, ViolationKind

Approve = Callable[[RegisteredVector], None]
"""Looks at a vector that is about to become current, and raises where it must not."""


@dataclass(frozen=True, slots=True)
class Unloading:
    """A vector that was unloaded.

    Attributes:
        info: What it was then.
        freed: Done when the last request that uses it has ended and its memory is free; can't be cancelled.
    """

    info: VectorInfo
    freed: Future[None]


@dataclass(frozen=True, slots=True)
class VectorMemory:
    """Memory that loaded vectors take, and the most that they may; those whose last request still runs count."""

    used: int
    limit: int


class VectorRegistry:
    """Vectors by name and digest; loading is atomic, and all of it is safe from any thread."""

    def __init__(
        self, loaded: LoadedModel, table: DirectionTable, memory_bytes: int = DEFAULT_VECTOR_MEMORY_BYTES
    ) -> None:
        """Makes an empty one.

        Args:
            loaded: The model that the vectors steer.
            table: Takes their rows.
            memory_bytes: Most memory that they may take.
        """
        self._loaded = loaded
        self._table = table
        self._limit = memory_bytes
        self._used = 0
        self._versions: dict[tuple[str, str], Version] = {}
        self._current: dict[str, Version] = {}
        # Two locks: placing rows takes a while, and nobody who looks a vector up should wait for it.
        self._changing = threading.Lock()
        self._lock = threading.Lock()

    def refs(self, *, all_versions: bool = False) -> list[VectorRef]:
        """Names of the current versions, in order; or of all, of each name the current one first."""
        with self._lock:
            found = [
                VectorRef(version.registered.id) if self._is_current(version) else version.registered.ref
                for version in (self._versions if all_versions else self._current).values()
            ]
        return sorted(found, key=ref_order)

    def infos(self, *, all_versions: bool = False) -> list[VectorInfo]:
        """Descriptions of all that `refs` names, in its order."""
        found = map(self.info, self.refs(all_versions=all_versions))
        return [info for info in found if info is not None]  # None was unloaded meanwhile

    def count(self) -> int:
        """How many versions are loaded."""
        return len(self._versions)

    def info(self, ref: VectorRef) -> VectorInfo | None:
        """The description of the pinned version, or else of the current one; None when it is not loaded."""
        version = self._version(ref)
        return None if version is None else self._describe(version)

    def find(self, ref: VectorRef) -> RegisteredVector | None:
        """The pinned version, or else the current one; None when it is not loaded."""
        version = self._version(ref)
        return None if version is None else version.registered

    def facts(self, ref: VectorRef) -> VectorFacts | None:
        """What admission needs to know of that version."""
        found = self.find(ref)
        return None if found is None else found.facts

    def lease(self) -> VectorLease:
        """A lease for a request that is about to begin."""
        return VectorLease(self)

    def memory(self) -> VectorMemory:
        """The memory that loaded vectors take now."""
        return VectorMemory(self._used, self._limit)

    def table_rows(self) -> tuple[int, int]:
        """Rows in use of the table's fullest block, and rows of each block."""
        return self._table.fullest()

    def load(
        self,
        name: str,
        source: Path | bytes,
        sha256: str | None = None,
        *,
        replace: bool = False,
        approve: Approve | None = None,
    ) -> VectorInfo:
        """Loads a vector file under a name, wholly or not at all; the same file under it again changes nothing.

        Args:
            name: `vectors/{id}` or the id alone.
            source: The file, or its bytes.
            sha256: Expected digest, lowercase hex; None checks none.
            replace: Make it current though another version is, which stays loaded under its digest.
            approve: Looks at what is about to become current; nothing changes where it raises.

        Raises:
            InvalidRequestError: The name is malformed.
            VectorFileError: The file is wrong, or has another digest; all problems at once.
            VectorMismatchError: The file was made for another model.
            VectorExistsError: Another version is current, and is not to be replaced.
            VectorMemoryError: Loaded vectors would take too much memory.
            VectorTableFullError: There is no room for the vector's rows.
            OSError: The file can't be read; FileNotFoundError where there is none.
        """
        ref = _plain_ref(name)
        data, origin = (
            (source, ref.id) if isinstance(source, bytes) else (read_vector_file(source), source.name)
        )
        vector = parse_vector(data, origin)
        if sha256 and sha256 != vector.sha256:
            raise VectorFileError(origin, [f"its SHA-256 is {vector.sha256}, not {sha256}"], "sha256")
        check_model(origin, vector, self._loaded)
        with self._changing:
            current, version = self._current.get(ref.id), self._versions.get((ref.id, vector.sha256))
            if current is not None and current is not version and not replace:
                raise VectorExistsError(
                    f"vectors/{ref.id} is loaded with the digest {current.registered.vector.sha256}; "
                    "replace it, or load the other file under another name"
                )
            if version is None:
                version = self._place(ref.id, vector, approve)
            elif current is not version and approve is not None:
                approve(version.registered)
            with self._lock:
                self._versions[version.key] = self._current[ref.id] = version
        return self._describe(version)

    def _place(self, vector_id: str, vector: SteeringVector, approve: Approve | None) -> Version:
        needed = memory_of(vector)
        if self._used + needed > self._limit:
            raise VectorMemoryError(needed=needed, used=self._used, limit=self._limit)
        registered = place(vector_id, vector, self._table)
        try:
            if approve is not None:
                approve(registered)
        except BaseException:
            self._give_back(registered)
            raise
        version = Version(registered)
        with self._lock:
            self._used += needed
        return version

    def unload(self, name: str) -> Unloading:
        """Unloads the version that a name means: nobody finds it any more, and requests that use it go on.

        Args:
            name: `vectors/{id}` or the id alone, for the current version, after which the plain name is free; or either
                with `@{sha256}`.

        Raises:
            InvalidRequestError: The name is malformed, or no such version is loaded.
        """
        ref = ref_of(name)
        with self._changing:
            with self._lock:
                version = self._version(ref)
                if version is None:
                    raise InvalidRequestError([not_loaded("name", ref)])
                info = self._describe(version)
                version.unloaded = True
                del self._versions[version.key]
                if self._is_current(version):
                    del self._current[ref.id]
                is_free = not version.leases
            if is_free:
                self._free(version)
        return Unloading(info, version.freed)

    def load_directory(self, directory: Path) -> tuple[list[VectorInfo], list[VectorFileError]]:
        """Loads every `*.safetensors` of a directory under its file name; a bad one does not stop the others.

        Files of other kinds that happen to be safetensors (recorded activations) are reported like bad ones, and so are
        links that lead out of the directory.
        """
        infos: list[VectorInfo] = []
        errors: list[VectorFileError] = []
        for path in sorted(directory.glob("*.safetensors")):
            try:
                check_inside(path, directory)
                infos.append(self.load(path.stem, path))
            except VectorFileError as error:
                errors.append(error)
            except (InvalidRequestError, EngineError) as error:
                errors.append(VectorFileError(path.name, [str(error)]))
            except OSError as error:  # its own text has an errno and the whole path
                errors.append(VectorFileError(path.name, [error.strerror or str(error)]))
        return infos, errors

    def _version(self, ref: VectorRef) -> Version | None:
        return self._current.get(ref.id) if ref.sha256 is None else self._versions.get((ref.id, ref.sha256))

    def _is_current(self, version: Version) -> bool:
        return self._current.get(version.registered.id) is version

    def _describe(self, version: Version) -> VectorInfo:
        current = self._is_current(version)
        return version.registered.describe(current=current, running_requests=len(version.leases))

    def acquire(self, ref: VectorRef, lease: VectorLease) -> Version | None:
        """For leases: the version that a name means, kept for a lease; None when it is not loaded."""
        with self._lock:
            version = self._version(ref)
            if version is not None:
                version.leases.add(lease)
            return version

    def release(self, versions: Collection[Version], lease: VectorLease) -> None:
        """For leases: gives versions back that were kept for a lease."""
        with self._lock:
            for version in versions:
                version.leases.discard(lease)
            ended = [version for version in versions if version.unloaded and not version.leases]
        for version in ended:
            self._free(version)

    def _free(self, version: Version) -> None:
        self._give_back(version.registered)
        with self._lock:
            self._used -= memory_of(version.registered.vector)
        version.freed.set_result(None)

    def _give_back(self, registered: RegisteredVector) -> None:
        for block, slots in registered.slots_by_block():
            self._table.release(block, slots)


def ref_order(ref: VectorRef) -> tuple[str, str]:
    """Sorts names: by id, the plain one first."""
    return ref.id, ref.sha256 or ""


def not_loaded(field: str, ref: VectorRef) -> Violation:
    """What to say of a name that means no loaded vector."""
    what = f"no vector {ref.id!r} is loaded"
    if ref.sha256 is not None:
        what = f"no version of {ref.id!r} with the digest {ref.sha256} is loaded"
    return Violation(field, what, ViolationKind.NOT_FOUND)


def ref_of(name: str) -> VectorRef:
    """What the name of a request means.

    Raises:
        InvalidRequestError: It is malformed.
    """
    try:
        return VectorRef.parse(name)
    except ValueError as error:
        raise InvalidRequestError([Violation("name", str(error))]) from error


def _plain_ref(name: str) -> VectorRef:
    ref = ref_of(name)
    if ref.sha256 is not None:
        raise InvalidRequestError(
            [Violation("name", "a name to load has no @{sha256}; use the sha256 field")]
        )
    return ref
