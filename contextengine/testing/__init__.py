"""The test kit: a whole conversation in memory, judged by the same `decide` as a live one.

No broker, no socket, no thread, and no clock but the call's own. A test of one's rules reads like the conversation:

    from contextengine.rulefile import parse_rules
    from contextengine.testing import Call

    RULES = parse_rules(Path("rules.yaml").read_text(), "rules.yaml")

    def test_stress_about_a_startup_brings_support_when_the_person_has_finished():
        call = Call(RULES, facts={"startup_talks": "last week: runway"})
        call.says("I'm feeling really stressed about my startup")
        [support] = call.injections()
        assert support.context.strategy == {"tone": "supportive"}
        assert call.moment_of(support).event == "TurnEnded"

    def test_a_provider_that_stumbles_once_gets_it_a_second_time():
        call = Call(RULES, facts={"startup_talks": "last week: runway"})
        call.provider.fails(times=1)
        call.says("I'm feeling really stressed about my startup")
        call.advance_ms(10_000)
        assert call.outcomes() == [Outcome.DELIVERED]
"""

from contextengine.testing.call import Call, Snapshot
from contextengine.testing.provider import Provider

__all__ = ["Call", "Provider", "Snapshot"]
