"""Judge the shipped detectors on the test splits: `make evaluate DATA=folder`. Trains nothing.

Prints each figure beside what it should at least be (floor) and what would be good, and beside simple methods in the
same run. `--split dev` judges on what the thresholds were tuned on.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from corpora import MESSAGE_HEADS, Dialogue, Turn, f1, goemotions, multiwoz, tiage, topic_score

from contextengine.engine.triggers import language, topic
from contextengine.engine.triggers.emotion import feeling_in
from contextengine.engine.triggers.keywords import words_of
from contextengine.engine.triggers.language import EMOTIONS, STATES, LanguageModel, Reading, shipped
from contextengine.engine.triggers.mood import Moods, follow_mood

CONFUSED: Final = re.compile(
    r"\b(confus\w*|don'?t (get|understand)|not sure|no idea|what do(es)? (you|that|it) mean|makes no sense|lost me)\b"
)
CLOSING: Final = re.compile(
    r"\b(bye|goodbye|have a (nice|good|great|wonderful|lovely)|take care|"
    r"that('s| is|'ll be| will be) all|you're welcome)\b"
)


def line(name: str, ours: float, floor: float | None = None, good: float | None = None, beside: str = "") -> None:
    """One figure; the verdict is against floor and good."""
    verdict = ""
    if floor is not None and good is not None:
        verdict = "good" if ours >= good else "floor" if ours >= floor else "BELOW"
    wanted = f"{floor:.2f} / {good:.2f}" if floor is not None and good is not None else ""
    print(f"{name:52} {ours:6.3f}  {wanted:11}  {verdict:5}  {beside}")


def judge_messages(model: LanguageModel, data: Path, split: str, closings: Sequence[Turn]) -> None:
    """Feelings, confusion and closing, class by class."""
    messages = goemotions(data, split)
    readings = [model.read(message.text) for message in messages]
    fields = dict(
        zip((*EMOTIONS, *STATES), zip(*((*it.emotions, *it[2:5]) for it in readings), strict=True), strict=True)
    )
    figures = {}
    for name, labels in MESSAGE_HEADS.items():
        truth = [bool(message.labels & labels) for message in messages]
        figures[name] = f1(truth, [chance >= model.thresholds[name] for chance in fields[name]])
    truth = [bool(message.labels & MESSAGE_HEADS["confused"]) for message in messages]
    cue = f1(truth, [bool(CONFUSED.search(message.text.lower())) for message in messages])
    words = [feeling_in(words_of(message.text)) for message in messages]
    listed = [
        f1(
            [bool(message.labels & MESSAGE_HEADS[emotion]) for message in messages],
            [
                (feeling is None) if emotion == "neutral" else feeling is not None and feeling.emotion == emotion
                for feeling in words
            ],
        )
        for emotion in EMOTIONS
    ]
    macro = sum(figures[emotion] for emotion in EMOTIONS) / len(EMOTIONS)
    line("GoEmotions, Ekman-7, macro-F1", macro, 0.58, 0.62, f"word list {sum(listed) / len(listed):.3f}")
    for emotion, by_list in zip(EMOTIONS, listed, strict=True):
        line(f"    {emotion}", figures[emotion], beside=f"word list {by_list:.3f}")
    line("GoEmotions, negative, F1", figures["negative"])
    line("GoEmotions, confusion, F1", figures["confused"], 0.37, 0.42, f"regular expressions {cue:.3f}")
    said = [model.read(turn.text).closing >= model.thresholds["closing"] for turn in closings]
    by_rule = f1([turn.closing for turn in closings], [bool(CLOSING.search(turn.text.lower())) for turn in closings])
    line(
        "MultiWOZ, closing, F1",
        f1([turn.closing for turn in closings], said),
        beside=f"regular expressions {by_rule:.3f}",
    )


def changes(model: LanguageModel, dialogues: Sequence[Dialogue], profile: str) -> list[list[bool]]:
    """What the detector says of each message."""
    out = []
    for dialogue in dialogues:
        thread = topic.Thread()
        out.append(
            [
                topic.follow_topic(thread, model.read(turn.text), model, profile, by_user=turn.by_user).changed
                for turn in dialogue
            ]
        )
    return out


def judge_topics(model: LanguageModel, chats: Sequence[Dialogue], tasks: Sequence[Dialogue]) -> None:
    """Changes of topic, on the kind of conversation that a profile was trained for, and on the other."""
    rows = (
        ("TIAGE, Score, profile chat", chats, "chat", 0.57, 0.62),
        ("MultiWOZ, Score, profile task", tasks, "task", 0.76, 0.80),
        ("MultiWOZ, Score, drift (knows no task dialogue)", tasks, "drift", 0.51, 0.55),
        ("TIAGE, Score, drift (knows no chat)", chats, "drift", 0.39, 0.46),
        ("MultiWOZ, Score, profile chat (the wrong one)", tasks, "chat", None, None),
        ("TIAGE, Score, profile task (the wrong one)", chats, "task", None, None),
    )
    for name, dialogues, profile, floor, good in rows:
        ours = topic_score(dialogues, changes(model, dialogues, profile))
        never = topic_score(dialogues, [[False] * len(dialogue) for dialogue in dialogues])
        detail = f"F1 {ours.f1:.3f} Pk {ours.pk:.3f} WD {ours.windowdiff:.3f}; never firing {never.score:.3f}"
        line(name, ours.score, floor, good, detail)


def judge_returns(model: LanguageModel, tasks: Sequence[Dialogue]) -> None:
    """Returns to an earlier domain, where the detector told a change that was one."""
    truth, said = [], []
    for dialogue in tasks:
        thread, seen, last = topic.Thread(), set[str](), set[str]()
        for turn in dialogue:
            change = topic.follow_topic(thread, model.read(turn.text), model, "task", by_user=turn.by_user)
            if turn.shift and change.changed:
                truth.append(bool(turn.domains & (seen - last)))
                said.append(change.returned)
            if turn.by_user and turn.domains:
                seen, last = seen | turn.domains, set(turn.domains)
    line(
        "MultiWOZ, return to an earlier domain, F1",
        f1(truth, said),
        beside=f"{sum(truth)} returns in {len(truth)} changes told",
    )


def percentiles(run: Callable[[str], object], texts: Sequence[str]) -> tuple[float, float]:
    """p50 and p99 in microseconds of this thread's own time, each text once, after a warm-up."""
    for text in texts[:500]:
        run(text)
    gc.collect()
    took = []
    for text in texts:
        start = time.thread_time_ns()
        run(text)
        took.append(time.thread_time_ns() - start)
    took.sort()
    return took[len(took) // 2] / 1000, took[len(took) * 99 // 100] / 1000


def judge_speed(model: LanguageModel, texts: Sequence[str]) -> None:
    """Microseconds a message: cutting up, reading, and everything with topic and mood."""
    thread, moods = topic.Thread(), Moods()

    def everything(text: str) -> None:
        reading: Reading = model.read(text)
        model.felt(reading)
        topic.follow_topic(thread, reading, model, "chat")
        follow_mood(moods, "user", reading)

    for name, run, wanted in (
        ("cut into n-grams", language.grams_of, ""),
        ("read: every head", model.read, ""),
        ("read, emotion, topic with its stack, mood", everything, "50 / 150 at most; good 35 / 100"),
    ):
        p50, p99 = percentiles(run, texts)
        print(f"{name:52} p50 {p50:5.1f} us  p99 {p99:5.1f} us  {wanted}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    given = parser.parse_args()
    model = shipped()
    tasks = multiwoz(given.data, "test") if given.split == "test" else multiwoz(given.data, "val")[-200:]
    chats = tiage(given.data, given.split)
    weights = Path(language.__file__).with_name("language.weights").read_bytes()
    print(f"weights {hashlib.sha256(weights).hexdigest()} ({len(weights)} bytes), split {given.split}\n")
    print(f"{'figure':52} {'ours':>6}  {'floor/good':11}  {'':5}  beside")
    judge_messages(model, given.data, given.split, [turn for dialogue in tasks for turn in dialogue])
    judge_topics(model, chats, tasks)
    judge_returns(model, tasks)
    print()
    spoken = [turn.text for dialogue in [*chats, *tasks[:100]] for turn in dialogue]
    judge_speed(model, spoken + [message.text for message in goemotions(given.data, given.split)[:2000]])


if __name__ == "__main__":
    main()
