"""Each strategy fires in a worker on a broker, and its context is handed to the VoiceEngine."""

from __future__ import annotations

import asyncio
import uuid

from broker_log import until

from contextengine import plugins
from contextengine.app import build_app, run_worker
from contextengine.schemas.events import (
    ASSISTANT,
    HAND_OFF,
    USER,
    ContextRequested,
    ErrorOccurred,
    MessageCompleted,
    SessionStarted,
    ToolCallEnded,
    ToolCallStarted,
    TopicChanged,
)
from contextengine.schemas.injection import Verdict
from contextengine.streaming.injections import Injections
from contextengine.topics import admin
from contextengine.topics.publisher import Publisher

SPEED = 50.0
WITHIN_S = 15.0
LOADED_ONLY = {"scheduled"}
"""The next minute of the wall clock can be a minute away; it fires in the recorded sessions (group `brain`)."""
WHEN = {
    "after": "{after: {of: {reactive: error_occurred}, delay: 5 s}}",
    "all": "{all: [{keyword: refund}, {phase: start}]}",
    "any": "{any: [{keyword: never said}, {reactive: tool_call_ended}]}",
    "at_most": "{at_most: {of: {every_messages: 1}, times: 1, window: 1 h}}",
    "context_shift": "{context_shift: {returns: false}}",
    "conversation_reaches": "{conversation_reaches: 10 s}",
    "cool_down": "{cool_down: {of: {every_messages: 1}, pause: 1 h}}",
    "corrective": "{corrective: [user_correction]}",
    "decay": "{decay: {base: 10 s, longest: 10 min}}",
    "emotion": "{emotion: [joy]}",
    "emotion_shift": "{emotion_shift: negative}",
    "every": "{every: 20 s}",
    "every_messages": "{every_messages: 3}",
    "hysteresis": "{hysteresis: {on: {reactive: tool_call_started}, off: {reactive: tool_call_ended}}}",
    "keyword": "{keyword: refund}",
    "not": "{all: [{keyword: terrible}, {not: {user_state: idle}}]}",
    "on_demand": "{on_demand: {query: [opening hours]}}",
    "phase": "{phase: middle}",
    "predictive": "{predictive: {given: [refund], then: [voucher], chance: 0.7}}",
    "predictive_topic": "{predictive_topic: {then: [payment], seen: 1}}",
    "reactive": "{reactive: {on: tool_call_ended, where: {failed: true}}}",
    "scheduled": "{scheduled: {cron: '0 0 29 2 *'}}",
    "silence": "{silence: 10 s}",
    "system_state": "{system_state: error}",
    "topic": "{topic: {about: [hotel]}}",
    "user_state": "{user_state: {becomes: idle, idle: 20 s}}",
    "within": "{within: {first: {keyword: refund}, then: {reactive: error_occurred}, span: 10 min}}",
}
RULES = "rules:\n" + "".join(
    f"  - {{name: {name}, when: {when}, inject: {{strategy: {{{name}: fired}}}}, ttl: 1 h}}\n"
    for name, when in WHEN.items()
)
SCRIPT = [
    (MessageCompleted, {"speaker": USER, "text": "I am so happy with the hotel, but I would like a refund."}),
    (MessageCompleted, {"speaker": ASSISTANT, "text": "For which night?"}),
    (MessageCompleted, {"speaker": USER, "text": "No, I meant the whole week."}),
    (ToolCallStarted, {"tool": "refund", "tool_call_id": "t1"}),
    (ToolCallEnded, {"tool": "refund", "tool_call_id": "t1", "failed": True}),
    (ErrorOccurred, {"stage": "tool", "code": "timeout"}),
    (MessageCompleted, {"speaker": ASSISTANT, "text": "That did not work."}),
    (MessageCompleted, {"speaker": USER, "text": "This is terrible, I hate it. I am so angry and so sad!"}),
    (ContextRequested, {"request_id": "r1", "query": "What are the opening hours?"}),
    (TopicChanged, {"topic": "offer"}),
    (TopicChanged, {"topic": "payment"}),
    (TopicChanged, {"topic": "offer"}),
]


async def handed_over(injections, wanted):
    """The rules whose contexts are handed over until all that are wanted are, or none comes any more in time."""
    found = set()
    try:
        async with asyncio.timeout(WITHIN_S):
            async for attempt in injections:
                await injections.report(attempt, Verdict.DELIVERED)
                found.add(attempt.injection.rule)
                if found >= wanted:
                    break
    except TimeoutError:
        pass
    return found


async def test_each_strategy_fires_in_a_worker_and_its_context_is_handed_to_the_voice_engine(settings):
    assert set(WHEN) == set(plugins.names("strategies"))
    await admin.apply(settings, uuid.uuid4().hex)
    stop, worker = asyncio.Event(), build_app(settings)
    running = asyncio.create_task(run_worker(settings, RULES, stop, worker))
    await until(lambda: worker.health.ready()["ready"] or running.done())
    wanted = set(WHEN) - LOADED_ONLY
    async with Injections(settings) as injections, Publisher(settings) as publisher:
        await injections.watch("s1")
        call = publisher.session("s1")
        call.publish(SessionStarted, provider="p", model="m", route=HAND_OFF, time_scale=SPEED)
        for kind, fields in SCRIPT:
            call.publish(kind, **fields)
        found = await handed_over(injections, wanted)
    stop.set()
    await running
    assert sorted(wanted - found) == []
