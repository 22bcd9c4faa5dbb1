"""A client of the broker for one short errand, and one kind of error when nobody answers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient

from contextengine.errors import BrokerUnavailable, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from contextengine.settings import Settings

ANSWER_MS: Final = 5_000
"""How long a broker may take to answer one request."""
ERRAND_MS: Final = 15_000
"""How long an errand may take in all."""

NO_ANSWER: Final = (
    OSError,  # TimeoutError is one
    kafka.KafkaConnectionError,
    kafka.KafkaTimeoutError,
    kafka.LeaderNotAvailableError,
    kafka.NodeNotReadyError,
    kafka.RequestTimedOutError,
    kafka.StaleMetadata,
)

REFUSES_THE_RECORD: Final = (
    kafka.CorruptRecordException,
    kafka.InvalidTimestampError,
    kafka.MessageSizeTooLargeError,
    kafka.PolicyViolationError,
    kafka.RecordListTooLargeError,
)
"""What the broker says of a record that it will never take."""

Client = TypeVar("Client", AIOKafkaAdminClient, AIOKafkaConsumer, AIOKafkaProducer)


@contextmanager
def answers(settings: Settings) -> Iterator[None]:
    """Within the block BrokerUnavailable says that no broker answers, ConfigurationError what it refuses."""
    try:
        yield
    except NO_ANSWER as silence:
        raise BrokerUnavailable(
            f"no broker at {settings.broker} answers, or it does not accept us (the log says which): "
            f"start it, or correct the settings broker and security (now {settings.security})"
        ) from silence
    except kafka.KafkaError as refusal:
        raise ConfigurationError(f"the broker at {settings.broker} refuses: {refusal}") from refusal


@asynccontextmanager
async def errand(client: Client, settings: Settings) -> AsyncIterator[Client]:
    """The client, started, for the length of the block, which must be short.

    Raises BrokerUnavailable when no broker answers, at the start or on the way, and ConfigurationError for what the
    broker refuses.
    """
    try:
        with answers(settings):
            async with asyncio.timeout(ERRAND_MS / 1000):
                async with asyncio.timeout(ANSWER_MS / 1000):
                    await client.start()
                yield client
    finally:
        await (client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop())
