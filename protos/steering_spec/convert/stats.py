"""What a running server tells about itself, from and to protobuf."""

from __future__ import annotations

from datetime import UTC, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from steering.v1 import model_pb2
from steering_spec.resources import ServerStats


def stats_to_proto(stats: ServerStats) -> model_pb2.ServerStats:
    """Writes a server's stats."""
    started, uptime = Timestamp(), Duration()
    started.FromDatetime(stats.started)
    uptime.FromTimedelta(timedelta(seconds=stats.uptime_seconds))
    return model_pb2.ServerStats(
        versions=stats.versions,
        start_time=started,
        uptime_duration=uptime,
        serving=stats.serving,
        device=stats.device,
        running_completion_count=stats.running_completions,
        queued_request_count=stats.queued_requests,
        unfinished_completion_count=stats.unfinished_completions,
        unfinished_completion_limit=stats.unfinished_limit,
        cache_page_token_count=stats.cache_page_tokens,
        cache_page_count=stats.cache_pages,
        used_cache_page_count=stats.used_cache_pages,
        generated_token_count=stats.generated_tokens,
        steered_row_count=stats.steered_rows,
        vector_count=stats.vectors,
        vector_memory_bytes=stats.vector_memory_bytes,
        vector_memory_limit_bytes=stats.vector_memory_limit_bytes,
        used_vector_row_count=stats.used_vector_rows,
        vector_row_count=stats.vector_rows,
    )


def stats_from_proto(message: model_pb2.ServerStats) -> ServerStats:
    """Reads a server's stats."""
    return ServerStats(
        versions=dict(message.versions),
        started=message.start_time.ToDatetime(tzinfo=UTC),
        uptime_seconds=message.uptime_duration.ToTimedelta().total_seconds(),
        serving=message.serving,
        device=message.device,
        running_completions=message.running_completion_count,
        queued_requests=message.queued_request_count,
        unfinished_completions=message.unfinished_completion_count,
        unfinished_limit=message.unfinished_completion_limit,
        cache_page_tokens=message.cache_page_token_count,
        cache_pages=message.cache_page_count,
        used_cache_pages=message.used_cache_page_count,
        generated_tokens=message.generated_token_count,
        steered_rows=message.steered_row_count,
        vectors=message.vector_count,
        vector_memory_bytes=message.vector_memory_bytes,
        vector_memory_limit_bytes=message.vector_memory_limit_bytes,
        used_vector_rows=message.used_vector_row_count,
        vector_rows=message.vector_row_count,
    )
