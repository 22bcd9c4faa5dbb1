"""The settings: what each is, where it comes from, and why a wrong one is refused.

`load` is the sole reader of the environment and of configuration files. A setting comes from, the first that has it:

1. the caller (a command's option),
2. the environment, no .env file: `partitions` is CONTEXTENGINE_PARTITIONS; an empty variable counts as absent,
3. a TOML file, named by `--config` or CONTEXTENGINE_CONFIG: `partitions = 12`,
4. the default below, which suits one machine.

A secret may also be named by the file that holds it: CONTEXTENGINE_OPENAI_API_KEY_FILE=/run/secrets/openai, or
`openai_api_key_file` in the TOML file. An unknown name is an error: a misspelt setting would not be in force.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, FilePath, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from contextengine.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aiokafka.abc import AbstractTokenProvider

PREFIX: Final = "CONTEXTENGINE_"
SECRETS: Final = ("sasl_password", "schema_registry_password", "openai_api_key")
HIDDEN: Final = (*SECRETS, "sasl_oauth_token")  # a file's name, too: it may be the secret itself, given by mistake
CREDENTIALS: Final = (
    *("sasl_username", "sasl_password"),
    *("sasl_oauth_token_file", "sasl_oauth_token_url", "sasl_oauth_scope"),
)

Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Everything that can be set. Frozen; `load` makes one, and only the tests construct it directly."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, case_sensitive=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    # The broker
    broker: str = "127.0.0.1:9092"
    """Where Kafka answers: host:port, several separated by commas."""
    embedded: bool = False
    """Whether that is the embedded broker: no idempotent producers, no LogAppendTime, ListOffsets answers too low."""
    security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    """How to talk to Kafka. `sasl_plaintext` may show the password or token, so it is refused off loopback."""
    ssl_ca: FilePath | None = None
    """The certificates to trust (PEM); without it, the system's."""
    ssl_cert: FilePath | None = None
    ssl_key: FilePath | None = None
    """Our own certificate and its key (PEM), where Kafka asks for them."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "SCRAM-SHA-512"
    """OAUTHBEARER takes its token from `sasl_oauth_token_file`, or from `sasl_oauth_token_url` for a client's id and
    secret, which are `sasl_username` and `sasl_password` then."""
    sasl_oauth_token_file: FilePath | None = None
    """Read again for each connection, so that a token that is replaced before it ends never does."""
    sasl_oauth_token_url: str | None = None
    """The token endpoint (RFC 6749, client credentials). Plain http is refused off loopback: the secret goes there."""
    sasl_oauth_scope: str | None = None
    """What to ask that endpoint for, where it wants to be told."""
    sasl_username: str | None = None
    sasl_password_file: Path | None = None
    sasl_password: SecretStr | None = None

    # Records
    schema_registry_url: str | None = None
    """A schema registry (Confluent's HTTP interface); records then have its wire format. All processes that share the
    topics must agree. Without one they have Avro's single-object encoding, which needs no service."""
    schema_registry_username: str | None = None
    schema_registry_password_file: Path | None = None
    schema_registry_password: SecretStr | None = None

    # Topics
    prefix: str = Field("contextengine", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,149}$")
    """What the name of every topic and consumer group begins with; another prefix is another installation."""
    partitions: int = Field(default_factory=lambda given: 4 if given.get("embedded") else 12, ge=1, le=1000)
    """Partitions of each topic that is keyed by session: 12, on the embedded broker 4. They never grow in place."""
    replication: int = Field(1, ge=1, le=10)
    """Copies of each topic. The default works on a single broker and survives nothing: use 3 in production, which
    also makes a write wait for 2 of them."""

    # The worker
    state_store: Literal["memory", "rocksdb"] = "memory"
    data_dir: Path = Path("contextengine-data")
    """Where the worker keeps RocksDB and its checkpoints."""
    state_version: int = Field(3, ge=2, le=3)
    """The version of the state that this worker writes; it reads all up to the newest. In a rolling upgrade over a new
    version give the old one to all workers first, and take it away when none is left that knows only the old one."""
    commit_interval_ms: int = Field(500, ge=50, le=60_000)
    """How often outputs, state and offsets are committed: what is repeated after a crash."""
    session_timeout_ms: int = Field(6_000, ge=6_000, le=10_000)
    """How long a silent worker keeps its partitions. Kafka refuses less than 6 s."""

    # Delivery
    openai_base_url: str = "https://api.openai.com/v1"
    """Where OpenAI, or a simulator of it, answers. Plain http is refused off loopback: the key goes there."""
    openai_api_key_file: Path | None = None
    openai_api_key: SecretStr | None = None

    # Monitoring
    monitoring_host: str = "127.0.0.1"
    """Where /health and /metrics are served. They ask for no password: another address needs `monitoring_exposed`."""
    monitoring_exposed: bool = False
    """Says that /health and /metrics may be reached from other machines."""
    worker_monitoring_port: Port = 8801
    deliver_monitoring_port: Port = 8802
    """0 picks a free one."""

    @field_validator("broker")
    @classmethod
    def _broker_is_host_and_port(cls, broker: str) -> str:
        for address in broker.split(","):
            host, _, port = address.strip().rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError(f"{address.strip()!r} is not host:port")
        return broker

    @field_validator(*SECRETS)
    @classmethod
    def _given_or_read(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        path = info.data.get(f"{info.field_name}_file")
        if path and secret:
            raise ValueError(f"{info.field_name}_file is given as well; keep one of them")
        try:
            return SecretStr(path.read_text(encoding="utf-8").strip()) if path else secret
        except OSError as unreadable:  # whose path may be the secret itself, given by mistake
            raise ValueError(f"the file cannot be read: {unreadable.strerror}") from None

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if contradictions := list(self._contradictions()):
            raise ValueError("\n".join(contradictions))
        return self

    def _contradictions(self) -> Iterator[str]:
        yield from self._about_kafka()
        yield from self._about_credentials()
        for name in ("openai_base_url", "sasl_oauth_token_url"):
            url = urlsplit(getattr(self, name) or "https:")
            if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.hostname)):
                yield f"{name} must begin with https://; http:// is for this machine only"
        registry = urlsplit(self.schema_registry_url or "https:")
        if registry.scheme not in ("http", "https"):
            yield "schema_registry_url must begin with https:// or http://"
        if bool(self.schema_registry_username) != bool(self.schema_registry_password):
            yield "schema_registry_username and schema_registry_password go together"
        if self.schema_registry_password and registry.scheme == "http" and not is_loopback(registry.hostname):
            yield "schema_registry_url is plain http to another machine: the password would travel readably"
        if not is_loopback(self.monitoring_host) and not self.monitoring_exposed:
            yield (
                f"monitoring_host is {self.monitoring_host}, which other machines may reach, and nothing asks them for "
                "a password; if that is meant, set monitoring_exposed to true"
            )

    def _about_kafka(self) -> Iterator[str]:
        if self.security == "sasl_plaintext" and not all(
            is_loopback(urlsplit(f"//{address.strip()}").hostname) for address in self.broker.split(",")
        ):
            yield "security is sasl_plaintext and broker is another machine: the credentials would travel readably"
        if not self.security.endswith("ssl") and (self.ssl_ca or self.ssl_cert or self.ssl_key):
            yield f"ssl_ca, ssl_cert or ssl_key is given, and security is {self.security}: they would not be used"
        if bool(self.ssl_cert) != bool(self.ssl_key):
            yield "ssl_cert and ssl_key go together"
        if self.embedded and self.replication > 1:
            yield "embedded is true, and the embedded broker keeps one copy of a topic: replication must be 1"

    def _about_credentials(self) -> Iterator[str]:
        asked, needed, optional = str(self.security), set[str](), set[str]()
        if self.security.startswith("sasl"):
            asked, needed = f"{self.security} with {self.sasl_mechanism}", {"sasl_username", "sasl_password"}
            if self.sasl_mechanism == "OAUTHBEARER" and self.sasl_oauth_token_url:
                optional = {"sasl_oauth_token_url", "sasl_oauth_scope"}
            elif self.sasl_mechanism == "OAUTHBEARER":
                needed = {"sasl_oauth_token_file"}
        given = {name for name in CREDENTIALS if getattr(self, name)}
        if not needed <= given:
            yield f"security is {asked}, which needs {' and '.join(sorted(needed, key=CREDENTIALS.index))}"
        if unused := given - needed - optional:
            yield f"security is {asked}: {' and '.join(sorted(unused, key=CREDENTIALS.index))} would not be used"

    @classmethod
    def settings_customise_sources(cls, *_: Any, **sources: Any) -> tuple[Any, ...]:
        """Only what it is constructed with: `load` asks the others, and remembers which one said what."""
        return (sources["init_settings"],)

    @property
    def worker_group(self) -> str:
        """The workers' consumer group, and Faust's app id: the sessions changelog is named after it."""
        return f"{self.prefix}-worker"

    @property
    def deliver_group(self) -> str:
        """The delivery consumers' group."""
        return f"{self.prefix}-deliver"

    def kafka_client(self) -> dict[str, Any]:
        """The keyword arguments of every aiokafka client: where the broker is, and how to talk to it."""
        arguments: dict[str, Any] = {
            "bootstrap_servers": [address.strip() for address in self.broker.split(",")],
            "client_id": "contextengine",
            "security_protocol": self.security.upper(),
            "ssl_context": self.ssl_context(),
        }
        if self.security.startswith("sasl"):
            arguments["sasl_mechanism"] = self.sasl_mechanism
            if self.sasl_mechanism == "OAUTHBEARER":
                arguments["sasl_oauth_token_provider"] = self.kafka_tokens()
            else:
                arguments["sasl_plain_username"] = self.sasl_username
                arguments["sasl_plain_password"] = self._password()
        return arguments

    def kafka_tokens(self) -> AbstractTokenProvider:
        """Where a client gets its tokens for OAUTHBEARER."""
        from contextengine.oauth import ClientCredentials, TokenFile  # noqa: PLC0415  loads the Kafka client

        if self.sasl_oauth_token_file is not None:
            return TokenFile(self.sasl_oauth_token_file)
        return ClientCredentials(
            str(self.sasl_oauth_token_url), str(self.sasl_username), self._password(), self.sasl_oauth_scope
        )

    def _password(self) -> str:
        return self.sasl_password.get_secret_value() if self.sasl_password else ""

    def kafka_producer(self) -> dict[str, Any]:
        """The keyword arguments of a producer that loses nothing; the embedded broker knows no idempotence."""
        return {**self.kafka_client(), "acks": "all", "enable_idempotence": not self.embedded}

    def ssl_context(self) -> ssl.SSLContext | None:
        """What TLS to Kafka verifies and shows, or None without TLS. Raises SettingsInvalid for unreadable files."""
        if not self.security.endswith("ssl"):
            return None
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca)
            if self.ssl_cert is not None:
                context.load_cert_chain(self.ssl_cert, self.ssl_key)
        except OSError as unreadable:  # ssl.SSLError is one
            raise SettingsInvalid(f"ssl_ca, ssl_cert or ssl_key: {unreadable}") from unreadable
        return context


KNOWN: Final = frozenset(Settings.model_fields)


def load(config: Path | None = None, environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """The settings in force. What is None in `given` is not given; without `environ`, it is the process's own.

    Raises SettingsInvalid with every unknown name and every impossible value, a line for each.
    """
    variables = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in (os.environ if environ is None else environ).items()
        if name.startswith(PREFIX) and value
    }
    if named := variables.pop("config", None):
        config = config or Path(named)
    environment = EnvSettingsSource(Settings, case_sensitive=False)
    environment.env_vars = {f"{PREFIX}{name}".lower(): value for name, value in variables.items()}
    problems: list[str] = []
    in_force: dict[str, tuple[str, Any]] = {}
    for source in (
        {name: (f"{name} in {config}", value) for name, value in read_toml(config).items()} if config else {},
        {name: (f"{PREFIX}{name.upper()}", value) for name, value in (variables | environment()).items()},
        {name: (name, value) for name, value in given.items() if value is not None},
    ):
        problems.extend(unknown(name, label) for name, (label, _) in source.items() if name not in KNOWN)
        # A secret and its file are one setting: either of them, here, wins over both in the sources before.
        said = {name.removesuffix("_file") for name in source}
        in_force = {name: item for name, item in in_force.items() if name.removesuffix("_file") not in said} | source
    values = {name: value for name, (_, value) in in_force.items() if name in KNOWN}
    # Hidden here, because with PYDANTIC_SETTINGS_DEBUG in the environment the library logs what it is given.
    values |= {name: SecretStr(values[name]) for name in SECRETS if isinstance(values.get(name), str)}
    try:
        settings = Settings(**values)
    except ValidationError as invalid:
        problems.extend(impossible(invalid, {name: label for name, (label, _) in in_force.items()}))
    # Raised out here, because pydantic's error holds every value, secrets too, and would go along as the cause.
    if problems:
        raise SettingsInvalid("\n".join(problems))
    return settings


def read_toml(config: Path) -> dict[str, Any]:
    """What the file says. Raises SettingsInvalid for one that cannot be read or is no TOML."""
    try:
        if config.is_file():  # the source takes any other path for an empty file
            return TomlConfigSettingsSource(Settings, config)()
    except (OSError, ValueError) as unreadable:
        raise SettingsInvalid(f"{config}: {unreadable}") from None
    raise SettingsInvalid(f"{config}: no such file")


def unknown(name: str, label: str) -> str:
    """Say that there is no such setting, and which one may have been meant."""
    problem = f"{label}: no such setting"
    if meant := difflib.get_close_matches(name, KNOWN | {"config"}, n=1):
        problem += f"; did you mean {PREFIX + meant[0].upper() if label.startswith(PREFIX) else meant[0]}?"
    return problem


def impossible(invalid: ValidationError, labels: Mapping[str, str]) -> Iterator[str]:
    """Say for each impossible value what is wrong with it, and show it unless it is a secret."""
    for error in invalid.errors(include_url=False, include_context=False):
        message = error["msg"].removeprefix("Value error, ")
        if not error["loc"]:
            yield from message.splitlines()
        elif error["type"] != "default_factory_not_called":  # which only follows from another error
            name = str(error["loc"][0])
            found = "" if name.removesuffix("_file") in HIDDEN else f" (found {error['input']!r})"
            yield f"{labels.get(name) or labels.get(f'{name}_file', name)}: {message}{found}"


def is_loopback(host: str | None) -> bool:
    """Whether only this machine can be meant by `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
