"""With a schema registry: its wire format on every topic, and every schema of ours in it."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading

import fastavro
import pytest
from broker_log import read_raw, until
from schema_registry import schema_registry

from contextengine.app import build_app, run_worker
from contextengine.errors import ConfigurationError, RegistryUnavailable, SettingsInvalid, UndecodableRecord
from contextengine.schemas.codec import SINGLE_OBJECT, encode
from contextengine.schemas.events import MessageCompleted, PartitionAssigned, SessionStarted, Tick
from contextengine.schemas.injection import InjectionAttempt
from contextengine.settings import load
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue
from contextengine.topics.publisher import Publisher
from contextengine.topics.registry import _codec, codec_of
from contextengine.topics.tail import follow

TICK = Tick(session_id="s", timer="forget", due_ms=5)
RULES = "rules: [{name: greet, when: {keyword: hello}, inject: {information: {name: Ada}}}]"


@pytest.fixture
def registry():
    with schema_registry() as running:
        yield running


def with_registry(registry, **given):
    return load(environ={}, schema_registry_url=registry.url, **given)


def test_without_a_registry_records_have_avros_own_encoding():
    assert codec_of(load(environ={})) is SINGLE_OBJECT


def test_every_version_of_every_record_is_registered_under_its_full_name_the_oldest_first(registry):
    codec_of(with_registry(registry))
    assert len(registry.subjects["contextengine.PartitionAssigned"]) == 2
    first, second = (json.loads(schema) for schema in registry.subjects["contextengine.PartitionAssigned"])
    assert [field["name"] for field in second["fields"]] == [*(field["name"] for field in first["fields"]), "engine"]
    assert len(registry.subjects["contextengine.Tick"]) == 1


def test_a_record_begins_with_a_zero_byte_and_the_id_and_anybody_who_asks_the_registry_reads_it(registry):
    value = codec_of(with_registry(registry)).encode(TICK)
    number = int.from_bytes(value[1:5], "big")
    schema = next(schema for schema, known in registry.ids.items() if known == number)
    assert value[0] == 0
    read = fastavro.schemaless_reader(io.BytesIO(value[5:]), json.loads(schema), None)
    assert read == {"session_id": "s", "timer": "forget", "due_ms": 5}


def test_what_is_registered_is_found_again_and_gives_the_same_bytes(registry):
    settings = with_registry(registry)
    first = codec_of(settings)
    asked = registry.asked
    assert codec_of(settings) is first
    assert registry.asked == asked, "a process asks once"
    again = _codec.__wrapped__(registry.url, "", "")
    assert again.encode(TICK) == first.encode(TICK)


def test_records_written_before_there_was_a_registry_are_still_read(registry):
    assert codec_of(with_registry(registry)).decode(encode(TICK)) == TICK


def test_a_schema_id_of_somebody_else_is_undecodable_and_named(registry):
    with pytest.raises(UndecodableRecord, match="a schema registry's record, of schema id 4711, which is none of ours"):
        codec_of(with_registry(registry)).decode(b"\x00" + (4711).to_bytes(4, "big") + b"x")
    with pytest.raises(UndecodableRecord, match="schema id 7"):
        SINGLE_OBJECT.decode(b"\x00" + (7).to_bytes(4, "big") + b"x")


def test_a_password_is_sent_and_a_wrong_one_is_told_without_showing_it():
    with schema_registry(login="me:right-one") as registry:
        codec_of(with_registry(registry, schema_registry_username="me", schema_registry_password="right-one"))  # noqa: S106
        with pytest.raises(ConfigurationError, match="401") as refused:
            codec_of(with_registry(registry, schema_registry_username="me", schema_registry_password="planted"))  # noqa: S106
        assert "planted" not in str(refused.value)


@pytest.mark.parametrize(
    "answer", [b"garbage", b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"id"', b"HTTP/1.1 200 OK\r\n\r\n{"]
)
def test_what_answers_half_or_nonsense_is_told_as_no_answer(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk():
            with server.accept()[0] as client:
                client.recv(65_536)
                client.sendall(answer)

        talking = threading.Thread(target=talk)
        talking.start()
        with pytest.raises(RegistryUnavailable, match="no schema registry answers"):
            codec_of(load(environ={}, schema_registry_url=f"http://127.0.0.1:{server.getsockname()[1]}"))
        talking.join()


def test_a_password_does_not_follow_a_redirect():
    """Whoever answers at the next address would learn it."""
    with schema_registry() as next_one, schema_registry() as registry:
        registry.redirect = f"{next_one.url}/subjects/x"
        secret = {"schema_registry_username": "me", "schema_registry_password": "planted"}
        with pytest.raises(ConfigurationError, match="302"):
            codec_of(with_registry(registry, **secret))
        assert next_one.asked == 0


@pytest.mark.parametrize("told", [True, -1, 2**40, None, 7])
def test_a_registry_that_gives_ids_that_are_none_or_one_id_twice_is_refused(registry, told):
    registry.find = lambda *_: (200, {"id": told})
    with pytest.raises(ConfigurationError, match="not every schema has an id of its own"):
        codec_of(with_registry(registry))


def test_a_registry_that_does_not_answer_is_told_from_one_that_refuses(registry):
    with pytest.raises(RegistryUnavailable, match=r"no schema registry answers at http://127\.0\.0\.1:9/"):
        codec_of(load(environ={}, schema_registry_url="http://127.0.0.1:9"))
    registry.status = 409
    with pytest.raises(ConfigurationError, match=r"refuses .*contextengine.SessionStarted: 409"):
        codec_of(with_registry(registry))
    registry.status = 200
    with pytest.raises(ConfigurationError, match="is no schema registry"):
        codec_of(with_registry(registry))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"schema_registry_url": "registry:8081"}, "must begin with https:// or http://"),
        ({"schema_registry_url": "https://r", "schema_registry_username": "me"}, "go together"),
        (
            {
                "schema_registry_url": "http://r",
                "schema_registry_username": "me",
                "schema_registry_password": "p",
            },
            "the password would travel readably",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given, told):
    with pytest.raises(SettingsInvalid, match=told):
        load(environ={}, **given)


async def test_a_whole_installation_speaks_the_registrys_wire_format(settings, registry):
    """Events in, injections out, and a person who looks at the topic reads them."""
    settings = settings.model_copy(update={"schema_registry_url": registry.url})
    await admin.apply(settings, "log-1")
    stop = asyncio.Event()
    working = asyncio.create_task(run_worker(settings, RULES, stop, build_app(settings)))
    topics = catalogue(settings)
    try:
        async with Publisher(settings) as publisher:
            session = publisher.session("s")
            session.publish(SessionStarted, provider="nobody", model="none")
            session.publish(MessageCompleted, speaker="user", text="hello")

            async def injected():
                return await read_raw(settings, topics.injections)

            [injection] = await until(injected, within_s=30)
    finally:
        stop.set()
        await working
    assert codec_of(settings).decode_as(InjectionAttempt, injection.value).injection.rule == "greet"
    events = await read_raw(settings, topics.events)
    assert {record.value[:1] for record in events} == {b"\x00"}
    assert any(isinstance(codec_of(settings).decode(record.value), PartitionAssigned) for record in events)
    told = [seen.told()[0] async for seen in follow(settings, [topics.injections.name], to_end=True)]
    assert told == ["InjectionAttempt"]
