"""The work done by Quix Streams, as its documentation shows it: a stateful function, a filter and a topic.

    python quix_worker.py BROKER GROUP EVENTS INJECTIONS ONE_OUTPUT_IN

It runs in an environment of its own (throughput.py makes it), and its state is in RocksDB with a changelog topic. Its
settings are its defaults, except that it commits every half second as everybody does here.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from quixstreams import Application, State, message_context
from work import Session, SessionCodec, decode, judge


def main(broker: str, group: str, events: str, injections: str, one_output_in: int) -> None:
    """Work until somebody stops it."""
    app = Application(
        broker,
        consumer_group=group,
        auto_offset_reset="earliest",
        commit_interval=0.5,
        state_dir=tempfile.mkdtemp(),
        loglevel="WARNING",
    )
    codec = SessionCodec()

    def work(value: bytes, state: State) -> bytes | None:
        found = state.get_bytes("session")
        session = codec.decode(found) if found else Session()
        output = judge(decode(value), session, message_context().offset, one_output_in)
        state.set_bytes("session", codec.encode(session))
        return output

    stream: Any = app.dataframe(app.topic(events, value_deserializer="bytes"))
    stream = stream.apply(work, stateful=True)
    stream = stream[stream.apply(lambda output: output is not None)]
    stream.to_topic(app.topic(injections, value_serializer="bytes"))
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
