"""Many small writes, one commit: callers wait until the group that holds their item is on disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy.orm import Session

from service.database import Database

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class GroupCommit(Generic[Item, Answer]):
    """Collects items of many coroutines and writes them in one transaction, in a thread.

    A commit costs a disk flush however little it holds. While one group is being committed the next one gathers.

    Parameters
    ----------
    database : Database
        Where to.
    write : callable
        ``write(session, items) -> answers``, one answer an item in the same order. If it raises, the transaction is
        rolled back and every caller of the group gets the error.
    wait_seconds : float
        How long a group gathers after its first item.
    largest : int
        Items in a group at most; a full group goes at once.
    """

    def __init__(
        self,
        database: Database,
        write: Callable[[Session, list[Item]], Sequence[Answer]],
        *,
        wait_seconds: float,
        largest: int,
    ) -> None:
        self._database = database
        self._write = write
        self._wait_seconds = wait_seconds
        self._largest = largest
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def add(self, item: Item) -> Answer:
        """Answer for ``item``, once its group is committed."""
        return await self.put(item)

    def put(self, item: Item) -> asyncio.Future[Answer]:
        """Hand ``item`` in without waiting; the future is done once its group is committed."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._full = asyncio.Event()  # of this loop: an event does not outlive the loop that waited for it
            self._task = asyncio.get_running_loop().create_task(self._run())
        if len(self._waiting) >= self._largest:
            self._full.set()
        return future

    def hurry(self) -> None:
        """Let the group go now: whoever could add to it is waiting for it."""
        self._full.set()

    async def drain(self) -> None:
        """Wait until everything handed in so far is committed (or has failed)."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while self._waiting:
                if len(self._waiting) < self._largest:
                    self._full.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._full.wait(), self._wait_seconds)
                group, self._waiting = self._waiting[: self._largest], self._waiting[self._largest :]
                try:
                    answers = await asyncio.to_thread(self._commit, [item for item, _ in group])
                except Exception as error:
                    for _, future in group:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for (_, future), answer in zip(group, answers, strict=True):
                        if not future.done():
                            future.set_result(answer)
        finally:
            self._task = None

    def _commit(self, items: list[Item]) -> Sequence[Answer]:
        with self._database.writing() as session:
            return self._write(session, items)
