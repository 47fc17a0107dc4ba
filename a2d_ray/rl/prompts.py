"""What is asked: prompts of a mixture, tokenized, each with what its reward is given."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from a2d_ray.config import OptionError, TrainConfig
from a2d_ray.data.chat import render_prompt
from a2d_ray.data.hashing import stable_id
from a2d_ray.data.sources.adapters import Example
from a2d_ray.data.sources.mixture import Split, parse_spec
from a2d_ray.data.sources.reading import Unit, reading_units
from a2d_ray.data.sources.shards import ReadRow, read_shard, resolve_source
from a2d_ray.data.thoughts import split_thought
from a2d_ray.models.tokenizers import load_tokenizer, with_template_options

PROMPTS_FILE = "prompts.jsonl"
EXCEEDS = "the prompt and rl.rollout.sampling.max_new_tokens exceed data.max_length"
SEEN = "a prompt that came before"


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One prompt.

    Attributes:
        id: hash of its content and its answer.
        split: ``train``, or ``test``: it is only asked in evaluations.
        segments: token ids, as `render_prompt` gives them.
        reference: what the reward is given beside an answer: a text, or any JSON value.
    """

    id: int
    split: str
    segments: tuple[tuple[int, ...], ...]
    reference: Any


@dataclass
class PromptSet:
    """The prompts of a mixture.

    Attributes:
        rows: in the order of the sources.
        dropped: rows that are no prompts, by reason.
    """

    rows: list[PromptRow] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def of(self, split: Split) -> list[PromptRow]:
        """Those of a split."""
        return [row for row in self.rows if row.split == split]

    def dump(self) -> bytes:
        """JSON lines, which `load` reads."""
        return b"".join(json.dumps(asdict(row)).encode() + b"\n" for row in self.rows)

    @classmethod
    def load(cls, content: bytes) -> "PromptSet":
        """The prompts that `dump` wrote."""
        found = cls()
        for line in content.splitlines():
            row = json.loads(line)
            segments = tuple(map(tuple, row["segments"]))
            found.rows.append(PromptRow(**row | {"segments": segments}))
        return found


def read_prompt_rows(config: TrainConfig) -> PromptSet:
    """Reads, splits and tokenizes the prompts of ``data.spec``.

    A prompt is what comes before a row's last answer; a text of ``data.text_field`` is a user's
    message. Which rows are held out is decided as in supervised training.

    Raises:
        OptionError: a source that cannot be read, no prompt, no such column, too many bad rows.
    """
    data = config.data
    tokenizer = with_template_options(load_tokenizer(config.model.path), data.template_options)
    sources = [resolve_source(spec) for spec in parse_spec(data.spec)]
    found = PromptSet()
    seen: set[int] = set()
    num_rows = num_bad = 0
    for unit in reading_units(sources, data, {}):
        for split, row in _rows(unit):
            num_rows += 1
            if row.example is None:
                num_bad += 1
                found.dropped[str(row.reason)] += 1
                continue
            prompt = _prompt(row, split, config, tokenizer)
            reason = EXCEEDS if prompt is None else SEEN if prompt.id in seen else None
            if prompt is None or reason is not None:
                found.dropped[str(reason)] += 1
                continue
            seen.add(prompt.id)
            found.rows.append(prompt)
    _check(found, num_rows, num_bad, config)
    return found


def _rows(unit: Unit) -> Iterator[tuple[Split, ReadRow]]:
    """Rows of a unit with their splits, as many as its source may give."""
    taken: Counter[Split] = Counter()
    for shard in unit.shards:
        for row in read_shard(shard, unit.source.spec, unit.shape):
            if row.is_other_language:
                continue
            content = json.dumps([row.example and asdict(row.example), row.reason])
            split = unit.split_of(stable_id(content))
            limit = unit.limits.get(split)
            if limit is None or taken[split] < limit:
                taken[split] += row.example is not None
                yield split, row


def _prompt(row: ReadRow, split: Split, config: TrainConfig, tokenizer: Any) -> PromptRow | None:
    """The prompt of a row; None: it is too long."""
    assert row.example is not None and config.rl is not None
    messages, answer = _parts(row.example)
    column = config.rl.answer_column
    if column is not None:
        if column not in row.columns:
            there = ", ".join(sorted(row.columns))
            fix = f"set one of {there}, or null"
            raise OptionError("rl.answer_column", column, "is no column of data.spec", fix)
        answer = row.columns[column]
    elif answer is None:
        problem = "leaves rows without an answer, since they do not end with the assistant's"
        raise OptionError("rl.answer_column", None, problem, "name the column that holds it")
    turns = [{"role": role, "content": content} for role, content in messages]
    segments = tuple(map(tuple, render_prompt(turns, tokenizer)))
    room = config.data.max_length - config.rl.rollout.sampling.max_new_tokens
    if sum(map(len, segments)) > room:
        return None
    reference = json.loads(json.dumps(answer, default=str))
    identity = stable_id(json.dumps([segments, reference], sort_keys=True))
    return PromptRow(id=identity, split=split, segments=segments, reference=reference)


def _parts(example: Example) -> tuple[Sequence[tuple[str, str]], str | None]:
    """Messages of the prompt, and the answer behind them without its reasoning."""
    if example.text:
        return [("user", example.text)], None
    *before, (role, content) = example.messages
    if role != "assistant":
        return example.messages, None
    return before, split_thought(content)[1]


def _check(found: PromptSet, num_rows: int, num_bad: int, config: TrainConfig) -> None:
    data = config.data
    assert config.rl is not None
    if num_bad > data.max_bad_fraction * num_rows:
        fix = "mend them, or raise data.max_bad_fraction"
        reason = found.dropped.most_common(1)[0][0]
        problem = f"holds {num_bad} malformed rows of {num_rows} ({reason})"
        raise OptionError("data.spec", data.spec, problem, fix)
    groups = config.batch.rows // config.rl.group_size
    there = len(found.of("train"))
    if there < groups:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.dropped.most_common())
        dropped = f" (dropped: {reasons})" if reasons else ""
        raise OptionError(
            "data.spec",
            data.spec,
            f"has {there} prompts, and a step asks {groups}{dropped}",
            "name more, or lower batch.rows",
        )
