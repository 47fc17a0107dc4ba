"""Answers stream to the terminal through the real client; ports are looked for."""

import io
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from a2d_ray.quickstart.ask import ask, free_port


class Echo(BaseHTTPRequestHandler):
    """Streams the question back, word by word, as an OpenAI-compatible endpoint does."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in body["messages"][-1]["content"].split():
            delta = {"choices": [{"index": 0, "delta": {"content": f"[{word}]"}}]}
            self.wfile.write(f"data: {json.dumps(delta)}\n\n".encode())
        self.wfile.write(b'data: {"choices": []}\n\ndata: [DONE]\n\n')

    def log_message(self, *args):
        pass


@pytest.fixture
def base_url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_each_answer_is_collected_and_printed(base_url):
    text = io.StringIO()
    answers = ask(base_url, "m", ["a b", "c"], Console(file=text))
    assert answers == {"a b": "[a][b]", "c": "[c]"}
    assert "> a b" in text.getvalue()
    assert "[a][b]" in text.getvalue()


def test_a_taken_port_is_replaced():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) not in (port, 0)
    assert free_port(port) == port
