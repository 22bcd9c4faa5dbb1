"""An attempt to put a context into a session, whole, for tests to which most of it does not matter."""

from __future__ import annotations

from typing import Any

from contextengine.schemas.context import Context, ContextMetadata
from contextengine.schemas.injection import Destination, FailurePolicy, Injection, InjectionAttempt


def an_attempt(
    session_id: str = "s1",
    name: str = "i1",
    *,
    attempt: int = 1,
    provider: str = "fake",
    route: str = "attach",
    **told: Any,
) -> InjectionAttempt:
    """An attempt, whose injection's id is `name`; `told` says more about the injection."""
    injection = {
        "rule": "r",
        "position": "voice/1/1",
        "trigger_ms": 1,
        "deadline_ms": 2,
        "timeout_ms": 5_000,
        "context": Context(ContextMetadata(source="r", key="k", created_ms=1, ttl_ms=60_000), {"a": "b"}),
        "policy": FailurePolicy(),
    }
    return InjectionAttempt(
        session_id=session_id,
        attempt=attempt,
        destination=Destination(provider=provider, model="m", route=route, call_id="c"),
        injection=Injection(injection_id=name, session_id=session_id, **(injection | told)),
    )
