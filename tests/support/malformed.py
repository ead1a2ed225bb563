"""Requests that no honest client sends: strategies made of the descriptors of all methods, so that none is left out.

A message is generated as bytes, field by field, with values at and beyond the edges of what a field may have; now and
then something is no field at all, has another field's wire type, or is cut off.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from steering.v1 import generation_pb2, vector_pb2
from steering_spec import limits

MAX_DEPTH = 6

TEXTS = (
    b"",
    b"hi",
    b"calm",
    b"vectors/calm",
    b"vectors/calm@" + b"0" * 64,
    b"models/tiny",
    b"calm.safetensors",
    b"../calm.safetensors",
    b"user",
    b"a\x00b",
    b"\xff\xfe",  # no UTF-8
    b"\xed\xa0\x80",  # a lone surrogate
    "\u202eü🦜".encode(),
    b"x" * 300,
    b"x" * 20_000,
)
INTEGERS = (0, 1, 2, 3, 20, 127, 128, -1, -2, 1025, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, -(2**63))
NUMBERS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e30, -1e30, 5e-324, math.nan, math.inf, -math.inf, 101.0, 1e300)

_Type = FieldDescriptor
_WIRE = {
    **dict.fromkeys((_Type.TYPE_DOUBLE, _Type.TYPE_FIXED64, _Type.TYPE_SFIXED64), 1),
    **dict.fromkeys((_Type.TYPE_STRING, _Type.TYPE_BYTES, _Type.TYPE_MESSAGE), 2),
    **dict.fromkeys((_Type.TYPE_FLOAT, _Type.TYPE_FIXED32, _Type.TYPE_SFIXED32), 5),
}


def varint(number: int) -> bytes:
    """A varint; negative numbers as 64 bits of two's complement."""
    number &= 2**64 - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def tagged(number: int, wire: int, payload: bytes) -> bytes:
    """One field as it travels."""
    return varint(number << 3 | wire) + (varint(len(payload)) if wire == 2 else b"") + payload


def nested(path: Iterable[int], payload: bytes) -> bytes:
    """A payload inside of messages, the innermost of which has the last of these field numbers."""
    for number in reversed(list(path)):
        payload = tagged(number, 2, payload)
    return payload


@cache
def messages(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[bytes]:
    """Bytes that are more or less a message of this type."""
    fields = [
        _field(field, depth) for field in descriptor.fields if depth < MAX_DEPTH or not field.message_type
    ]
    if not fields:
        return _garbage()
    several = st.lists(st.one_of(fields), max_size=4).map(b"".join)
    return st.one_of(*[several] * 10, _garbage(), st.tuples(several, _garbage()).map(b"".join))


def _field(field: FieldDescriptor, depth: int) -> st.SearchStrategy[bytes]:
    wire = _WIRE.get(field.type, 0)
    values = _values(field, wire, depth)
    one = values.map(lambda payload: tagged(field.number, wire, payload))
    if not field.is_repeated:
        return one
    many = st.integers(1, 3) | st.sampled_from((17, 300))
    repeated = st.tuples(one, many).map(lambda drawn: drawn[0] * drawn[1])
    if wire == 2:
        return repeated
    packed = st.lists(values, max_size=4).map(lambda items: tagged(field.number, 2, b"".join(items)))
    return repeated | packed


def _values(field: FieldDescriptor, wire: int, depth: int) -> st.SearchStrategy[bytes]:
    if field.message_type is not None:
        return st.deferred(lambda: messages(field.message_type, depth + 1))
    if wire == 2:
        return st.sampled_from(TEXTS)
    if wire == 1:
        return st.sampled_from(NUMBERS).map(lambda number: struct.pack("<d", number))
    if wire == 5:
        singles = [number for number in NUMBERS if not math.isfinite(number) or abs(number) < 1e38]
        return st.sampled_from(singles).map(lambda number: struct.pack("<f", number))
    return st.sampled_from(INTEGERS).map(varint)


@cache
def _garbage() -> st.SearchStrategy[bytes]:
    """Unknown fields, fields of another type, ends of groups, lengths beyond the end, and plain noise."""
    unknown = st.builds(
        tagged, st.integers(1, 40) | st.just(2**29 - 1), st.sampled_from((0, 2, 5)), st.just(b"\x00" * 4)
    )
    lying = st.integers(1, 15).map(lambda number: varint(number << 3 | 2) + varint(2**31))
    return st.one_of(unknown, lying, st.binary(max_size=6), st.just(b"\x0b" * 200), st.just(b"\x80" * 11))


@dataclass(frozen=True, slots=True)
class Request:
    """Bytes for a method, by its path."""

    method: str
    data: bytes

    def __repr__(self) -> str:
        shown = repr(self.data) if len(self.data) < 500 else f"{self.data[:200]!r}… of {len(self.data)} bytes"
        return f"Request({self.method!r}, {shown})"


def requests(services: Iterable[ServiceDescriptor]) -> st.SearchStrategy[Request]:
    """Requests of all methods; now and then one method gets what another one takes."""
    methods = {
        f"/{service.full_name}/{method.name}": messages(method.input_type)
        for service in services
        for method in service.methods
    }
    paths = st.sampled_from([*methods, "/steering.v1.GenerationService/Nothing", "/", "/a/b"])
    own = [st.builds(Request, st.just(path), data) for path, data in methods.items()]
    return st.one_of([*own, st.builds(Request, paths, st.one_of(list(methods.values())))])


def cut(request: Request) -> Request:
    """The request without its last third."""
    return replace(request, data=request.data[: len(request.data) * 2 // 3])


def hostile() -> Iterator[Request]:
    """Requests that a generator would hardly find: huge, deep, or wrong in everything at once."""
    specs = {
        "a million ids": generation_pb2.GenerationSpec(tokens={"ids": [2**31 - 1] * 10**6}),
        "a million empty messages": b"\x22" + _sized(b"\x0a\x00" * 10**6),
        "a hundred thousand rules": b"\x32" + _sized(b"\x0a\x00" * 10**5),
        "a hundred thousand clauses": generation_pb2.GenerationSpec(
            text="hi", steering={"rules": [{"vector": "calm", "selector": {"include": [{}] * 10**5}}]}
        ),
        "a hundred thousand biases": generation_pb2.GenerationSpec(
            text="hi", sampling={"logit_bias": dict.fromkeys(range(-(10**5), 0), math.nan)}
        ),
        "stop sequences of a megabyte": generation_pb2.GenerationSpec(
            text="hi", sampling={"stop_sequences": ["x" * 10**6] * 7}
        ),
        "a text of seven megabytes": generation_pb2.GenerationSpec(text="ü" * 3_500_000),
        "an id of a megabyte": generation_pb2.GenerationSpec(text="hi", request_id="r\n" * 500_000),
        "a model's name of a megabyte": generation_pb2.GenerationSpec(text="hi", model="m" * 10**6),
        "groups in groups": b"\x0b" * 10**6,
        "messages in messages": nested([6, 1, 5, 1, 2], b"\x0a" * 10**5),
        "NaN everywhere": _filled(generation_pb2.GenerationSpec(text="hi"), math.nan),
        "infinity everywhere": _filled(generation_pb2.GenerationSpec(text="hi"), -math.inf),
    }
    for spec in specs.values():
        data = spec if isinstance(spec, bytes) else spec.SerializeToString()
        for method in ("Generate", "StreamGenerate"):
            yield Request(f"/steering.v1.GenerationService/{method}", nested([1], data))
    load, list_ = "/steering.v1.VectorService/LoadVector", "/steering.v1.VectorService/ListVectors"
    for source in (b"\x00" * 2**25, b"\xff" * (2**25 + 1), b"\x08" + b"\x00" * 7 + b"{}      "):
        yield Request(load, vector_pb2.LoadVectorRequest(name="v", safetensors=source).SerializeToString())
    for path in ("/etc/passwd", "../" * 10**5, "a/" * 10**5, "\0", ".", "x" * 10**6):
        yield Request(load, vector_pb2.LoadVectorRequest(name="v", path=path).SerializeToString())
    for token in ("=", "?" * 10**6, "/w==", "AAAA"):
        yield Request(list_, vector_pb2.ListVectorsRequest(page_token=token).SerializeToString())
    for size in (limits.MAX_REQUEST_BYTES + 1, limits.MAX_MESSAGE_BYTES + 1):
        yield Request("/steering.v1.ModelService/GetModel", bytes(size))


def _sized(payload: bytes) -> bytes:
    return varint(len(payload)) + payload


def _filled(message: Message, number: float) -> Message:
    """The message with every number that has a fraction set to this one, through all that is in it."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and message.WhichOneof(field.containing_oneof.name):
            continue
        if field.type in (_Type.TYPE_DOUBLE, _Type.TYPE_FLOAT) and not field.is_repeated:
            setattr(message, field.name, number)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            inner = getattr(message, field.name)
            _filled(inner.add() if field.is_repeated else inner, number)
    return message
