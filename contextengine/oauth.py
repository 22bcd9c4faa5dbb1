"""The tokens that Kafka asks for with SASL OAUTHBEARER.

aiokafka asks its provider once for each connection. What goes wrong is an OSError, as with a connection that fails: it
is logged and tried again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import quote, urlencode

from aiokafka.abc import AbstractTokenProvider

from contextengine.post import basic, post

UNSAID_LIFE_S: Final = 60
"""How long a token is kept whose endpoint does not say when it ends."""


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]  # untyped
    """The token in a file, read anew each time: whoever put it there replaces it before it ends, as Kubernetes does."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self) -> str:
        """The token as the file has it now. OSError if it has none."""
        return self._read()

    def _read(self) -> str:
        token = self._path.read_text(encoding="utf-8").strip()
        if not token:
            raise OSError(f"{self._path} is empty: it must hold the token for Kafka")
        return token


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]  # untyped
    """Tokens from an endpoint, for a client's id and secret (RFC 6749, 4.4); each used for four fifths of its life."""

    def __init__(self, url: str, client_id: str, client_secret: str, scope: str | None) -> None:
        form = {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})
        self._url, self._form = url, urlencode(form).encode()
        self._identity = basic(quote(client_id, safe=""), quote(client_secret, safe=""))
        self._kept = ""
        self._kept_until_s = 0.0
        self._one_asks = threading.Lock()  # not asyncio's: Faust's consumer has an event loop of its own

    async def token(self) -> str:
        """A token that has not ended. OSError if the endpoint gives none."""
        return await asyncio.to_thread(self._keep_or_ask)

    def _keep_or_ask(self) -> str:
        with self._one_asks:
            if time.monotonic() >= self._kept_until_s:
                asked_s = time.monotonic()
                answer = self._ask()
                self._kept = answer["access_token"]
                self._kept_until_s = asked_s + 0.8 * float(answer.get("expires_in", UNSAID_LIFE_S))
            return self._kept

    def _ask(self) -> dict[str, Any]:
        try:
            answer = post(self._url, self._form, {"Authorization": self._identity, "Accept": "application/json"})
        except HTTPError as refusal:
            refusal.close()
            raise OSError(f"{self._url} gives no token: {refusal.code} {refusal.reason}") from None
        except ValueError:
            answer = None
        if not (isinstance(answer, dict) and isinstance(answer.get("access_token"), str)):
            raise OSError(f"{self._url} gives no token: the answer has no access_token")
        return answer
