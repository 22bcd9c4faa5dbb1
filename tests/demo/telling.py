"""A told story of one call: records, and what they add up to."""

from __future__ import annotations

from contextengine.demo.story import Story
from contextengine.demo.summary import Summary, summarise
from contextengine.demo.voice_engine import Asked
from contextengine.schemas.decision import Acceptance, DecisionMade, Firing, Suppression
from contextengine.schemas.events import MessageCompleted, SessionEnded, SessionStarted
from contextengine.schemas.injection import AttemptVerdict, Confirmation, InjectionResult, Outcome, Verdict

COMMON = {"session_id": "s", "producer": "p", "incarnation": 1}
STARTED = SessionStarted(**COMMON, seq=0, at_ms=1_000, provider="openai_realtime", model="m", time_scale=10)
SAID = MessageCompleted(**COMMON, seq=1, at_ms=1_200, speaker="user", text="my dog")
ENDED = SessionEnded(**COMMON, seq=2, at_ms=2_000)
DECIDED = DecisionMade(
    session_id="s",
    position="p/1/1",
    event="MessageCompleted",
    now_ms=1_210,
    elapsed_ms=2_100,
    rules_hash="",
    digest="",
    fired=[Firing(rule="pets", evidence={"keywords": "dog"}), Firing(rule="upset", evidence={"emotion": "anger"})],
    accepted=[Acceptance(rule="pets", injection_id="i1", placement="now", text="[Strategy]\n- small talk: yes")],
    suppressed=[Suppression(rule="upset", filter="shadow", reason="on trial")],
    released=["i1"],
)
VERDICT = AttemptVerdict(
    session_id="s",
    injection_id="i1",
    attempt=1,
    verdict=Verdict.DELIVERED,
    provider="openai_realtime",
    confirmation=Confirmation.IN_CONTEXT,
    role="system",
    sent_ms=1_230,
    answered_ms=1_240,
)
RESULT = InjectionResult(
    session_id="s",
    injection_id="i1",
    rule="pets",
    outcome=Outcome.DELIVERED,
    provider="openai_realtime",
    criticality="optional",
    attempts=1,
    trigger_ms=1_200,
    decided_ms=1_250,
)
WITH_IT = Asked("s", "resp_2", 1_300, ("item_1", "i1"))
WITHOUT_IT = Asked("s", "resp_2", 1_300, ("item_1",))


def story(*told: object) -> Story:
    """What is known when `told` has been told, after the start of the call."""
    known = Story()
    known.observe(STARTED, 1_000)
    for record in told:
        if isinstance(record, Asked):
            known.heard(record)
        else:
            known.observe(record, 1_250)
    return known


def summary(known: Story, **found: object) -> Summary:
    """Its summary, when nothing else was found than `found`."""
    given = {"seconds": 1.0, "prefix": "demo", "broker": "b", "expected": (), "violations": [], "problems": []}
    return summarise(known, **{**given, **found})
