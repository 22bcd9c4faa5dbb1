"""What an adapter is: it puts one injection in front of one provider's model, and says what it did."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from contextengine.schemas.context import Context, Trust
from contextengine.schemas.injection import AttemptVerdict, InjectionAttempt

PayloadT = TypeVar("PayloadT")

UNTRUSTED_BYTES = 2_048
"""How much untrusted text (UTF-8 bytes) may reach a model in one injection."""


_ROLE_TOKEN = r"<\|[^|<>]*\|>"  # noqa: S105 - no password
"""What chat templates mark roles with, such as <|im_start|>."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider can do with a context; an attempt's verdict says what was achieved."""

    append_silently: bool
    replace: bool
    retract: bool
    acknowledge: bool
    interrupts_generation: bool
    maximum_bytes: int


class Adapter(Protocol, Generic[PayloadT]):
    """Puts one rendered injection in front of one provider's model.

    One adapter serves every call of its provider in a process; connections are its own business.
    """

    provider: str
    capabilities: Capabilities

    def render(self, attempt: InjectionAttempt) -> PayloadT:
        """The provider's wire form of the injection. Pure. Raises Unrenderable when this provider cannot carry it."""

    async def send(self, attempt: InjectionAttempt, payload: PayloadT, timeout_s: float) -> AttemptVerdict:
        """Try once, for at most `timeout_s` seconds. Never raises for what the provider or the network did.

        `sent_ms` and `answered_ms` of the verdict are the wall clock of this machine, in milliseconds.
        """

    async def find(self, attempt: InjectionAttempt, timeout_s: float) -> AttemptVerdict | None:
        """Whether the provider has this injection, asked without sending it: the verdict is then DELIVERED.

        None when it has not, or does not say within `timeout_s` seconds. Never raises, as `send`.
        """

    async def close(self) -> None:
        """Close every connection; nothing is sent afterwards."""


def render_untrusted(context: Context, nonce: str) -> str:
    """The context's text for a user role: delimited by `nonce`, at most 2 KiB, no control characters or role tokens."""
    text = "".join(char for char in context.render() if char.isprintable() or char == "\n")
    forbidden = re.compile(rf"{_ROLE_TOKEN}|{re.escape(nonce)}")
    while forbidden.search(text):  # taking one out may put another together
        text = forbidden.sub("", text)
    cut = text.encode()[:UNTRUSTED_BYTES].decode(errors="ignore")
    return f"<context {nonce}>\n{cut}\n</context {nonce}>"


def is_trusted(context: Context) -> bool:
    """Whether the context may have a system or developer role."""
    return context.metadata.trust is Trust.TRUSTED
