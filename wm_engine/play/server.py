"""The server: one page, one websocket a visitor, on this machine alone unless told otherwise.

No request names a file: the page's three files are read when the server is made, and served under three fixed
addresses. A websocket is taken from this page alone (its Origin), from few visitors at a time, in small messages, and
not too many of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import ipaddress
import socket
import time
import webbrowser
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import torch

from wm_engine.errors import MissingDependencyError, WMEngineError
from wm_engine.machine import available_cpus
from wm_engine.play.messages import MOST_BYTES, Message, packed, read_message
from wm_engine.play.played_run import PlayedRun
from wm_engine.play.visit import Visit

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"wm-engine play needs a package that is not installed ({error.name}): pip install 'wm-engine[play]'"
    ) from error

MOST_VISITORS = 16
_MESSAGES_PER_SECOND, _MESSAGES_AT_ONCE = 120, 240
# Without a word for so long, a visitor has left the page open: dreams cost a core's time.
_IDLE_SECONDS = 1800.0
_PAGE = {
    "/": ("index.html", "text/html"),
    "/play.css": ("play.css", "text/css"),
    "/play.js": ("play.js", "text/javascript"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_TOO_MUCH, _TOO_LARGE, _FULL = 1008, 1009, 1013


def is_here(host: str | None, names: Collection[str]) -> bool:
    """Say whether a Host header names this server: one of ``names`` or an address, whatever the port.

    A foreign page whose own name was made to lead here (DNS rebinding) gives itself away by that name.
    """
    try:
        name = urlsplit(f"//{host}").hostname if host else None
    except ValueError:
        return False
    if name is None:
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return name.lower() in names


def is_ours(origin: str | None, host: str | None) -> bool:
    """Say whether a websocket's Origin is the page that this server's ``host`` has served."""
    if origin is None or host is None:
        return False
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and parts.netloc == host


class RateLimit:
    """Lets ``per_second`` messages pass, and ``at_once`` of them in a burst (a token bucket)."""

    def __init__(self, per_second: float, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._at_once, self._clock = per_second, at_once, clock
        self._left, self._last = float(at_once), clock()

    def passes(self) -> bool:
        """Count a message; False where it is one too many."""
        now = self._clock()
        self._left = min(self._at_once, self._left + (now - self._last) * self._per_second)
        self._last = now
        self._left -= 1.0
        return self._left >= 0.0


class Visitors:
    """All who are here. Dreams are dreamt on worker threads, so that sockets are answered meanwhile."""

    def __init__(self, shared: PlayedRun, names: Collection[str]) -> None:
        self._shared, self._names = shared, frozenset(names)
        self._workers = ThreadPoolExecutor(
            max(1, min(available_cpus(), 8)), "dream", initializer=torch.set_num_threads, initargs=(1,)
        )
        self.here: set[Visit] = set()

    def app(self) -> Starlette:
        """Make the application."""
        page = importlib.resources.files("wm_engine.play") / "page"
        routes = [self._file((page / name).read_bytes(), address, kind) for address, (name, kind) in _PAGE.items()]
        return Starlette(routes=[*routes, WebSocketRoute("/dream", self._meet)])

    def close(self) -> None:
        """Wait for the worker threads to end."""
        self._workers.shutdown()

    def _file(self, content: bytes, address: str, kind: str) -> Route:
        async def answer(request: Request) -> Response:
            if not is_here(request.headers.get("host"), self._names):
                return PlainTextResponse("this server goes by another name", 421, _HEADERS)
            return Response(content, media_type=kind, headers=_HEADERS)

        return Route(address, answer)

    async def _meet(self, socket: WebSocket) -> None:
        host = socket.headers.get("host")
        if not is_here(host, self._names) or not is_ours(socket.headers.get("origin"), host):
            await socket.close(_TOO_MUCH)  # before it is accepted: answered with 403
            return
        await socket.accept()
        if len(self.here) >= MOST_VISITORS:
            await socket.close(_FULL, f"{MOST_VISITORS} visitors are here already; try again later")
            return
        visit = Visit(self._shared)
        self.here.add(visit)
        try:
            with contextlib.suppress(WebSocketDisconnect):
                await self._entertain(socket, visit)
        finally:
            self.here.discard(visit)
            # On its own: whoever cancels this must not leave a road or an encoder behind.
            self._workers.submit(visit.close)

    async def _entertain(self, socket: WebSocket, visit: Visit) -> None:
        inbox: asyncio.Queue[Message] = asyncio.Queue()
        playing = asyncio.create_task(self._play(socket, visit, inbox))
        listening = asyncio.create_task(_listen(socket, inbox))
        try:
            await asyncio.wait({playing, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            playing.cancel()
            listening.cancel()
            await asyncio.wait({playing, listening})
        if not listening.cancelled():
            await socket.close(*listening.result())
        elif not playing.cancelled():
            playing.result()  # raises what ended it

    async def _play(self, socket: WebSocket, visit: Visit, inbox: asyncio.Queue[Message]) -> None:
        loop = asyncio.get_running_loop()
        interval = 1.0 / (self._shared.steps_per_second * self._shared.pictures_per_step)
        for told in await loop.run_in_executor(self._workers, visit.welcome):
            await socket.send_bytes(told)
        due = loop.time()
        while True:
            while visit.rests or not inbox.empty():
                for told in await loop.run_in_executor(self._workers, visit.hear, await inbox.get()):
                    await socket.send_bytes(told)
            pictures = await loop.run_in_executor(self._workers, visit.advance)
            for told in pictures:
                # A picture that comes late moves the later ones: nothing is made up for in a rush.
                due = max(due + interval, loop.time())
                await asyncio.sleep(due - loop.time())
                await socket.send_bytes(told)


async def _listen(socket: WebSocket, inbox: asyncio.Queue[Message]) -> tuple[int, str]:
    """Put a visitor's messages into the inbox; returns with which code and words to part."""
    limit = RateLimit(_MESSAGES_PER_SECOND, _MESSAGES_AT_ONCE)
    while True:
        try:
            heard: Any = await asyncio.wait_for(socket.receive(), _IDLE_SECONDS)
        except asyncio.TimeoutError:
            return 1000, "nothing was heard of you for half an hour"
        if heard["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        text = heard.get("text")
        if text is None:
            return 1003, "messages must be text"
        if len(text) > MOST_BYTES:
            return _TOO_LARGE, f"messages must have at most {MOST_BYTES} bytes"
        if not limit.passes() or inbox.qsize() > _MESSAGES_AT_ONCE:
            return _TOO_MUCH, f"more than {_MESSAGES_PER_SECOND} messages a second"
        try:
            inbox.put_nowait(read_message(text))
        except ValueError as error:
            await socket.send_bytes(packed({"type": "refused", "of": "message", "text": str(error)}))


def listen_on(host: str, port: int) -> socket.socket:
    """Bind a port, 0 for any that is free; WMEngineError in words where that cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(64)
        except BaseException:
            bound.close()
            raise
        return bound
    except OSError as error:
        raise WMEngineError(
            f"port {port} of {host} cannot be listened on ({error.strerror or error}). Choose another one: --port "
            f"{port + 1 if 0 < port < 65535 else 8000}, or --port 0 for any that is free."
        ) from error


def make_server(app: Starlette) -> uvicorn.Server:
    """Make a server of the application, with the limits that belong to it."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off",
        limit_concurrency=8 * MOST_VISITORS, ws="websockets-sansio", ws_max_size=MOST_BYTES,
        ws_per_message_deflate=False, timeout_graceful_shutdown=3,
    )  # fmt: skip
    return uvicorn.Server(config)


def serve(shared: PlayedRun, bound: socket.socket, host: str, open_page: bool, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C. ``bound``: see :func:`listen_on`; ``say``: told the address."""
    visitors = Visitors(shared, {"localhost", host.lower(), socket.gethostname().lower()})
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{bound.getsockname()[1]}/"
    say(address)
    if open_page:
        webbrowser.open(address)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            make_server(visitors.app()).run(sockets=[bound])
    finally:
        bound.close()
        visitors.close()
