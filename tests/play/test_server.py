"""The server's protocol: who is let in, what is too much, and that those who leave leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import threading
import time

import pytest

pytest.importorskip("starlette", reason="the page needs starlette and uvicorn: pip install 'wm-engine[play]'")
pytest.importorskip("httpx2", reason="starlette's test client needs httpx2: pip install 'wm-engine[test]'")

from play.playing import unpacked
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from wm_engine.errors import WMEngineError
from wm_engine.play import server
from wm_engine.play.visit import Visit

BASE = "http://localhost:8000"
OURS = {"origin": BASE}


@pytest.fixture
def visitors(vectors):
    made = server.Visitors(vectors, {"localhost"})
    yield made
    made.close()


@pytest.fixture
def client(visitors):
    return TestClient(visitors.app(), BASE)


def meet(client, headers=OURS):
    return client.websocket_connect("ws://localhost:8000/dream", headers=headers)


def heard(socket, kind: str) -> dict:
    while True:
        header, _ = unpacked(socket.receive_bytes())
        if header["type"] == kind:
            return header


def parted(socket) -> WebSocketDisconnect:
    with pytest.raises(WebSocketDisconnect) as parting:
        heard(socket, "nothing more")
    return parting.value


def test_the_page_is_served_and_nothing_else(client):
    for address, (_, kind) in server._PAGE.items():
        answer = client.get(address)
        assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, kind)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace("https:", "")
    for address in ("/play.py", "/../server.py", "/%2e%2e/server.py", "/page/play.js", "/etc/passwd", "//etc/passwd"):
        assert client.get(address).status_code == 404
    assert client.post("/").status_code == 405


def test_a_visitor_plays(client):
    with meet(client) as socket:
        assert heard(socket, "welcome")["task"] == "toys.task"
        heard(socket, "begun")
        socket.send_text(json.dumps({"type": "begin_at", "episode": 2, "step": 3, "seed": 5}))
        begun = heard(socket, "begun")
        assert (begun["episode"], begun["step"], begun["seed"]) == (2, 3, 5)
        while heard(socket, "picture")["steps"] < 3:
            pass
        socket.send_text('{"type": "nonsense"}')
        assert "nonsense" in heard(socket, "refused")["text"]
        socket.send_text('{"type": "act", "action": [1, 2]}')
        assert "must be 3 numbers" in heard(socket, "refused")["text"]
        heard(socket, "picture")  # and it goes on


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:8001"},
        {"origin": "http://localhost"},
        {"origin": "null"},
        {"origin": "file://localhost:8000"},
        # A name of theirs that was made to lead here: its page and its Host agree, but it is not this server's name.
        {"origin": "http://rebound.example:8000", "host": "rebound.example:8000"},
    ],
)
def test_other_pages_are_not_let_in(client, visitors, headers):
    with pytest.raises(WebSocketDisconnect), meet(client, headers):
        pass
    assert not visitors.here


def test_the_page_is_not_served_under_other_names(client):
    assert client.get("/", headers={"host": "rebound.example:8000"}).status_code == 421
    for host in ("127.0.0.1:8000", "[::1]:8000", "192.168.1.7", "LOCALHOST"):
        assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", [None, "", ":8000", "[::1", "example.org", "127.0.0.1.example.org"])
def test_hosts_that_are_none_of_ours(host):
    assert not server.is_here(host, {"localhost"})


def test_large_messages_end_the_visit(client, visitors):
    with meet(client) as socket:
        socket.send_text(" " * 5000)
        assert (parting := parted(socket)).code == 1009
        assert "at most 4096 bytes" in parting.reason


def test_messages_that_are_no_text_end_the_visit(client):
    with meet(client) as socket:
        socket.send_bytes(b"abc")
        assert parted(socket).code == 1003


def test_too_many_messages_end_the_visit(client, monkeypatch):
    monkeypatch.setattr(server, "_MESSAGES_PER_SECOND", 1)
    monkeypatch.setattr(server, "_MESSAGES_AT_ONCE", 20)
    with meet(client) as socket:
        for _ in range(400):
            socket.send_text('{"type": "temperature", "value": 1.0}')
        assert (parting := parted(socket)).code == 1008
        assert "messages a second" in parting.reason


def test_a_rate_limit_lets_bursts_pass_and_floods_not():
    now = [0.0]
    limit = server.RateLimit(10.0, 5, lambda: now[0])
    assert [limit.passes() for _ in range(6)] == [True] * 5 + [False]
    now[0] += 1.0
    assert [limit.passes() for _ in range(6)] == [True] * 5 + [False]


def test_there_is_room_for_so_many_visitors(client, visitors, monkeypatch):
    monkeypatch.setattr(server, "MOST_VISITORS", 2)
    with meet(client) as one, meet(client) as other:
        for socket in (one, other):
            heard(socket, "picture")
        with meet(client) as late:
            assert (parting := parted(late)).code == 1013
            assert "2 visitors are here already" in parting.reason
        heard(one, "picture")


def test_who_is_silent_for_long_is_asked_to_leave(client, monkeypatch):
    monkeypatch.setattr(server, "_IDLE_SECONDS", 0.2)
    with meet(client) as socket:
        assert "nothing was heard of you" in parted(socket).reason


def test_a_port_in_use_is_refused_in_words():
    with contextlib.closing(server.listen_on("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(WMEngineError, match=rf"port {port} of 127\.0\.0\.1 cannot be listened on.*--port"):
            server.listen_on("127.0.0.1", port)


def test_an_address_that_is_none_is_refused_in_words():
    with pytest.raises(WMEngineError, match=r"port 8000 of no\.such\.host\.invalid cannot be listened on"):
        server.listen_on("no.such.host.invalid", 8000)


@contextlib.contextmanager
def served(shared):
    """A real server on a thread, as uvicorn runs it; gives its port and its visitors."""
    visitors = server.Visitors(shared, {"127.0.0.1"})
    bound = server.listen_on("127.0.0.1", 0)
    running = server.make_server(visitors.app())
    thread = threading.Thread(target=asyncio.run, args=(running.serve([bound]),))
    thread.start()
    try:
        yield bound.getsockname()[1], visitors
    finally:
        running.should_exit = True
        thread.join()
        bound.close()
        visitors.close()


def settled(count) -> int:
    """What ``count`` says when it says the same for a while: those who leave take a moment."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < 1.0:
        time.sleep(0.05)
        if (now := count()) != last:
            last, since = now, time.monotonic()
    return last


@pytest.mark.slow
def test_a_thousand_reconnects_leak_nothing(vectors):
    connect = pytest.importorskip("websockets.sync.client").connect

    def left() -> tuple[int, int, int]:
        gc.collect()
        there = sum(type(thing) is Visit for thing in gc.get_objects())
        return len(os.listdir("/proc/self/fd")), threading.active_count(), there

    with served(vectors) as (port, visitors):

        def visit() -> None:
            with connect(f"ws://127.0.0.1:{port}/dream", origin=f"http://127.0.0.1:{port}", compression=None) as socket:
                heard_from(socket, "picture")

        for _ in range(20):
            visit()
        before = settled(left)
        for _ in range(1000):
            visit()
        assert settled(left) == before
        assert not visitors.here


def heard_from(socket, kind: str) -> dict:
    while True:
        header, _ = unpacked(socket.recv())
        if header["type"] == kind:
            return header


def test_uvicorn_too_ends_visits_with_large_messages(vectors):
    client = pytest.importorskip("websockets.sync.client")
    from websockets.exceptions import ConnectionClosed

    with (
        served(vectors) as (port, _),
        client.connect(f"ws://127.0.0.1:{port}/dream", origin=f"http://127.0.0.1:{port}") as socket,
    ):
        heard_from(socket, "picture")
        socket.send(" " * 5000)
        with pytest.raises(ConnectionClosed) as parting:
            heard_from(socket, "nothing more")
        assert parting.value.rcvd.code == 1009
