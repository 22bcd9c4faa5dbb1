"""The simulated provider of a call: takes every context until it is told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from contextengine.schemas.injection import AttemptVerdict, Confirmation, InjectionAttempt, Verdict

_SAYS: Final[Mapping[str, dict[str, Any]]] = {
    "delivers": {
        "verdict": Verdict.DELIVERED,
        "confirmation": Confirmation.IN_CONTEXT,
        "achieved": "native",
        "role": "system",
    },
    "fails": {"verdict": Verdict.FAILED, "transient": True, "error_class": "Simulated", "message": "told to fail"},
    "fails for good": {"verdict": Verdict.FAILED, "error_class": "Simulated", "message": "told to fail for good"},
    "refuses": {"verdict": Verdict.REFUSED, "message": "told to refuse"},
    "is silent": {"verdict": Verdict.UNKNOWN, "confirmation": Confirmation.SENT, "message": "no answer"},
    "called back": {"verdict": Verdict.CANCELLED, "message": "called back in time"},
}


class Provider:
    """Answers attempts `latency_ms` after they were made.

    What it is told holds for the attempts that it answers from then on: for the next `times` of them, or until it is
    told something else.
    """

    name = "simulated"

    def __init__(self, latency_ms: int = 50) -> None:
        self.latency_ms = latency_ms
        self.delivers()

    def delivers(self) -> None:
        """It puts every context in front of its model."""
        self._will("delivers")

    def fails(self, times: int | None = None, *, transient: bool = True) -> None:
        """It fails; only where that is `transient` may trying again help."""
        self._will("fails" if transient else "fails for good", times)

    def refuses(self, times: int | None = None) -> None:
        """It will not have the context, now or later."""
        self._will("refuses", times)

    def is_silent(self, times: int | None = None) -> None:
        """It does not answer: at the attempt's timeout nobody knows whether the context is in."""
        self._will("is silent", times)

    def is_gone(self, times: int | None = None) -> None:
        """Nobody ever reports what became of an attempt: the process that made it has died."""
        self._will("is gone", times)

    def answer(
        self, attempt: InjectionAttempt, now_ms: int, *, called_back: bool = False
    ) -> tuple[int, AttemptVerdict] | None:
        """How many milliseconds from now on the attempt's verdict is known, and the verdict; None for never.

        One that was `called_back` meanwhile has not been sent: there was time.
        """
        does = self._does
        if does != "is gone" and called_back:
            does = "called back"
        elif self._times is not None:
            self._will(does, self._times - 1)
        if does == "is gone":
            return None
        verdict = AttemptVerdict(
            session_id=attempt.session_id,
            injection_id=attempt.injection.injection_id,
            attempt=attempt.attempt,
            provider=self.name,
            sent_ms=0 if does == "called back" else now_ms - self.latency_ms,
            answered_ms=0 if does in ("called back", "is silent") else now_ms,
            **_SAYS[does],
        )
        return max(0, attempt.injection.timeout_ms - self.latency_ms) if does == "is silent" else 0, verdict

    def _will(self, does: str, times: int | None = None) -> None:
        self._does, self._times = ("delivers", None) if times == 0 else (does, times)
