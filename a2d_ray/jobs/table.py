"""The jobs by name. Light: nothing of a job is imported before it runs."""

from dataclasses import dataclass

_SAME = "the same command"
_RESUME = "the same command with run.resume=true"


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        summary: what it is for, in a line.
        config: class in `a2d_ray.config` that it takes.
        resume: how an interrupted one goes on; empty: there is nothing to go on with.
        module: of `a2d_ray.jobs`; empty: it has the job's name.
    """

    summary: str
    config: str
    resume: str = ""
    module: str = ""


JOBS = {
    "quickstart": Job("the whole way on one machine", "QuickstartConfig", _SAME),
    "convert": Job("an AR checkpoint becomes an A2D checkpoint", "ConvertConfig", _SAME),
    "merge_lora": Job("adapters become weights", "MergeConfig", _SAME),
    "prepare_data": Job("reads, tokenizes and packs a mixture", "PrepareConfig", _SAME),
    "inspect_data": Job("shows a mixture as training sees it", "InspectConfig", _SAME),
    "sft_bd3lm": Job("SFT with block diffusion", "TrainConfig", _RESUME, "train"),
    "sft_mdlm": Job("SFT with masked diffusion", "TrainConfig", _RESUME, "train"),
    "sft_speculative": Job("SFT of a task and its drafts", "TrainConfig", _RESUME, "train"),
    "draft_only": Job("drafts for an AR model that stays", "TrainConfig", _RESUME, "train"),
    "pt_bd3lm": Job("block diffusion on plain text", "TrainConfig", _RESUME, "train"),
    "pt_mdlm": Job("masked diffusion on plain text", "TrainConfig", _RESUME, "train"),
    "rl": Job("reinforcement learning", "TrainConfig", _RESUME, "train"),
    "status": Job("what runs are doing", "StatusConfig"),
    "plan": Job("what a run will cost", "PlanConfig"),
    "sweep": Job(
        "searches hyper-parameters", "SweepConfig", "the same command with sweep.resume=true"
    ),
    "sample": Job("answers prompts of the command line", "SampleConfig"),
    "chat": Job("a chat in the terminal", "ChatConfig"),
    "generate": Job("answers a file of prompts offline", "GenerateConfig", _SAME),
    "export": Job("a checkpoint for public GPU servers", "ExportConfig", _SAME),
    "serve": Job("OpenAI's API and a web chat", "ServeConfig"),
    "evaluate": Job("measures a checkpoint by tasks", "EvaluateConfig", _SAME),
    "benchmark": Job("measures a suite against its baseline", "BenchmarkConfig"),
}
