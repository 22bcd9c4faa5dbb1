"""Which records of a partition are finished, and so which offset may be committed.

Records are taken in order and finish in any order. The committable offset is that of the lowest unfinished record:
after a crash everything from there on comes again, and nothing before it does.
"""

from __future__ import annotations


class UnfinishedOffsets:
    """The records of one partition that were taken: unfinished, or finished and not yet committed."""

    def __init__(self) -> None:
        # Dicts keep the order in which records were taken.
        self._unfinished: dict[int, None] = {}
        self._appended_ms: dict[int, int] = {}
        self._next: int | None = None
        self._committed: int | None = None

    def __len__(self) -> int:
        return len(self._unfinished)

    def take(self, offset: int, appended_ms: int) -> None:
        """The record at `offset` is being worked on. Offsets come in ascending order; there may be gaps."""
        self._unfinished[offset] = None
        self._appended_ms[offset] = appended_ms
        self._next = offset + 1

    def finish(self, offset: int) -> None:
        """Everything that the record at `offset` caused is acknowledged by the broker."""
        del self._unfinished[offset]

    @property
    def uncommitted(self) -> int | None:
        """The offset to commit: of the first record that has to come again after a crash. None if it is committed."""
        offset = next(iter(self._unfinished), self._next)
        return None if offset == self._committed else offset

    def commit(self, offset: int) -> None:
        """The broker has `offset`: what lies before it never comes again."""
        self._committed = offset
        for taken in list(self._appended_ms):
            if taken >= offset:
                break
            del self._appended_ms[taken]

    @property
    def oldest_unfinished_ms(self) -> int | None:
        """When the first unfinished record was appended."""
        first = next(iter(self._unfinished), None)
        return None if first is None else self._appended_ms[first]

    @property
    def oldest_uncommitted_ms(self) -> int | None:
        """When the first record was appended that would come again after a crash now."""
        return next(iter(self._appended_ms.values()), None)
