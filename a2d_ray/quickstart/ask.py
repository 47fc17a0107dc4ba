"""A client that asks an OpenAI-compatible endpoint and shows the answers as they stream."""

import socket
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console


def ask(base_url: str, model: str, questions: Sequence[str], console: Console) -> dict[str, str]:
    """Asks an OpenAI-compatible endpoint, printing each answer as it streams.

    Args:
        base_url: such as ``http://127.0.0.1:8000/v1``.
        model: model id.
        questions: user messages, one chat each.
        console: where to print.

    Returns:
        The answer to each question.
    """
    from openai import OpenAI

    answers = {}
    with OpenAI(base_url=base_url, api_key="none", timeout=120) as client:
        for question in questions:
            console.print(f"  > {question}\n  ", style="bold", end="", markup=False)
            answers[question] = "".join(_stream(client, model, question, console))
            console.print()
    return answers


def _stream(client: Any, model: str, question: str, console: Console) -> Iterator[str]:
    """Pieces of the answer, printed when they come."""
    chunks = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], stream=True
    )
    for chunk in chunks:
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            console.print(piece, end="", markup=False, highlight=False)
            yield piece


def free_port(wanted: int) -> int:
    """`wanted` if nothing listens there, else another free port."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ValueError("no free port on this machine")
