"""The served model and its vectors, from and to protobuf."""

from __future__ import annotations

from steering.v1 import model_pb2, vector_pb2
from steering_spec.facts import ModelFacts
from steering_spec.resources import ModelInfo, VectorCentroids, VectorInfo, VectorLayer, VectorProbe


def model_to_proto(info: ModelInfo) -> model_pb2.Model:
    """Writes a model's description."""
    facts = info.facts
    return model_pb2.Model(
        name=facts.name,
        architecture=info.architecture,
        layer_count=facts.layer_count,
        hidden_size=info.hidden_size,
        vocab_size=facts.vocab_size,
        max_context_token_count=facts.max_context_tokens,
        dtype=info.dtype,
        config_digest=info.config_digest,
        tokenizer_digest=info.tokenizer_digest,
        chat_supported=facts.chat_supported,
        default_max_token_count=facts.default_max_tokens,
    )


def model_from_proto(message: model_pb2.Model) -> ModelInfo:
    """Reads a model's description."""
    return ModelInfo(
        facts=ModelFacts(
            name=message.name,
            layer_count=message.layer_count,
            vocab_size=message.vocab_size,
            max_context_tokens=message.max_context_token_count,
            default_max_tokens=message.default_max_token_count,
            chat_supported=message.chat_supported,
        ),
        architecture=message.architecture,
        hidden_size=message.hidden_size,
        dtype=message.dtype,
        config_digest=message.config_digest,
        tokenizer_digest=message.tokenizer_digest,
    )


def vector_to_proto(info: VectorInfo) -> vector_pb2.Vector:
    """Writes a vector's description."""
    return vector_pb2.Vector(
        name=info.name,
        sha256=info.sha256,
        description=info.description,
        model=info.model,
        layers=[
            vector_pb2.VectorLayer(layer=one.layer, strength=one.strength, residual_norm=one.residual_norm)
            for one in info.layers
        ],
        hidden_size=info.hidden_size,
        method=info.method,
        context_count=info.context_count,
        min_match_token_count=info.min_match_tokens,
        metadata=info.metadata,
        probes=[
            vector_pb2.VectorProbe(layer=one.layer, threshold=one.threshold, auc=one.auc)
            for one in info.probes
        ],
        centroids=[
            vector_pb2.VectorCentroids(layer=one.layer, count=one.count, min_cosine=one.min_cosine)
            for one in info.centroids
        ],
        running_request_count=info.running_requests,
        memory_bytes=info.memory_bytes,
    )


def vector_from_proto(message: vector_pb2.Vector) -> VectorInfo:
    """Reads a vector's description."""
    return VectorInfo(
        name=message.name,
        sha256=message.sha256,
        description=message.description,
        model=message.model,
        layers=tuple(VectorLayer(one.layer, one.strength, one.residual_norm) for one in message.layers),
        hidden_size=message.hidden_size,
        method=message.method,
        context_count=message.context_count,
        min_match_tokens=message.min_match_token_count,
        metadata=dict(message.metadata),
        probes=tuple(map(_probe_from_proto, message.probes)),
        centroids=tuple(map(_centroids_from_proto, message.centroids)),
        running_requests=message.running_request_count,
        memory_bytes=message.memory_bytes,
    )


def _probe_from_proto(message: vector_pb2.VectorProbe) -> VectorProbe:
    return VectorProbe(
        layer=message.layer,
        threshold=message.threshold if message.HasField("threshold") else None,
        auc=message.auc if message.HasField("auc") else None,
    )


def _centroids_from_proto(message: vector_pb2.VectorCentroids) -> VectorCentroids:
    return VectorCentroids(
        layer=message.layer,
        count=message.count,
        min_cosine=message.min_cosine if message.HasField("min_cosine") else None,
    )
