"""The codec of an installation: with a schema registry configured, its wire format instead of Avro's own.

Every schema that was ever shipped is looked up in the registry at the start and registered where it is missing, the
oldest version first, under its record's full name (Confluent's RecordNameStrategy: our topics hold many types). From
then on no record needs the registry: all ids are known.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError

from contextengine.errors import ConfigurationError, RegistryUnavailable
from contextengine.post import basic, post
from contextengine.schemas.codec import SINGLE_OBJECT, Codec, registry_codec, shipped_schemas

if TYPE_CHECKING:
    from contextengine.settings import Settings

CONTENT_TYPE: Final = "application/vnd.schemaregistry.v1+json"
NOT_FOUND: Final = 404


def codec_of(settings: Settings) -> Codec:
    """How the records of this installation are written and read.

    Blocks while it asks the registry, once in a process. Raises RegistryUnavailable when that does not answer, and
    ConfigurationError for what it refuses.
    """
    url, password = settings.schema_registry_url, settings.schema_registry_password
    if url is None:
        return SINGLE_OBJECT
    return _codec(
        url.rstrip("/"), settings.schema_registry_username or "", password.get_secret_value() if password else ""
    )


@lru_cache(maxsize=8)
def _codec(url: str, username: str, password: str) -> Codec:
    headers = {"Content-Type": CONTENT_TYPE, "Accept": CONTENT_TYPE}
    if username:
        headers["Authorization"] = basic(username, password)
    ids: dict[bytes, Any] = {}
    for name, fingerprint, schema in shipped_schemas():
        body = json.dumps({"schema": schema}).encode()
        found = _ask(f"{url}/subjects/{name}", body, headers)
        ids[fingerprint] = _id(found if found is not None else _ask(f"{url}/subjects/{name}/versions", body, headers))
    if not all(type(number) is int and 0 <= number < 2**31 for number in ids.values()) or len({*ids.values()}) < len(
        ids
    ):
        raise ConfigurationError(f"what answers at {url} is no schema registry: not every schema has an id of its own")
    return registry_codec(ids)


def _id(answer: Any) -> Any:
    return answer.get("id") if isinstance(answer, dict) else None


def _ask(url: str, body: bytes, headers: dict[str, str]) -> Any:
    """The answer to a POST; None when there is no such thing."""
    try:
        return post(url, body, headers)
    except HTTPError as refused:
        with refused:
            told = refused.read(1_000).decode(errors="replace")
        if refused.code == NOT_FOUND:
            return None
        raise ConfigurationError(f"the schema registry refuses {url}: {refused.code} {told}") from None
    except (OSError, ValueError) as silence:
        raise RegistryUnavailable(f"no schema registry answers at {url}: {silence}") from silence
