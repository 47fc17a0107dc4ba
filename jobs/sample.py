"""Samples from a checkpoint: python jobs/sample.py model.path=... prompts='["..."]'"""

import time

from a2d_ray.cli import load_config, run
from a2d_ray.config import SampleConfig


def main() -> None:
    config = load_config(SampleConfig, "sample")

    from a2d_ray import SamplingParams, load
    from a2d_ray.chat import first_turn, is_chat, speed_line, visible

    lm = load(**config.model.model_dump(exclude_none=True))
    chat = is_chat(lm, config.chat)
    params = SamplingParams(**config.sampling.model_dump())
    for text in config.prompts:
        started = time.perf_counter()
        prompt = first_turn(text, config.system) if chat else text
        (answer,) = lm.generate([prompt], params)
        seconds = time.perf_counter() - started
        print(f"> {text}\n{visible(answer.text)}")
        print(
            f"  [{speed_line(len(answer.token_ids), answer.num_forwards, seconds)}]\n", flush=True
        )


if __name__ == "__main__":
    run(main)
