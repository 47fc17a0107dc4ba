"""The tokenizer of a checkpoint directory, without asking to run code that lies there."""

from pathlib import Path
from typing import Any

from a2d_ray.models.directories import find_directory, read_json

CONFIG_FILE = "tokenizer_config.json"


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of an A2D or AR checkpoint.

    transformers' AutoTokenizer would look into config.json, find `auto_map` and wait for somebody
    to allow the code; a fast tokenizer needs none of that.

    Args:
        path: local directory or Hub id.

    Raises:
        ValueError: there is no tokenizer.
    """
    directory = find_directory(str(path), weights=False)
    if not any(directory.glob("tokenizer*")):  # transformers would make up an empty one
        raise ValueError(f"{path} holds no tokenizer: save the model's own there")
    try:
        if read_json(directory, CONFIG_FILE).get("tokenizer_class") == "PreTrainedTokenizerFast":
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(directory)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except OSError as error:
        raise ValueError(f"{path} holds no tokenizer that loads: {error}") from error
