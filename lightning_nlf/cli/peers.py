"""Death of a rank on any machine: every rank keeps a TCP connection to rank 0, which the system closes when it dies.

torchrun and srun start the ranks themselves and watch only those of their own machine. A rank elsewhere would learn of
a death from a failed collective, which does not say who died, or would wait for half an hour.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable, Sequence

import lightning as L
import torch

_GREETING = struct.Struct("!16si")  # the token of the run, and the rank that connects
_NEWS = struct.Struct("!i")  # the rank that died, or _ENDED
_ENDED = -1  # the sender has finished
CONNECT_SECONDS = 60.0
# A machine that is switched off or cut off closes no connection; it is found after 10 + 4 · 5 seconds.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class PeerWatch:
    """Learns which rank of a run died first.

    Rank 0 is connected to all other ranks, and tells them who died. They learn of the death of rank 0 from the end of
    their connection.

    Args:
        rank: This rank.
        names: A description of each rank, for messages.
        links: Connected sockets by rank: all others on rank 0, and only rank 0 on the others.
    """

    def __init__(self, rank: int, names: Sequence[str], links: dict[int, socket.socket]) -> None:
        self.rank, self.names, self._links = rank, names, links
        self._dead: int | None = None
        self._noticed = threading.Event()
        self.handled = False

    @property
    def speaks(self) -> bool:
        """Whether this rank prints the message: rank 0, or rank 1 after the death of rank 0."""
        return self.rank == (1 if self._dead == 0 else 0)

    def start(self, stuck: Callable[[str], None]) -> None:
        """Begin to watch. `stuck` receives the description of a dead rank, in the thread of the watch."""

        def watch() -> None:
            if (dead := self._wait_for_news()) is not None:
                self._dead = dead
                self._noticed.set()
                stuck(self._description())

        threading.Thread(target=watch, name="peer-watch", daemon=True).start()

    def dead_rank(self, patience: float = 0.0) -> str | None:
        """Describe the rank that died first, or return None if no rank dies within `patience` seconds."""
        return self._description() if self._noticed.wait(patience) else None

    def finish(self) -> None:
        """Inform the other ranks that this one ends in good order."""
        for link in self._links.values():
            _send(link, _ENDED)

    def _description(self) -> str:
        assert self._dead is not None
        return f"{self.names[self._dead]} died or was cut off"

    def _wait_for_news(self) -> int | None:
        """Wait until a rank dies. Returns None when all of the connected ranks have finished."""
        with selectors.DefaultSelector() as selector:
            for peer, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, peer)
            while selector.get_map():
                for key, _ in selector.select():
                    link = self._links[key.data]
                    news = _receive(link)
                    if news == _ENDED:
                        selector.unregister(link)
                        continue
                    dead = key.data if news is None else news
                    for peer_link in self._links.values():
                        _send(peer_link, dead)
                    return dead
        return None


def join(trainer: L.Trainer, ready: bool) -> tuple[PeerWatch, list[bool]]:
    """Connect this rank to rank 0. All ranks must call this together, after the process group has been set up.

    Args:
        ready: A fact about this rank.

    Returns:
        The watch, not started yet, and the fact of each rank.
    """
    environment, rank = trainer.strategy.cluster_environment, trainer.global_rank  # type: ignore[attr-defined]
    name = f"rank {rank} (process {os.getpid()} on node {trainer.node_rank}, {socket.gethostname()})"
    server, token = None, b""
    if rank == 0:
        family = socket.getaddrinfo(environment.main_address, None)[0][0]
        server, token = socket.create_server(("", 0), family=family), secrets.token_bytes(16)
    card = name, ready, token, server.getsockname()[1] if server else 0
    cards: list[tuple[str, bool, bytes, int]] = [card] * trainer.world_size
    torch.distributed.all_gather_object(cards, card)
    *_, token, port = cards[0]
    if server is not None:
        with server:
            links = _accept(server, token, trainer.world_size)
    else:
        links = _connect(environment.main_address, port, _GREETING.pack(token, rank))
    if len(links) < (trainer.world_size - 1 if rank == 0 else 1):
        warnings.warn(f"rank {rank} is not connected to all ranks, so the death of one may hang the run", stacklevel=2)
    return PeerWatch(rank, [name for name, *_ in cards], links), [fact for _, fact, *_ in cards]


def _accept(server: socket.socket, token: bytes, world_size: int) -> dict[int, socket.socket]:
    """Accept a connection from each other rank. Connections without the token of the run are closed."""
    links: dict[int, socket.socket] = {}
    deadline = time.monotonic() + CONNECT_SECONDS
    while len(links) < world_size - 1 and (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            link, _ = server.accept()
            link.settimeout(5.0)
            greeting = link.recv(_GREETING.size, socket.MSG_WAITALL)
        except OSError:
            continue
        received_token, rank = _GREETING.unpack(greeting) if len(greeting) == _GREETING.size else (b"", 0)
        if secrets.compare_digest(received_token, token) and 0 < rank < world_size:
            links[rank] = _kept_alive(link)
        else:
            link.close()
    return links


def _connect(host: str, port: int, greeting: bytes) -> dict[int, socket.socket]:
    try:
        link = socket.create_connection((host, port), CONNECT_SECONDS)
        link.sendall(greeting)
    except OSError:
        return {}
    return {0: _kept_alive(link)}


def _kept_alive(link: socket.socket) -> socket.socket:
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # macOS lacks one of them
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def _send(link: socket.socket, news: int) -> None:
    try:
        link.sendall(_NEWS.pack(news))
    except OSError:
        return  # that rank has ended


def _receive(link: socket.socket) -> int | None:
    """The next message of a rank; None if the rank died."""
    try:
        message = link.recv(_NEWS.size, socket.MSG_WAITALL)
    except OSError:
        return None
    return _NEWS.unpack(message)[0] if len(message) == _NEWS.size else None
