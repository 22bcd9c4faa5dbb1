"""Train the detectors' weights: `python training/train.py DATA`.

Reads a data folder (training/corpora.py), writes contextengine/engine/triggers/language.weights and prints what it
tried on the development splits. Never reads a test split. The same data and libraries give the same file. Needs the
extra `train`: NumPy, SciPy and scikit-learn.

Each head is a logistic regression over binary n-grams, scaled by the square root of their naive Bayes log-ratio (Wang
and Manning, 2012), trained twice: on all n-grams, and again on those that weighed most.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from corpora import (
    MESSAGE_HEADS,
    Dialogue,
    best_threshold,
    f1,
    goemotions,
    multiwoz,
    tiage,
    topic_score,
)
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from contextengine.engine.triggers import language, topic
from contextengine.engine.triggers.language import (
    HEADS,
    LOGIT,
    Card,
    Head,
    LanguageModel,
    TopicHead,
    grams_of,
)

WEIGHTS: Final = Path(language.__file__).with_name("language.weights")
MESSAGE_FEATURES: Final = 12_000
TOPIC_FEATURES: Final = 4_000
HELD_OUT: Final = 0.2
"""The last share of MultiWOZ's val, on which its heads are tuned."""
GOODBYE: Final = re.compile(
    r"\b(bye|goodbye|good night|see you|farewell|take care|have a (nice|good|great))\b", re.IGNORECASE
)


@dataclass
class Fitted:
    """The weights of one head by feature, in log-odds, and its intercept."""

    weights: dict[str, float]
    bias: float


def matrix(
    rows: Sequence[Iterable[str]], at_least: int = 1, names: dict[str, int] | None = None
) -> tuple[Any, dict[str, int]]:
    """Binary features as a sparse matrix: those of `names`, or all that `at_least` so many rows have."""
    if names is None:
        counts = Counter(feature for row in rows for feature in row)
        names = {name: at for at, name in enumerate(sorted(name for name, n in counts.items() if n >= at_least))}
    columns = [sorted(names[feature] for feature in row if feature in names) for row in rows]
    ends = np.cumsum([0, *map(len, columns)])
    flat = np.fromiter((at for row in columns for at in row), np.int32, ends[-1])
    return sparse.csr_matrix((np.ones(len(flat), np.float32), flat, ends), (len(rows), len(names))), names


def regress(features: Any, truth: Any, strength: float, plain: Any = None) -> tuple[Any, float]:
    """Weights of the features, then of the `plain` columns, and the intercept."""
    with_it = np.asarray(features[truth].sum(0)).ravel() + 1
    without = np.asarray(features[~truth].sum(0)).ravel() + 1
    ratio = np.sqrt(np.abs(np.log(with_it / with_it.sum() / (without / without.sum()))))
    columns = features @ sparse.diags(ratio)
    if plain is not None:
        columns = sparse.hstack([columns, plain]).tocsr()
        ratio = np.concatenate([ratio, np.ones(plain.shape[1])])
    model = LogisticRegression(C=strength, solver="liblinear", random_state=0).fit(columns, truth)
    return model.coef_[0] * ratio, float(model.intercept_[0])


def heaviest(features: Any, weights: Any, most: int) -> Any:
    """The columns that move the most: by the largest weight of any head and how often they occur."""
    moved = np.abs(weights).max(0) * np.sqrt(np.asarray(features.sum(0)).ravel())
    return np.sort(np.argsort(-moved, kind="stable")[:most])


def fit_messages(texts: Sequence[str], truths: dict[str, Any], strength: float, most: int) -> dict[str, Fitted]:
    """Heads over the n-grams of single messages."""
    features, names = matrix([grams_of(text).features for text in texts], at_least=3)
    weights = np.stack([regress(features, truth, strength)[0] for truth in truths.values()])
    kept = heaviest(features, weights, most)
    ordered = [name for name, at in sorted(names.items(), key=lambda item: item[1])]
    chosen = [ordered[at] for at in kept]
    fitted = {}
    for head, truth in truths.items():
        row, bias = regress(features[:, kept], truth, strength)
        fitted[head] = Fitted(dict(zip(chosen, row.tolist(), strict=True)), bias)
    return fitted


def cues_of(dialogues: Sequence[Dialogue], model: LanguageModel) -> tuple[list[list[str]], Any, Any]:
    """What a topic head sees of every message but the first: cues by where they count, shape, and the truth."""
    rows, shapes, truth = [], [], []
    for dialogue in dialogues:
        thread, before = topic.Thread(), set[str]()
        for turn in dialogue:
            tokens, features = grams_of(turn.text)
            if thread.messages:
                heard = {token for said in thread.window for token in said}
                new = set(tokens) - heard
                rows.append(
                    [f"now {it}" for it in features] + [f"before {it}" for it in before] + [f"new {it}" for it in new]
                )
                shapes.append(topic.shape_of(thread, model.rarities(tokens), heard, by_user=turn.by_user))
                truth.append(turn.shift)
            topic.remember(thread, dict.fromkeys(tokens))
            before = features
    return rows, np.array(shapes, float) / 1000, np.array(truth)


def fit_topic(dialogues: Sequence[Dialogue], model: LanguageModel, strength: float) -> tuple[Fitted, list[float]]:
    """A profile's cues, and the weights of its shape per unit of 1000."""
    rows, shapes, truth = cues_of(dialogues, model)
    shapes *= shapes.std(0) > 0  # a figure that never varies teaches nothing: in small talk everybody is the user
    features, names = matrix(rows, at_least=2)
    weights, _ = regress(features, truth, strength, shapes)
    kept = heaviest(features, weights[None, : features.shape[1]], TOPIC_FEATURES)
    weights, bias = regress(features[:, kept], truth, strength, shapes)
    ordered = [name for name, at in sorted(names.items(), key=lambda item: item[1])]
    chosen = [ordered[at] for at in kept]
    return Fitted(dict(zip(chosen, weights[: len(chosen)].tolist(), strict=True)), bias), weights[
        len(chosen) :
    ].tolist()


def rarity_of(texts: Iterable[str]) -> dict[str, int]:
    """Twelve for every factor of e by which a word is rarer than in every message, up to 127."""
    counts: Counter[str] = Counter()
    messages = 0
    for text in texts:
        counts.update(set(grams_of(text).tokens))
        messages += 1
    return {word: min(127, round(12 * math.log(messages / n))) for word, n in counts.items()}


def scale_of(weights: Iterable[float]) -> float:
    """The size of one step of a weight of eight bits."""
    return max(map(abs, weights)) / 127


def assemble(
    messages: dict[str, Fitted], topics: dict[str, tuple[Fitted, list[float]]], rarity: dict[str, int]
) -> tuple[Card, dict[str, list[int]], dict[str, int]]:
    """Everything rounded to integers; thresholds are yet to be tuned."""
    weights: dict[str, list[int]] = {}
    heads, topic_heads = {}, {}

    def put(feature: str, lane: int, weight: float, step: float) -> None:
        if small := round(weight / step):
            weights.setdefault(feature, [0] * len(HEADS))[lane] = small

    for name, fitted in messages.items():
        step = scale_of(fitted.weights.values())
        heads[name] = Head(round(step * LOGIT * 65536), round(fitted.bias * LOGIT))
        for feature, weight in fitted.weights.items():
            put(feature, HEADS.index(name), weight, step)
    for profile, (fitted, shape) in topics.items():
        step = scale_of(fitted.weights.values())
        topic_heads[profile] = TopicHead(
            round(step * LOGIT * 65536), round(fitted.bias * LOGIT), tuple(round(it * LOGIT) for it in shape), 0
        )
        for cue, weight in fitted.weights.items():
            place, _, feature = cue.partition(" ")
            put(feature, HEADS.index(f"{profile} {place}"), weight, step)
    known = {word for feature in weights for word in feature.split() if feature in rarity}
    common = {word for word, rare in rarity.items() if rare < 100}
    for word in common - weights.keys():
        weights[word] = [0] * len(HEADS)
    return Card(heads, topic_heads), weights, {word: rarity[word] for word in known | common}


def change_scores(dialogues: Sequence[Dialogue], model: LanguageModel, profile: str) -> list[list[int]]:
    """The score of every message of every dialogue, as the engine computes it."""
    scores = []
    for dialogue in dialogues:
        thread, row = topic.Thread(), []
        for turn in dialogue:
            reading = model.read(turn.text)
            rarities = model.rarities(reading.tokens)
            row.append(topic.change_score(thread, reading, rarities, model, profile, by_user=turn.by_user))
            topic.remember(thread, rarities, reading.cues)
        scores.append(row)
    return scores


def told(scores: Sequence[Sequence[int]], threshold: int) -> list[list[bool]]:
    """The changes at this threshold."""
    return [[at > 0 and score >= threshold for at, score in enumerate(row)] for row in scores]


def tune(
    card: Card, model: LanguageModel, dev: dict[str, tuple[list[str], list[bool]]], talks: dict[str, list[Dialogue]]
) -> Card:
    """The card with the thresholds that serve best on the development splits."""
    heads, topics = dict(card.heads), dict(card.topics)
    figures = []
    for name, (texts, truth) in dev.items():
        field = (*language.EMOTIONS, *language.STATES).index(name)
        chances = [flat[field] for reading in map(model.read, texts) for flat in [(*reading.emotions, *reading[2:5])]]
        threshold = best_threshold(range(20, 900, 5), lambda at, c=chances, t=truth: f1(t, [x >= at for x in c]))
        heads[name] = Head(heads[name].scale, heads[name].bias, threshold)
        figures.append(f1(truth, [x >= threshold for x in chances]))
        print(f"dev  {name:9} F1 {figures[-1]:.3f} at {threshold} per mille")
    print(f"dev  Ekman-7 macro-F1 {sum(figures[:7]) / 7:.4f}")
    for profile, dialogues in talks.items():
        scores = change_scores(dialogues, model, profile)
        threshold = best_threshold(
            range(-160, 96, 4), lambda at, s=scores, d=dialogues: topic_score(d, told(s, at)).score
        )
        head = topics[profile]
        topics[profile] = TopicHead(head.scale, head.bias, head.shape, threshold)
        print(f"dev  topic {profile} at {threshold}: {topic_score(dialogues, told(scores, threshold))}")
    return Card(heads, topics)


def main() -> None:
    """Train, tune, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data

    single, single_dev = goemotions(data, "train"), goemotions(data, "dev")
    chats, chats_dev = tiage(data, "train"), tiage(data, "dev")
    tasks = multiwoz(data, "val")
    cut = round(len(tasks) * (1 - HELD_OUT))
    tasks, tasks_dev = tasks[:cut], tasks[cut:]

    texts = [message.text for message in single]
    rarity = rarity_of(texts)
    messages = fit_messages(
        texts,
        {name: np.array([bool(it.labels & labels) for it in single]) for name, labels in MESSAGE_HEADS.items()},
        strength=0.1,
        most=MESSAGE_FEATURES,
    )
    turns = [turn for dialogue in tasks for turn in dialogue]
    others = [text for text in texts[::4] if not GOODBYE.search(text)] + [
        it.text for talk in chats for it in talk if not GOODBYE.search(it.text)
    ]
    messages |= fit_messages(
        [turn.text for turn in turns] + others,
        {"closing": np.array([turn.closing for turn in turns] + [False] * len(others))},
        strength=0.3,
        most=1_000,
    )
    bare = LanguageModel(*assemble(messages, {}, rarity))
    topics = {
        "chat": fit_topic(chats, bare, 0.1),
        "task": fit_topic(tasks, bare, 0.1),
    }
    card, weights, rarity = assemble(messages, topics, rarity)
    model = LanguageModel(card, weights, rarity)
    dev = {
        name: ([it.text for it in single_dev], [bool(it.labels & labels) for it in single_dev])
        for name, labels in MESSAGE_HEADS.items()
    }
    turns = [turn for dialogue in tasks_dev for turn in dialogue]
    dev["closing"] = ([turn.text for turn in turns], [turn.closing for turn in turns])
    card = tune(card, model, dev, {"chat": chats_dev, "task": tasks_dev})
    packed = language.dump(card, weights, rarity)
    WEIGHTS.write_bytes(packed)
    print(f"{WEIGHTS.name}: {len(weights)} features, {len(packed)} bytes")


if __name__ == "__main__":
    main()
