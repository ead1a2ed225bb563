"""The processes of this machine that share a model, as torch.distributed knows them: how they find each other.

All of it stays on the loopback interface. Rank 0 is the driver, and holds the store where the others meet.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import Store, _abort_process_group

_HOST = "127.0.0.1"
_TIMEOUT = timedelta(minutes=30)  # of one exchange; processes may load their shares at very different speeds


def open_store(processes: int) -> tuple[Store, int]:
    """The store in which the processes meet, and the port at which it is found."""
    _set_environment()
    listener = socket.create_server((_HOST, 0))
    port: int = listener.getsockname()[1]
    store = TCPStore(
        _HOST,
        port,
        processes,
        is_master=True,
        wait_for_workers=False,
        timeout=_TIMEOUT,
        master_listen_fd=listener.detach(),  # torch's own would listen on every address of the machine
    )
    return store, port


def connect(port: int, rank: int, processes: int) -> Store:
    """The driver's store; the driver learns that this process is there."""
    store: Store = TCPStore(_HOST, port, processes, is_master=False, timeout=_TIMEOUT)
    store.set(_key(rank), "")
    return store


def all_connected(store: Store, processes: int) -> bool:
    """Whether all others have connected to the driver's store."""
    return store.check([_key(rank) for rank in range(1, processes)])


def join(store: Store, rank: int, processes: int) -> None:
    """Makes this process a member of the group, with a device of its own; returns when all have come."""
    device = None
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        torch.accelerator.set_device_index(rank)
        device = torch.device(accelerator.type, rank)
    dist.init_process_group(
        dist.get_default_backend_for_device(device or "cpu"),
        store=store,
        rank=rank,
        world_size=processes,
        timeout=_TIMEOUT,
        device_id=device,
    )


def leave() -> None:
    """Leaves the group, if this process is in it."""
    if dist.is_initialized():
        dist.destroy_process_group()
    os.environ.pop("LOCAL_RANK", None)  # else other libraries would look for the rest of the group


def give_up() -> None:
    """Ends what this process is waiting for, because another one is lost."""
    # Sockets notice by themselves. CUDA devices would wait until the time of the exchange is up.
    if dist.is_initialized() and dist.get_backend() == "nccl":
        _abort_process_group()


def share(tensor: torch.Tensor) -> None:
    """Makes a tensor what it is at the driver, in place; every process calls this."""
    whole = tensor.contiguous()
    dist.broadcast(whole, src=0)
    if whole is not tensor and dist.get_rank() != 0:
        tensor.copy_(whole)


def _key(rank: int) -> str:
    return f"connected {rank}"


def _set_environment() -> None:
    """Keeps what the processes say to each other on this machine, unless the user wants it otherwise."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, loopback)
    os.environ.setdefault("NCCL_GRAPH_MIXING_SUPPORT", "0")  # the library warns of slow graphs otherwise
    os.environ["LOCAL_RANK"] = "0"  # which device this process takes, as transformers reads it
