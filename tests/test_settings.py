"""Settings come from one place in a known order, and a wrong one is refused by name."""

from __future__ import annotations

import traceback

import pytest
from pydantic import SecretStr

from contextengine.errors import SettingsInvalid
from contextengine.settings import SECRETS, Settings, load

PLANTED = "sk-planted"
"""A secret that no line of a traceback holds, unless it leaks."""


def refused(**environ: str) -> str:
    with pytest.raises(SettingsInvalid) as refusal:
        load(environ=environ)
    return str(refusal.value)


def test_the_caller_wins_over_the_environment_and_that_over_the_file(tmp_path):
    config = tmp_path / "contextengine.toml"
    config.write_text('broker = "from-file:1"\npartitions = 3\nreplication = 3\n')
    environ = {
        "CONTEXTENGINE_CONFIG": str(config),
        "CONTEXTENGINE_BROKER": "from-environment:2",
        "CONTEXTENGINE_PARTITIONS": "6",
    }
    settings = load(environ=environ, broker="from-caller:3", partitions=None)
    assert (settings.broker, settings.partitions, settings.replication) == ("from-caller:3", 6, 3)


def test_an_empty_variable_counts_as_absent():
    assert load(environ={"CONTEXTENGINE_BROKER": ""}).broker == "127.0.0.1:9092"


def test_the_process_environment_is_read_when_no_other_is_given(monkeypatch):
    monkeypatch.setenv("CONTEXTENGINE_PREFIX", "elsewhere")
    assert load().worker_group == "elsewhere-worker"


def test_settings_constructed_directly_read_nothing_and_a_dotenv_file_is_never_read(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("CONTEXTENGINE_PREFIX=from-dotenv\nprefix=from-dotenv\n")
    monkeypatch.chdir(tmp_path)
    assert load(environ={}).prefix == "contextengine"
    monkeypatch.setenv("CONTEXTENGINE_PREFIX", "from-environment")
    assert Settings().prefix == "contextengine"


def test_a_setting_without_a_value_is_right_for_one_machine():
    settings = load(environ={})
    assert (settings.partitions, settings.replication, settings.monitoring_host) == (12, 1, "127.0.0.1")
    assert load(environ={}, embedded=True).partitions == 4


def test_an_unknown_variable_is_refused_with_the_nearest_known_name():
    assert "CONTEXTENGINE_BROKR: no such setting; did you mean CONTEXTENGINE_BROKER?" in refused(
        CONTEXTENGINE_BROKR="here:1"
    )
    assert "did you mean CONTEXTENGINE_CONFIG?" in refused(CONTEXTENGINE_CONFG="here")
    assert refused(CONTEXTENGINE_XYZZY="1") == "CONTEXTENGINE_XYZZY: no such setting"


@pytest.mark.parametrize("key", ["partition", "Partitions"])
def test_an_unknown_key_in_the_file_is_refused_with_the_file_s_name(tmp_path, key):
    config = tmp_path / "contextengine.toml"
    config.write_text(f"{key} = 3\n")
    with pytest.raises(SettingsInvalid, match=rf"{key} in .*contextengine\.toml: .* did you mean partitions\?"):
        load(config, environ={})


@pytest.mark.parametrize("content", [None, "broker = here\n", b"\xff"])
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path, content):
    config = tmp_path / "contextengine.toml"
    if content is not None:
        config.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsInvalid, match=r"contextengine\.toml"):
        load(config, environ={})


def test_a_directory_is_no_configuration_file(tmp_path):
    with pytest.raises(SettingsInvalid, match=tmp_path.name):
        load(tmp_path, environ={})


def test_everything_wrong_is_said_at_once():
    said = refused(CONTEXTENGINE_PARTITIONS="many", CONTEXTENGINE_BROKR="x", CONTEXTENGINE_SECURITY="tls").splitlines()
    assert [line.split(":")[0] for line in said] == [
        "CONTEXTENGINE_BROKR",
        "CONTEXTENGINE_SECURITY",
        "CONTEXTENGINE_PARTITIONS",
    ]
    assert "'many'" in said[2]


def test_only_what_is_wrong_is_said():
    assert refused(CONTEXTENGINE_BROKER="kafka") == "CONTEXTENGINE_BROKER: 'kafka' is not host:port (found 'kafka')"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PARTITIONS", "0"),
        ("SESSION_TIMEOUT_MS", "5999"),
        ("WORKER_MONITORING_PORT", "65536"),
        ("PREFIX", "no spaces"),
        ("BROKER", "kafka"),
        ("BROKER", "one:9092,two"),
        ("BROKER", "kafka:0"),
        ("OPENAI_BASE_URL", "http://elsewhere.example/v1"),
        ("OPENAI_BASE_URL", "elsewhere"),
        ("SASL_OAUTH_TOKEN_URL", "http://elsewhere.example/token"),
        ("SASL_OAUTH_TOKEN_FILE", "/no/such/file"),
        ("MONITORING_HOST", "10.1.2.3"),
        ("SSL_CA", "/no/such/file"),
    ],
)
def test_an_impossible_value_is_refused_by_name(name, value):
    assert name.lower() in refused(**{f"CONTEXTENGINE_{name}": value}).lower()


def test_another_address_for_monitoring_must_be_meant():
    assert load(environ={}, monitoring_host="0.0.0.0", monitoring_exposed=True).monitoring_host == "0.0.0.0"  # noqa: S104


def test_a_simulator_on_this_machine_may_speak_plain_http():
    assert load(environ={}, openai_base_url="http://127.0.0.1:8080/v1")


def sasl(**given: object) -> Settings:
    return load(environ={}, sasl_username="engine", sasl_password=PLANTED, **given)


def test_a_password_never_travels_readably_to_another_machine():
    with pytest.raises(SettingsInvalid, match="sasl_plaintext"):
        sasl(security="sasl_plaintext", broker="127.0.0.1:9092,kafka.example:9092")
    assert sasl(security="sasl_plaintext", broker="[::1]:9092,localhost:9092")


def test_a_token_never_travels_readably_to_another_machine(token_file):
    tokens = {"security": "sasl_plaintext", "sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_file": token_file}
    with pytest.raises(SettingsInvalid, match="sasl_plaintext"):
        load(environ={}, broker="kafka.example:9092", **tokens)
    assert load(environ={}, broker="localhost:9092", **tokens)


@pytest.fixture
def token_file(tmp_path):
    (tmp_path / "token").write_text(f"{PLANTED}\n")
    return tmp_path / "token"


def test_credentials_that_would_not_be_used_are_refused(token_file):
    with pytest.raises(SettingsInvalid, match="security is plaintext"):
        sasl()
    with pytest.raises(SettingsInvalid, match="sasl_oauth_token_file would not be used"):
        sasl(security="sasl_ssl", sasl_oauth_token_file=token_file)
    with pytest.raises(SettingsInvalid, match="sasl_username and sasl_password would not be used"):
        sasl(security="sasl_ssl", sasl_mechanism="OAUTHBEARER", sasl_oauth_token_file=token_file)


def test_credentials_that_are_missing_are_asked_for_by_name():
    with pytest.raises(SettingsInvalid, match="needs sasl_username and sasl_password"):
        load(environ={}, security="sasl_ssl")
    oauth = {"security": "sasl_ssl", "sasl_mechanism": "OAUTHBEARER"}
    with pytest.raises(SettingsInvalid, match="needs sasl_oauth_token_file"):
        load(environ={}, **oauth)
    with pytest.raises(SettingsInvalid, match="needs sasl_username and sasl_password"):
        load(environ={"CONTEXTENGINE_SASL_OAUTH_TOKEN_URL": "https://login.example/token"}, **oauth)


async def test_a_token_is_read_from_its_file_each_time_it_is_asked_for(token_file):
    client = load(
        environ={}, security="sasl_ssl", sasl_mechanism="OAUTHBEARER", sasl_oauth_token_file=token_file
    ).kafka_client()
    assert await client["sasl_oauth_token_provider"].token() == PLANTED
    token_file.write_text("another")
    assert await client["sasl_oauth_token_provider"].token() == "another"
    for gone in (lambda: token_file.write_text(""), token_file.unlink):
        gone()
        with pytest.raises(OSError, match="token"):
            await client["sasl_oauth_token_provider"].token()


def test_security_becomes_what_the_kafka_client_understands():
    client = sasl(security="sasl_ssl", broker="one:9093, two:9093").kafka_client()
    assert client["bootstrap_servers"] == ["one:9093", "two:9093"]
    assert client["security_protocol"] == "SASL_SSL"
    assert client["sasl_mechanism"] == "SCRAM-SHA-512"
    assert client["sasl_plain_password"] == PLANTED
    assert client["ssl_context"].check_hostname
    assert load(environ={}).kafka_client()["ssl_context"] is None


def test_a_file_that_holds_no_certificate_is_refused_by_the_setting_s_name(tmp_path):
    (tmp_path / "ca.pem").write_text("not a certificate")
    with pytest.raises(SettingsInvalid, match="ssl_ca"):
        load(environ={}, security="ssl", ssl_ca=tmp_path / "ca.pem").kafka_client()


def test_a_producer_is_idempotent_except_on_the_embedded_broker():
    assert load(environ={}).kafka_producer()["enable_idempotence"] is True
    assert load(environ={}, embedded=True).kafka_producer()["enable_idempotence"] is False


def test_a_secret_may_be_named_by_the_file_that_holds_it(tmp_path):
    (tmp_path / "key").write_text("sk-planted\n")
    settings = load(environ={"CONTEXTENGINE_OPENAI_API_KEY_FILE": str(tmp_path / "key")})
    assert settings.openai_api_key is not None
    assert settings.openai_api_key.get_secret_value() == "sk-planted"


def test_a_secret_file_that_is_missing_or_given_twice_is_refused_by_name(tmp_path):
    assert "CONTEXTENGINE_OPENAI_API_KEY_FILE" in refused(CONTEXTENGINE_OPENAI_API_KEY_FILE=str(tmp_path / "none"))
    (tmp_path / "key").write_text("sk-planted")
    both = {"CONTEXTENGINE_OPENAI_API_KEY_FILE": str(tmp_path / "key"), "CONTEXTENGINE_OPENAI_API_KEY": "sk-other"}
    assert "keep one" in refused(**both)


def test_a_secret_s_file_in_the_environment_wins_over_the_secret_in_the_configuration_file(tmp_path):
    (tmp_path / "key").write_text("sk-planted")
    config = tmp_path / "contextengine.toml"
    config.write_text('openai_api_key = "sk-other"\n')
    settings = load(config, environ={"CONTEXTENGINE_OPENAI_API_KEY_FILE": str(tmp_path / "key")})
    assert settings.openai_api_key == SecretStr("sk-planted")
    config.write_text(f'openai_api_key_file = "{tmp_path / "key"}"\n')
    assert load(config, environ={}).openai_api_key == SecretStr("sk-planted")
    assert load(config, environ={}, openai_api_key="sk-given").openai_api_key == SecretStr("sk-given")


@pytest.mark.parametrize("secret", ["OPENAI_API_KEY", "SASL_OAUTH_TOKEN"])
def test_a_secret_given_for_its_file_does_not_show(secret):
    said = refused(**{f"CONTEXTENGINE_{secret}_FILE": PLANTED})
    assert said.startswith(f"CONTEXTENGINE_{secret}_FILE: ")
    assert PLANTED not in said


def test_no_secret_shows_in_a_repr_nor_in_an_error_s_whole_traceback():
    settings = sasl(security="sasl_ssl", openai_api_key=PLANTED)
    assert PLANTED not in repr(settings) + str(settings) + str(settings.model_dump())
    for wrong in ({"prefix": "bad prefix"}, {"monitoring_host": "10.1.2.3"}, {"openai_api_key": [PLANTED]}):
        with pytest.raises(SettingsInvalid) as refusal:
            sasl(**{"openai_api_key": PLANTED, **wrong})
        assert PLANTED not in "".join(traceback.format_exception(refusal.value))


def test_no_secret_shows_in_the_log_of_pydantic_settings(monkeypatch, caplog):
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")
    caplog.set_level("DEBUG")
    sasl(security="sasl_ssl", openai_api_key=PLANTED)
    assert PLANTED not in caplog.text


def test_settings_do_not_change_once_they_are_in_force():
    with pytest.raises(ValueError, match="frozen"):
        load(environ={}).partitions = 3


def test_every_secret_has_a_file_variant():
    fields = Settings.model_fields
    assert {name for name, field in fields.items() if "SecretStr" in str(field.annotation)} == set(SECRETS)
    assert {f"{secret}_file" for secret in SECRETS} <= set(fields)
