"""The command `steering-server`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from steering_engine.errors import EngineError
from steering_server import config as defaults
from steering_server.address import check_address
from steering_server.config import ServerConfig
from steering_server.errors import StartError
from steering_server.logs import LogFormat, configure_logging

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _option(name: str, help_text: str, **settings: Any) -> Any:
    """An option that can also be set by the environment, as STEERING_SERVER_NAME."""
    variable = "STEERING_SERVER_" + name.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    return typer.Option(name, help=help_text, envvar=variable, **settings)


@app.command()
def serve(
    *,
    model: Annotated[str, _option("--model", "`demo`, a folder, or a Hub id.")],
    vectors: Annotated[
        Path | None,
        _option(
            "--vectors", "Folder of vector files: loaded at the start, and the only one LoadVector reads."
        ),
    ] = None,
    host: Annotated[str, _option("--host", "Address to listen on.")] = defaults.DEFAULT_HOST,
    port: Annotated[int, _option("--port", "Port to listen on; 0 takes a free one.")] = defaults.DEFAULT_PORT,
    device: Annotated[str, _option("--device", "auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, _option("--dtype", "auto, float32, bfloat16 or float16.")] = "auto",
    tensor_parallel: Annotated[
        int,
        _option(
            "--tensor-parallel",
            "Devices that share the model, by transformers' own plan for it; the server starts a process for each.",
            min=1,
        ),
    ] = 1,
    max_concurrent: Annotated[
        int | None, _option("--max-concurrent", "Requests decoded at once; more wait.", min=1)
    ] = None,
    max_context: Annotated[
        int | None, _option("--max-context", "Most prompt plus generated tokens of a request.", min=1)
    ] = None,
    cache_tokens: Annotated[
        int | None, _option("--cache-tokens", "Tokens that the KV cache holds.", min=1)
    ] = None,
    default_max_tokens: Annotated[
        int | None,
        _option("--default-max-tokens", "Tokens generated when a request does not say how many.", min=1),
    ] = None,
    deterministic: Annotated[
        bool | None,
        _option(
            "--deterministic/--no-deterministic",
            "A seeded request gives the same tokens and log-probabilities, to the bit, alone and in any batch "
            "(float32 on a CPU). Where that is possible, unless said otherwise.",
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool | None,
        _option(
            "--cuda-graphs/--no-cuda-graphs",
            "Decoding runs as captured CUDA graphs (bfloat16 or float16 on a CUDA device). Where that is possible, "
            "unless said otherwise.",
        ),
    ] = None,
    offload_gib: Annotated[
        float | None,
        _option(
            "--offload-gib",
            "Memory of the host, in GiB, for cached rows of requests that give way to others (CUDA devices only).",
            min=0,
        ),
    ] = None,
    vector_table_bytes: Annotated[
        int | None, _option("--vector-table-bytes", "Memory that loaded vectors may take.", min=1)
    ] = None,
    max_queued: Annotated[
        int, _option("--max-queued", "Unfinished requests above which new ones are refused.", min=1)
    ] = defaults.DEFAULT_MAX_QUEUED,
    grace: Annotated[
        float, _option("--grace", "Seconds that running requests get to finish when the server stops.", min=0)
    ] = defaults.DEFAULT_GRACE_SECONDS,
    log_format: Annotated[
        LogFormat, _option("--log-format", "How logs are written to stderr.")
    ] = LogFormat.TEXT,
    insecure: Annotated[
        bool, _option("--insecure", "Listen on a host other than loopback without TLS.", is_flag=True)
    ] = False,
) -> None:
    """Serves a language model over gRPC, steered by vectors at exactly the positions that a request names.

    Each option is also read from the environment, as STEERING_SERVER_MODEL and so on; the command line wins.
    The line `steering-server: listening on HOST:PORT (...)` on stdout says that the server is ready.
    """
    try:
        config = ServerConfig(
            model=model,
            vectors=vectors,
            host=host,
            port=port,
            device=device,
            dtype=dtype,
            tensor_parallel=tensor_parallel,
            max_concurrent=max_concurrent,
            max_context=max_context,
            cache_tokens=cache_tokens,
            default_max_tokens=default_max_tokens,
            deterministic=deterministic,
            cuda_graphs=cuda_graphs,
            offload_gib=offload_gib,
            vector_table_bytes=vector_table_bytes,
            max_queued=max_queued,
            grace_seconds=grace,
            insecure=insecure,
        )
        check_address(config.host, config.port)
        configure_logging(log_format)
        # Imported here: torch takes seconds, which neither --help nor a wrong option should cost.
        from steering_server.process import run_server  # noqa: PLC0415

        run_server(config, lambda line: print(line, flush=True))
    except (StartError, EngineError) as error:
        print(f"steering-server: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from None


def main() -> None:
    """Runs the command."""
    app()
