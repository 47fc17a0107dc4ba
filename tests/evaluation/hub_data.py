"""Small data sets with the schemas of those on the Hub, as clones in a directory."""

import json
from pathlib import Path

import yaml

MATH_SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
    *("number_theory", "prealgebra", "precalculus"),
)


def write_dataset(root: Path, name: str, configs: dict[str, dict[str, list[dict]]]) -> None:
    """`configs`: configuration -> split -> rows."""
    folder = root / name
    entries = []
    for config, splits in configs.items():
        files = []
        for split, rows in splits.items():
            path = folder / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files.append({"split": split, "path": f"{config}/{split}.jsonl"})
        entries.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': entries})}---\n")


def write_all(root: Path, bbh_names: list[str], mmlu_pro_subjects: list[str]) -> None:
    """gsm8k, bbh, MMLU, MMLU-Pro, HellaSwag, MBPP and MATH: two rows of each."""
    write_dataset(
        root,
        "openai/gsm8k",
        {
            "main": {
                split: [
                    {
                        "question": f"{n} and {n}?",
                        "answer": f"{n} + {n} = <<{n}+{n}>>\n#### {2 * n}",
                    }
                    for n in (1, 2)
                ]
                for split in ("train", "test")
            }
        },
    )
    rows = [{"input": "not True is", "target": "False"}, {"input": "True is", "target": "True"}]
    write_dataset(root, "SaylorTwift/bbh", {name: {"test": rows} for name in bbh_names})
    question = {
        "question": "Which is a colour?",
        "subject": "abstract_algebra",
        "choices": ["red", "two", "dog", "run"],
        "answer": 0,
    }
    write_dataset(root, "cais/mmlu", {"all": {"test": [question, question | {"answer": 1}]}})
    pro = [
        {
            "question_id": index,
            "question": "Which is a colour?",
            "options": ["red", "two", "dog"],
            "answer": "A",
            "answer_index": 0,
            "cot_content": "A: Let's think step by step. Red is one. The answer is (A).",
            "category": subject,
            "src": "made up",
        }
        for index, subject in enumerate(mmlu_pro_subjects)
    ]
    write_dataset(root, "TIGER-Lab/MMLU-Pro", {"default": {"test": pro, "validation": pro}})
    swag = {
        "ind": 1,
        "activity_label": "Baking",
        "ctx_a": "A man mixes dough.",
        "ctx_b": "he",
        "ctx": "A man mixes dough. he",
        "endings": ["bakes it [substeps] well.", "flies.", "sings.", "sleeps."],
        "source_id": "x",
        "split": "val",
        "split_type": "indomain",
        "label": "0",
    }
    rows = [swag, swag | {"label": "3"}]
    write_dataset(root, "Rowan/hellaswag", {"default": {"train": rows, "validation": rows}})
    mbpp = {
        "task_id": 11,
        "text": "Write a function to add two numbers.",
        "code": "def add(a, b):\n    return a + b",
        "test_list": [f"assert add({n}, 1) == {n + 1}" for n in range(3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    splits = ("train", "test", "validation", "prompt")
    write_dataset(
        root, "google-research-datasets/mbpp", {"full": {split: [mbpp] for split in splits}}
    )
    problems = [
        {
            "problem": f"What is $1 + {n - 1}$?",
            "level": "Level 1",
            "type": "Algebra",
            "solution": f"It is $\\boxed{{{n}}}$.",
        }
        for n in (4, 5)
    ]
    write_dataset(
        root,
        "EleutherAI/hendrycks_math",
        {name: {"train": problems, "test": problems} for name in MATH_SUBJECTS},
    )
