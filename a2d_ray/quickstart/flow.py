"""The order of the stages, what each depends on, and what it leaves."""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import a2d_ray
from a2d_ray.config import QuickstartConfig, TrainConfig
from a2d_ray.quickstart import recipe
from a2d_ray.quickstart.ask import ask, free_port
from a2d_ray.quickstart.calibration import choose_steps
from a2d_ray.quickstart.measure import answer_questions, measure_checkpoint, run_figures
from a2d_ray.quickstart.questions import general_questions
from a2d_ray.quickstart.report import print_report
from a2d_ray.quickstart.stages import Record, Stages
from a2d_ray.runs.cluster import running_ray
from a2d_ray.runs.settings import check_same_settings
from a2d_ray.runs.storage import absolute_path, write_whole
from a2d_ray.terminal.streams import console

NUM_STAGES = 8
MIN_CPUS = 4  # logical: the workers, Ray Data's tasks beside them, and Serve
OBJECT_STORE_BYTES = 300 * 2**20  # rows of a few dozen tokens pass through it


def run_quickstart(config: QuickstartConfig) -> None:
    """Converts, prepares, measures, trains, measures, serves and asks; then prints a table.

    Stages that an earlier run finished are skipped, and an interrupted training run goes on.
    Everything that was started is stopped, whatever happens.

    Raises:
        ValueError: settings that do not fit what already lies in ``root``.
    """
    recipe.work_offline()
    with ExitStack() as started:
        _Quickstart(recipe.resolve_config(config), started).run()


class _Quickstart:
    """One run. `records` holds the finished stages in order."""

    def __init__(self, config: QuickstartConfig, started: ExitStack) -> None:
        self.config = config
        self.root = Path(absolute_path(config.root))
        self.model = self.root / "model"
        self.checkpoint = self.root / "train" / "checkpoint-final"
        self.console = console(highlight=False)
        self.stages = Stages(self.root, self.console, NUM_STAGES)
        self.records: dict[str, Record] = {}
        self.started = started
        self.has_ray = False

    def run(self) -> None:
        self.records["convert"] = self.convert()
        self.records["own answers"] = self.own_answers()
        self.records["prepare"] = self.prepare()
        self.records["plan"] = self.plan()
        self.records["before"] = self.measure("before", self.model, "convert", ["ar"])
        self.records["train"] = self.train()
        rules = recipe.MEASURED_RULES
        self.records["after"] = self.measure("after", self.checkpoint, "train", rules)
        self.records["ask"] = self.ask()
        print_report(self.records, self.files(), self.console)

    def convert(self) -> Record:
        """SmolLM2-135M-Instruct as an A2D checkpoint."""

        def stage() -> dict[str, Any]:
            from a2d_ray.proving.conversion import convert

            convert(recipe.SOURCE, self.model, overwrite=True)
            (self.model / "chat_template.jinja").write_text(recipe.CHAT_TEMPLATE)
            return {}

        template = recipe.CHAT_TEMPLATE
        inputs = {"source": recipe.SOURCE, "template": template, "version": a2d_ray.__version__}
        return self.stages.run("convert", inputs, stage, outputs=[self.model / "config.json"])

    def own_answers(self) -> Record:
        """The converted model answers general questions in its AR mode; they are trained on."""
        asked = {split: self.questions(split) for split in ("train", "test")}

        def stage() -> dict[str, Any]:
            questions = asked["train"] + asked["test"]
            load = recipe.load_section(self.model)
            answers = answer_questions(load, questions, recipe.own_answer_params())
            rows = [
                json.dumps({"messages": recipe.chat(question, text)})
                for question, (text, is_whole) in zip(asked["train"], answers, strict=False)
                if is_whole
            ]
            write_whole(recipe.own_answers_path(self.root), "\n".join(rows) + "\n")
            self.console.print(f"  {len(rows)} answers are whole, and become training rows")
            return {
                "rows": len(rows),
                "held_out": [text for text, _ in answers[-len(asked["test"]) :]],
            }

        inputs = {
            "questions": asked,
            "sampling": vars(recipe.own_answer_params()),
            "model": self.records["convert"].digest,
        }
        outputs = [recipe.own_answers_path(self.root)]
        return self.stages.run("own answers", inputs, stage, outputs=outputs)

    def prepare(self) -> Record:
        """The embedded mixture, packed by Ray Data."""
        config = self.train_config()

        def stage() -> dict[str, Any]:
            from a2d_ray.data.pipeline import prepare

            self.start_ray()
            packed = prepare(config.data, config.objective, config.model.path)
            return {"path": str(packed.path), **recipe.data_figures(packed.manifest)}

        answers = self.records["own answers"].digest
        inputs = {"data": config.data.model_dump(), "answers": answers}
        return self.stages.run("prepare", inputs, stage)

    def plan(self) -> Record:
        """How many steps; an interrupted run keeps its number."""
        config = self.train_config()
        settings = config.model_dump(mode="json", exclude={"schedule": {"max_steps"}})
        wanted = {"steps": self.config.steps, "minutes": self.config.minutes}
        inputs = {**wanted, "training": settings, "data": self.records["prepare"].digest}
        self.refuse_other_settings(inputs)

        def stage() -> dict[str, Any]:
            if self.config.steps is not None:
                return {"steps": self.config.steps}
            self.start_ray()
            plan = choose_steps(config, self.config.minutes)
            self.console.print("  {steps} steps of {seconds_per_step:.1f} s".format(**plan))
            return plan

        return self.stages.run("plan", inputs, stage)

    def refuse_other_settings(self, inputs: dict[str, Any]) -> None:
        """A training run goes on only with the settings that it began with."""
        made = self.stages.find("plan")
        if made and (self.root / "train").exists():
            root = self.config.root
            check_same_settings(inputs, made.inputs, field="root", value=root, fix="delete it")

    def measure(self, name: str, checkpoint: Path, made_by: str, rules: Sequence[str]) -> Record:
        """Held-out tasks by each rule, and held-out general questions."""
        params = {rule: recipe.sampling_params(rule) for rule in rules}

        def stage() -> dict[str, Any]:
            load = recipe.load_section(checkpoint)
            num_tasks = self.config.eval_tasks
            tasks = measure_checkpoint(load, recipe.TASKS, num_tasks, params, self.console)
            answers = answer_questions(load, self.questions("test"), recipe.own_answer_params())
            original = self.records["own answers"].result["held_out"]
            pairs = zip(answers, original, strict=True)
            return {"tasks": tasks, "same": sum(text == own for (text, _), own in pairs)}

        inputs = {
            "num_tasks": self.config.eval_tasks,
            "sampling": {rule: vars(p) for rule, p in params.items()},
            "checkpoint": self.records[made_by].digest,
        }
        return self.stages.run(name, inputs, stage)

    def train(self) -> Record:
        """SFT with Ray Train and DeepSpeed; goes on where an interrupted run stopped."""
        config = self.train_config(int(self.records["plan"].result["steps"]))

        def stage() -> dict[str, Any]:
            from a2d_ray.training.trainer import build_trainer

            self.start_ray()
            build_trainer(config).fit()
            return run_figures(self.root / "train")

        inputs = {"plan": self.records["plan"].digest, "steps": config.schedule.max_steps}
        outputs = [self.checkpoint / "config.json"]
        return self.stages.run("train", inputs, stage, outputs=outputs)

    def ask(self) -> Record:
        """Three questions through the `openai` client, to the model behind Ray Serve."""
        port = free_port(self.config.port)

        def stage() -> dict[str, Any]:
            from a2d_ray.serving.ray.launch import running_server

            self.start_ray()
            with running_server(recipe.serve_config(self.checkpoint, port)) as base_url:
                self.console.print(f"  {recipe.MODEL_ID} answers at {base_url}")
                return ask(base_url, recipe.MODEL_ID, recipe.QUESTIONS, self.console)

        return self.stages.run("ask", {}, stage, is_kept=False)

    def questions(self, split: str) -> list[str]:
        """General questions; a few for a smoke test."""
        questions = general_questions(split)
        return (
            questions[:: recipe.SMOKE_STRIDE] if recipe.is_smoke(self.config.steps) else questions
        )

    def train_config(self, steps: int | None = None) -> TrainConfig:
        """The training run; without `steps`, all of it but their number holds."""
        import torch

        steps = steps or self.config.steps or recipe.SMOKE_STEPS
        num_workers = self.config.num_workers
        return recipe.train_config(
            self.root,
            steps,
            num_workers,
            seed=self.config.seed,
            use_gpu=torch.cuda.device_count() >= num_workers,
        )

    def start_ray(self) -> None:
        """Ray, from the first stage that needs it to the end."""
        if not self.has_ray:
            num_cpus = max(MIN_CPUS, self.config.num_workers + 2, os.cpu_count() or 1)
            ray = running_ray(num_cpus, object_store_bytes=OBJECT_STORE_BYTES)
            self.started.enter_context(ray)
            self.has_ray = True

    def files(self) -> dict[str, Path]:
        run = self.root / "train"
        return {
            "checkpoint": self.checkpoint,
            "loss curve": run / "loss.png",
            "metrics": run / "metrics.jsonl",
        }
