"""The engine in its own thread, its answers in asyncio."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from a2d_ray.generation.engine.engine import Engine, Request, StepOutput

_log = logging.getLogger(__name__)


class EngineDeadError(RuntimeError):
    """The engine's thread ended; nothing can be generated any more."""


class GenerationError(RuntimeError):
    """One request failed; the engine goes on."""


@dataclass(frozen=True, eq=False)
class _Listener:
    """Where the outputs of one request go: a queue of the event loop that asked."""

    request: Request
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    outputs: "asyncio.Queue[StepOutput | Exception]" = field(default_factory=asyncio.Queue)


class AsyncEngine:
    """Drives an engine in a thread; concurrent requests share its rounds.

    Between two rounds the thread takes new requests and drops those whose client went away.

    Args:
        engine: used by nobody else from now on.
        round_timeout_s: a round that takes longer counts as a hang; `check_health` finds it.
    """

    def __init__(self, engine: Engine, *, round_timeout_s: float = 120.0) -> None:
        self._engine = engine
        self._round_timeout_s = round_timeout_s
        self._round_since: float | None = None  # when the round that runs now began
        # Commands to the thread: a request to add, the id of one to abort, None to end.
        self._commands: queue.SimpleQueue[_Listener | str | None] = queue.SimpleQueue()
        self._listeners: dict[str, _Listener] = {}  # belongs to the thread
        self._death: EngineDeadError | None = None
        self._lock = threading.Lock()  # no command after the thread's last look
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def generate(self, request: Request) -> AsyncGenerator[StepOutput, None]:
        """Yields the outputs of every round of a request until it has finished.

        Closing or cancelling the generator aborts the request before the next round.

        Raises:
            ValueError: the engine refuses the request.
            GenerationError: it failed by itself.
            EngineDeadError: the engine's thread ended.
        """
        listener = _Listener(request)
        self._send(listener)
        is_finished = False
        try:
            while not is_finished:
                output = await listener.outputs.get()
                if isinstance(output, Exception):
                    is_finished = True
                    raise output
                is_finished = output.finish_reason is not None
                if output.error is not None:
                    raise GenerationError(_explain(output.error)) from output.error
                yield output
        finally:
            if not is_finished and self._death is None:
                self._send(request.request_id)

    def check_health(self) -> None:
        """Returns if the thread lives and its round is not overdue.

        A thread that hangs cannot be ended; its requests fail here, and the process has to go.

        Raises:
            EngineDeadError: why it ended.
        """
        since = self._round_since
        if since is not None and time.monotonic() - since > self._round_timeout_s:
            self._die(
                EngineDeadError(
                    f"the engine hangs: its round has not ended after {self._round_timeout_s:g} s"
                )
            )
        if self._death is not None:
            raise self._death

    def close(self, timeout_s: float = 30.0) -> None:
        """Ends the thread after its current round; requests that wait fail."""
        self._commands.put(None)
        self._thread.join(timeout_s)

    def _send(self, command: "_Listener | str") -> None:
        with self._lock:
            if self._death is not None and not isinstance(command, str):
                raise self._death
            self._commands.put(command)

    def _run(self) -> None:
        reason = "the engine was closed"
        try:
            while self._death is None and self._take_commands():
                if self._engine.has_unfinished():
                    self._round_since = time.monotonic()
                    outputs = self._engine.step()
                    self._round_since = None
                    self._deliver(outputs)
        except Exception as error:  # whatever it is, those who wait must hear of it
            reason = f"the engine failed: {_explain(error)}"
            _log.exception("the engine failed")
        finally:
            self._die(EngineDeadError(reason))

    def _take_commands(self) -> bool:
        """Carries out what was asked since the last round; waits if there is nothing to do."""
        while True:
            try:
                command = self._commands.get(block=not self._engine.has_unfinished())
            except queue.Empty:
                return True
            if command is None:
                return False
            if isinstance(command, str):
                self._engine.abort(command)
                self._listeners.pop(command, None)
            else:
                self._add(command)

    def _add(self, listener: _Listener) -> None:
        request_id = listener.request.request_id
        assert request_id not in self._listeners, f"request id {request_id} is in use"
        self._listeners[request_id] = listener
        try:
            self._engine.add_request(listener.request)
        except Exception as error:  # whatever it is, those who run already go on
            refusal = error if isinstance(error, ValueError) else GenerationError(_explain(error))
            _put_all(listener.loop, [(self._listeners.pop(request_id), refusal)])

    def _deliver(self, outputs: list[StepOutput]) -> None:
        """Hands over a round's outputs, waking each event loop once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Any]] = {}
        for output in outputs:
            listener = self._listeners.get(output.request_id)
            if listener is None:  # failed while the round hung
                continue
            by_loop.setdefault(listener.loop, []).append((listener, output))
            if output.finish_reason is not None:
                del self._listeners[output.request_id]
        for loop, pairs in by_loop.items():
            _put_all(loop, pairs)

    def _die(self, death: EngineDeadError) -> None:
        """Fails all who wait. Runs in the engine's thread, or beside one that hangs."""
        with self._lock:
            if self._death is not None:
                return
            self._death = death
        listeners = list(self._listeners.values())
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Listener):
                listeners.append(command)
        for listener in listeners:
            _put_all(listener.loop, [(listener, death)])


def _explain(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _put_all(loop: asyncio.AbstractEventLoop, pairs: list[Any]) -> None:
    def put() -> None:
        for listener, output in pairs:
            listener.outputs.put_nowait(output)

    try:
        loop.call_soon_threadsafe(put)
    except RuntimeError:  # the loop was closed: nobody is left to listen
        if not loop.is_closed():
            raise
