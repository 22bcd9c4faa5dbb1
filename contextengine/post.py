"""One question to an HTTP service, and its answer in JSON. It blocks: to be asked at the start, or in a thread."""

from __future__ import annotations

import base64
import json
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final
from urllib.request import HTTPRedirectHandler, Request, build_opener

if TYPE_CHECKING:
    from collections.abc import Mapping

ANSWER_S: Final = 10
"""How long an answer may take."""


class NoRedirect(HTTPRedirectHandler):
    """Takes a redirect for the error it is: the next address would be sent our credentials, too."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def post(url: str, body: bytes, headers: Mapping[str, str]) -> Any:
    """What the service answers; `url` is http or https, as the settings see to.

    Raises HTTPError, which is to be closed, when it refuses; OSError for no answer, and ValueError for one that is no
    JSON.
    """
    try:
        with build_opener(NoRedirect).open(Request(url, body, dict(headers)), timeout=ANSWER_S) as response:  # noqa: S310
            return json.load(response)
    except HTTPException as nonsense:
        raise OSError(f"no HTTP: {nonsense!r}") from nonsense


def basic(username: str, password: str) -> str:
    """The Authorization header of HTTP's basic authentication (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
