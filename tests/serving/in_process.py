"""A client that speaks to an application in this process, and rounds that wait for clients."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx


class Client:
    """Requests to an application in this process."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def run(self, ask: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        """The result of `ask(client)` in an event loop of its own."""

        async def main() -> Any:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await ask(client)

        return asyncio.run(main())

    def get(self, path: str) -> httpx.Response:
        """Answer to a GET."""
        return self.run(lambda client: client.get(path))

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Answer to a POST of a body for the model ``tiny``."""
        return self.run(lambda client: client.post(path, json={"model": "tiny", **body}))

    def events(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """Chunks of a streamed answer; its last event is ``[DONE]``."""
        response = self.post(path, stream=True, **body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        *events, end, rest = response.text.split("\n\n")
        assert (end, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


def wait_in_a_round(server: Any, num_requests: int) -> None:
    """The engine's next round goes on when so many requests are there, its own ones included."""
    loop = server._engine
    step = loop._engine.step

    def waiting_step() -> Any:
        loop._engine.step = step
        deadline = time.monotonic() + 60
        while len(loop._listeners) + loop._commands.qsize() < num_requests:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return step()

    loop._engine.step = waiting_step
