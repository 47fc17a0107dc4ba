"""Run configuration: frozen pydantic models, one per command.

Nothing here imports torch or Ray, so that a wrong value fails in the blink of an eye. The defaults
stand here; what a command sets otherwise lies in ``jobs/configs/``, and `a2d_ray.cli` lays it, the
user's file and the command line over them. Fields are documented where they are defined;
``python jobs/X.py --help`` prints these texts. What an option needs to have an effect is a row in
its section's `effective_if`.
"""

from a2d_ray.config.base import BlockGrid, Duration, Objective, Section
from a2d_ray.config.benchmarks import BenchmarkConfig
from a2d_ray.config.data import (
    DataSection,
    InspectConfig,
    PrepareConfig,
    check_lengths,
    check_targets,
    longest_eos_tail,
)
from a2d_ray.config.errors import ConfigError, NoEffectError, OptionError
from a2d_ray.config.evaluation import (
    EvaluateConfig,
    EvaluatedTask,
    EvaluationsSection,
    FrontierConfig,
    LikelihoodKind,
)
from a2d_ray.config.models import (
    CheckpointSection,
    ConvertConfig,
    Dtype,
    ExportConfig,
    LoadSection,
    LoraSection,
    MergeConfig,
    ModelSection,
)
from a2d_ray.config.objective import (
    MAX_BLOCK_SIZE,
    NORMS_OF_RECIPE,
    CleanAttention,
    NoiseKind,
    NoiseSchedule,
    ObjectiveSection,
)
from a2d_ray.config.quickstart import QuickstartConfig
from a2d_ray.config.rl import RewardSection, RLSection, RolloutSection
from a2d_ray.config.rules import (
    AR_RULES,
    GRAMMAR_RULES,
    OPTION_NAMES,
    RULES,
    Remasking,
    Rule,
    RuleOptions,
    check_effect,
    option_schemas,
    override,
    rules_of,
    with_rule,
)
from a2d_ray.config.sampling import (
    ChatConfig,
    SampleConfig,
    SamplingSection,
)
from a2d_ray.config.serving import (
    AutoscalingSection,
    EngineSection,
    EvaluationServiceConfig,
    GenerateConfig,
    LimitsSection,
    SecuritySection,
    ServeConfig,
    ServedModel,
)
from a2d_ray.config.training import (
    BatchSection,
    OptimSection,
    RunSection,
    ScalingSection,
    ScheduleSection,
    TrainConfig,
    WandbSection,
    WorkerRange,
)
from a2d_ray.config.tuning import (
    ClusterSection,
    PlanConfig,
    StatusConfig,
    SweepConfig,
    SweepSection,
    WorkloadSection,
)

__all__ = [
    "AR_RULES",
    "GRAMMAR_RULES",
    "MAX_BLOCK_SIZE",
    "NORMS_OF_RECIPE",
    "OPTION_NAMES",
    "RULES",
    "AutoscalingSection",
    "BatchSection",
    "BenchmarkConfig",
    "BlockGrid",
    "ChatConfig",
    "CheckpointSection",
    "CleanAttention",
    "ClusterSection",
    "ConfigError",
    "ConvertConfig",
    "DataSection",
    "Dtype",
    "Duration",
    "EngineSection",
    "EvaluateConfig",
    "EvaluatedTask",
    "EvaluationServiceConfig",
    "EvaluationsSection",
    "ExportConfig",
    "FrontierConfig",
    "GenerateConfig",
    "InspectConfig",
    "LikelihoodKind",
    "LimitsSection",
    "LoadSection",
    "LoraSection",
    "MergeConfig",
    "ModelSection",
    "NoEffectError",
    "NoiseKind",
    "NoiseSchedule",
    "Objective",
    "ObjectiveSection",
    "OptimSection",
    "OptionError",
    "PlanConfig",
    "PrepareConfig",
    "QuickstartConfig",
    "RLSection",
    "Remasking",
    "RewardSection",
    "RolloutSection",
    "Rule",
    "RuleOptions",
    "RunSection",
    "SampleConfig",
    "SamplingSection",
    "ScalingSection",
    "ScheduleSection",
    "Section",
    "SecuritySection",
    "ServeConfig",
    "ServedModel",
    "StatusConfig",
    "SweepConfig",
    "SweepSection",
    "TrainConfig",
    "WandbSection",
    "WorkerRange",
    "WorkloadSection",
    "check_effect",
    "check_lengths",
    "check_targets",
    "longest_eos_tail",
    "option_schemas",
    "override",
    "rules_of",
    "with_rule",
]
