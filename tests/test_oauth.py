"""Tokens for Kafka from a token endpoint."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs

import pytest

from contextengine.oauth import ClientCredentials

SECRET = "s: planted%"  # noqa: S105


class TokenEndpoint(HTTPServer):
    """Gives its answers (status, body, headers) in turn, and the last one again; remembers what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/token"
        self.asked = []
        self.answers = []

    def gives(self, token, **more):
        self.answers.append((200, json.dumps({"access_token": token, "token_type": "Bearer", **more}), {}))


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked.append((self.headers["Authorization"], parse_qs(body)))
        status, answer, headers = self.server.answers[min(len(self.server.asked), len(self.server.answers)) - 1]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def endpoint():
    with TokenEndpoint() as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


def client_of(endpoint, scope=None):
    return ClientCredentials(endpoint.url, "engine@home", SECRET, scope)


async def test_a_token_is_asked_for_with_the_client_s_id_and_secret(endpoint):
    endpoint.gives("t1", expires_in=600)
    assert await client_of(endpoint, scope="kafka").token() == "t1"
    ((authorization, form),) = endpoint.asked
    assert base64.b64decode(authorization.removeprefix("Basic ")) == b"engine%40home:s%3A%20planted%25"
    assert form == {"grant_type": ["client_credentials"], "scope": ["kafka"]}


async def test_connections_share_a_token_until_it_nears_its_end(endpoint, monkeypatch):
    now = SimpleNamespace(monotonic=lambda: 1_000.0)
    monkeypatch.setattr("contextengine.oauth.time", now)
    endpoint.gives("t1", expires_in=600)
    endpoint.gives("t2", expires_in=600)
    client = client_of(endpoint)
    assert await asyncio.gather(*(client.token() for _ in range(5))) == ["t1"] * 5
    now.monotonic = lambda: 1_479.0
    assert await client.token() == "t1"
    now.monotonic = lambda: 1_480.0
    assert await client.token() == "t2"
    assert len(endpoint.asked) == 2


async def test_a_token_without_an_end_is_not_kept_for_ever(endpoint, monkeypatch):
    monkeypatch.setattr("contextengine.oauth.UNSAID_LIFE_S", 0)
    endpoint.gives("t1")
    endpoint.gives("t2")
    client = client_of(endpoint)
    assert [await client.token(), await client.token()] == ["t1", "t2"]


@pytest.mark.parametrize(
    "answer",
    [
        (401, '{"error": "invalid_client"}', {}),
        (302, "", {"Location": "http://127.0.0.1:1/elsewhere"}),
        (200, "<html>", {}),
        (200, "[]", {}),
        (200, '{"access_token": null}', {}),
    ],
)
async def test_what_is_no_token_is_a_failed_connection_that_names_the_endpoint_and_no_secret(endpoint, answer):
    """The secret does not follow a redirect: it would come to somebody else."""
    endpoint.answers = [answer]
    with pytest.raises(OSError, match=endpoint.url) as failed:
        await client_of(endpoint).token()
    assert "planted" not in repr(failed.value)
    endpoint.gives("t1")
    endpoint.answers.pop(0)
    assert await client_of(endpoint).token() == "t1"


async def test_an_endpoint_that_does_not_answer_is_a_failed_connection():
    with pytest.raises(OSError, match="refused"):
        await ClientCredentials("http://127.0.0.1:1/token", "engine", SECRET, None).token()
