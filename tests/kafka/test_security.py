"""Kafka behind TLS, passwords and tokens: the whole way of an event goes through, and nobody else's does.

The broker lets `engine` do everything and any other principal nothing, so that what passes here has been recognised.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager

import pytest
from adapters.delivering import FakeAdapter, delivering
from broker_log import read, until
from certificates import make_authority, make_certificate

from contextengine.errors import BrokerUnavailable, ConfigurationError
from contextengine.schemas.events import MessageCompleted, SessionStarted
from contextengine.schemas.injection import Outcome
from contextengine.settings import load
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue
from contextengine.topics.publisher import Publisher

RULES = "rules: [{name: greet, when: {keyword: hello}, inject: {information: {say: hello}}}]"
PLANTED = "planted-in-every-place-that-holds-a-secret"
CONNECTION_S = 3
SASL = "org.apache.kafka.common.security"


def token(principal, lives_s=600):
    """An unsigned token, which Kafka's own validator for tests accepts."""
    claims = {"sub": principal, "iat": time.time() - 1, "exp": time.time() + lives_s, "jti": PLANTED}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in ({"alg": "none"}, claims)]
    return ".".join(part.rstrip("=") for part in parts) + "."


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def guarded(start_kafka, authority):
    """A Kafka that asks everybody who they are."""
    server = make_certificate(authority, "broker")
    keystore = server.with_name("keystore.pem")
    keystore.write_text(server.with_suffix(".key").read_text() + server.read_text())
    return start_kafka(
        {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(authority),
            "listener.name.certificate.ssl.client.auth": "required",
            "listener.name.certificate.ssl.principal.mapping.rules": "RULE:^CN=(.*)$/$1/",
            "listener.name.password.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.password.scram-sha-512.sasl.jaas.config": f"{SASL}.scram.ScramLoginModule required;",
            "listener.name.token.sasl.enabled.mechanisms": "OAUTHBEARER",
            "listener.name.token.oauthbearer.sasl.jaas.config": (
                f'{SASL}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
            ),
            # Connections are closed when this time is over, and aiokafka cannot log in anew on one that is open.
            "listener.name.token.oauthbearer.connections.max.reauth.ms": str(CONNECTION_S * 1000),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:engine;User:ANONYMOUS",  # who is anonymous comes by the plain listener
        },
        listeners={"CERTIFICATE": "SSL", "PASSWORD": "SASL_SSL", "TOKEN": "SASL_SSL"},
        scram_users={"engine": PLANTED, "stranger": PLANTED},
    )


@pytest.fixture(params=["CERTIFICATE", "PASSWORD", "TOKEN"])
def environ_of(request, guarded, authority, tmp_path):
    """The environment variables with which somebody of a name comes by a listener."""

    def environ(name):
        shown = {"security": "sasl_ssl", "broker": guarded.address(request.param), "ssl_ca": authority}
        match request.param:
            case "CERTIFICATE":
                certificate = make_certificate(authority, name)
                shown |= {"security": "ssl", "ssl_cert": certificate, "ssl_key": certificate.with_suffix(".key")}
            case "PASSWORD":
                (tmp_path / "password").write_text(PLANTED)
                shown |= {"sasl_username": name, "sasl_password_file": tmp_path / "password"}
            case "TOKEN":
                (tmp_path / "token").write_text(token(name))
                shown |= {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_file": tmp_path / "token"}
        shown |= {"partitions": 4, "prefix": f"test-{uuid.uuid4().hex[:8]}"}
        return {f"CONTEXTENGINE_{setting.upper()}": str(value) for setting, value in shown.items()}

    return environ


def command(environ, *arguments):
    return {"args": [sys.executable, "-m", "contextengine", *arguments], "env": {**os.environ, **environ}}


def apply_topics(environ):
    return subprocess.run(**command(environ, "topics", "apply"), capture_output=True, text=True, check=False)


@contextmanager
def running_worker(environ, folder):
    """A `contextengine worker`; its log is in the folder."""
    (folder / "rules.yaml").write_text(RULES)
    with (folder / "worker.log").open("wb") as log:
        started = command(environ, "worker", "--port", "0", "--rules", str(folder / "rules.yaml"))
        with subprocess.Popen(**started, stdout=log, stderr=log) as worker:
            try:
                yield worker
            finally:
                worker.terminate()


async def test_an_event_becomes_a_delivered_injection_and_no_secret_shows(environ_of, tmp_path):
    environ = environ_of("engine")
    settings = load(environ=environ)
    applied = await asyncio.to_thread(apply_topics, environ)
    assert applied.returncode == 0, applied.stderr
    with running_worker(environ, tmp_path) as worker:
        async with delivering(settings, FakeAdapter()), Publisher(settings, name="test") as publisher:
            await one_is_delivered(settings, publisher.session("s1"))
    assert worker.wait(30) == 0
    said = (tmp_path / "worker.log").read_text() + applied.stdout + applied.stderr
    assert PLANTED not in said
    assert token("engine").split(".")[0] not in said


async def one_is_delivered(settings, session):
    """A call in which something is delivered."""

    async def outcomes():
        results = await read(settings, catalogue(settings).results)
        return [result.outcome for result in results if result.session_id == session.session_id]

    session.publish(SessionStarted, provider="fake", model="m", call_id="c")
    session.publish(MessageCompleted, speaker="user", text="hello")
    assert await until(outcomes, within_s=30) == [Outcome.DELIVERED]


@pytest.mark.parametrize("environ_of", ["TOKEN"], indirect=True)
async def test_work_goes_on_when_the_broker_ends_every_connection_with_its_token(environ_of, tmp_path):
    environ = environ_of("engine")
    settings = load(environ=environ)
    await admin.apply(settings, "log-1")
    with running_worker(environ, tmp_path) as worker:
        async with delivering(settings, FakeAdapter()), Publisher(settings, name="test") as publisher:
            await one_is_delivered(settings, publisher.session("s1"))
            await asyncio.sleep(2.5 * CONNECTION_S)
            await one_is_delivered(settings, publisher.session("s2"))
            assert worker.poll() is None


async def test_who_is_somebody_else_is_refused(environ_of):
    with pytest.raises(ConfigurationError, match="Authorization failed"):
        await admin.apply(load(environ=environ_of("stranger")), "log-1")


@pytest.mark.parametrize("environ_of", ["TOKEN"], indirect=True)
async def test_a_token_that_is_replaced_is_used_by_the_next_connection(environ_of, tmp_path):
    settings = load(environ=environ_of("stranger"))
    (tmp_path / "token").write_text(token("engine"))
    assert await admin.apply(settings, "log-1")


@pytest.mark.parametrize("environ_of", ["TOKEN"], indirect=True)
async def test_a_token_that_has_ended_is_refused_and_does_not_show(environ_of, tmp_path, caplog):
    settings = load(environ=environ_of("engine"))
    (tmp_path / "token").write_text(token("engine", lives_s=-60))
    with pytest.raises(BrokerUnavailable, match="does not accept us") as refused:
        await admin.check(settings)
    assert (tmp_path / "token").read_text() not in caplog.text + str(refused.value)
