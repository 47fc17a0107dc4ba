"""Offline generation, one part: rows of prompts -> rows of answers with their usage. No Ray."""

import json
from typing import Any

from a2d_ray.config import GenerateConfig
from a2d_ray.generation.decoding.params import SamplingParams, derive_seed
from a2d_ray.generation.engine.engine import EngineOptions, Request, StepOutput
from a2d_ray.text.answers import AnswerWriter
from a2d_ray.text.language_model import LanguageModel


class PartAnswerer:
    """Answers parts with one engine, which keeps the prefixes that prompts share.

    Every row draws with a seed of its own: a hash of `sampling.seed` and its index.

    Args:
        lm: the model.
        config: the job.
    """

    def __init__(self, lm: LanguageModel, config: GenerateConfig) -> None:
        self._lm = lm
        self._config = config
        self._engine = lm.make_engine(EngineOptions(**config.engine.model_dump()))

    def answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One answer per row and choice, in their order; a row that cannot be answered says why.

        Args:
            rows: ``index``, ``row`` (the user's) and ``error`` (why it could not be read, or None).

        Returns:
            ``index``, ``choice``, ``input`` (the row as JSON), ``text``, ``token_ids``,
            ``finish_reason``, ``usage``, ``logprobs`` (of each token), ``top_logprobs`` (of the
            most likely tokens in each place, as `sampling.logprobs` asks) and ``error``.
        """
        answers: dict[tuple[int, int], dict[str, Any]] = {}
        writers: dict[str, tuple[int, int, AnswerWriter]] = {}
        for row in rows:
            index = row["index"]
            error = row["error"]
            try:
                requests = [] if error else self._queue(index, row["row"])
            except ValueError as refusal:
                requests = []
                error = str(refusal)
            if error:
                answers[index, 0] = _row(index, 0, row["row"], error=error)
            for request in requests:
                writer = AnswerWriter(self._lm.tokenizer, request.params, request.choice)
                writers[request.request_id] = index, request.choice, writer
                num_prompt_tokens = sum(map(len, request.prompt))
                answers[index, request.choice] = _row(
                    index, request.choice, row["row"], usage={"prompt_tokens": num_prompt_tokens}
                )
        while self._engine.has_unfinished():
            for output in self._engine.step():
                index, choice, writer = writers[output.request_id]
                if writer.push(output).finish_reason is not None:
                    self._engine.abort(output.request_id)
                    _complete(answers[index, choice], writer, output)
                if output.error is not None:
                    answers[index, choice]["error"] = repr(output.error)
        return [answer for _, answer in sorted(answers.items())]

    def _queue(self, index: int, row: dict[str, Any]) -> list[Request]:
        """Hands a row's choices to the engine.

        Raises:
            ValueError: the row is no prompt, or too long.
        """
        sampling = self._config.sampling.model_dump()
        params = SamplingParams(**sampling | {"seed": derive_seed(sampling["seed"], index)})
        prompt = self._lm.encode(row_prompt(row, self._config, self._lm.tokenizer))
        requests = [
            Request(request_id=f"{index}-{choice}", prompt=prompt, params=params, choice=choice)
            for choice in range(params.n)
        ]
        for request in requests:
            self._engine.add_request(request)
        return requests


def row_prompt(
    row: dict[str, Any], config: GenerateConfig, tokenizer: Any
) -> str | list[dict[str, Any]]:
    """The prompt of a row: chat messages, or text (through the chat template if there is one).

    Of a chat that ends with an answer it is what comes before: the answer is asked for again.

    Raises:
        ValueError: there is none, or it has another form.
    """
    column = config.column or ("messages" if "messages" in row else "prompt")
    if column not in row:
        raise ValueError(f"no column {column!r}: there are {sorted(row)}; set column")
    value = row[column]
    system = config.system
    if isinstance(value, str):
        is_chat = tokenizer and tokenizer.chat_template if config.chat == "auto" else config.chat
        if not is_chat:
            return value
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(_is_message(message) for message in value):
        raise ValueError(
            f"column {column!r} holds neither a text nor a list of messages with role and content"
        )
    if value and value[-1]["role"] == "assistant":
        value = value[:-1]
    if system is not None and (not value or value[0]["role"] != "system"):
        value = [{"role": "system", "content": system}, *value]
    return value


def conversations(
    answers: list[dict[str, Any]], config: GenerateConfig, tokenizer: Any
) -> list[dict[str, Any]]:
    """The chats whose answers are whole, each with its answer as the last turn: rows to train on.

    An answer that was cut at `max_new_tokens` does not end as the model would, so it is left out.
    """
    found = []
    for answer in answers:
        if answer["finish_reason"] != "stop" or not answer["text"].strip():
            continue
        prompt = row_prompt(json.loads(answer["input"]), config, tokenizer)
        if isinstance(prompt, str):
            continue
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
        found.append({"messages": [*turns, {"role": "assistant", "content": answer["text"]}]})
    return found


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )


def _row(index: int, choice: int, row: Any, **values: Any) -> dict[str, Any]:
    empty = dict.fromkeys(
        ("text", "token_ids", "finish_reason", "usage", "logprobs", "top_logprobs", "error"), None
    )
    source = json.dumps(row, ensure_ascii=False, default=str)
    return {"index": index, "choice": choice, "input": source, **empty, **values}


def _complete(answer: dict[str, Any], writer: AnswerWriter, output: StepOutput) -> None:
    result = writer.result()
    answer["usage"] |= {
        "completion_tokens": len(result.token_ids),
        "forwards": output.num_forwards,
        "denoise_steps": output.num_denoise_steps,
        "cached_tokens": output.num_cached_tokens,
        "drafted": result.num_drafted,
        "accepted": result.num_accepted,
    }
    answer["text"] = result.text
    answer["token_ids"] = result.token_ids
    answer["finish_reason"] = result.finish_reason
    if result.logprobs is not None:
        answer["logprobs"] = [entry.logprob for entry in result.logprobs]
        answer["top_logprobs"] = [
            [{"token_id": token_id, "logprob": logprob} for token_id, logprob in entry.top]
            for entry in result.logprobs
        ]
