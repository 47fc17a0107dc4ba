"""DeepSpeed: ZeRO stage, number of ranks and accumulation change no step."""

import os
import resource

import pytest
import torch
import torch.distributed as dist

from a2d_ray.config import OptimSection
from a2d_ray.diffusion.layout import build_layout
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.training.optim import make_optimizer
from tests.closeness import assert_close
from tests.diffusion.test_objectives import CASES
from tests.rows import packed_row, split_documents
from tests.tiny import tiny_a2d_model
from tests.training.modules import module_of
from tests.training.two_ranks import on_two_ranks

NUM_STEPS, NUM_ROWS, CLIP = 3, 4, 0.5
# With a small epsilon Adam steps by the sign of a gradient that is zero but for rounding.
OPTIM = OptimSection(lr=1e-2, weight_decay=0.1, eps=1e-3)


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory):
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        del os.environ[name]


def make_micros(step, size):
    """The rows of a step in micro-batches of `size`."""
    spec, documents = CASES[0]
    rows = [r for seed in (0, 1) for r in split_documents(packed_row(documents, seed=seed))]
    for start in range(0, NUM_ROWS, size):
        layout = build_layout(rows[start : start + size], spec)
        epoch = torch.zeros(size, dtype=torch.int64)
        yield layout, draw_noise(layout, NoiseSpec(), seed=step, epoch_R=epoch)


def train(stage, num_micro, *, num_steps=NUM_STEPS, checkpoint=None, model=None, **zero):
    """The engine after some clipped steps from `checkpoint` on, and their gradient norms."""
    from a2d_ray.training.engine import make_engine, take_step
    from a2d_ray.training.state import RunProgress, restore_state

    rank, world = dist.get_rank(), dist.get_world_size()
    module = module_of(model or tiny_a2d_model("llama").train())
    size = NUM_ROWS // world // num_micro
    settings = {
        "train_micro_batch_size_per_gpu": size,
        "gradient_accumulation_steps": num_micro,
        "gradient_clipping": CLIP,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, **zero},
    }
    engine = make_engine(module, make_optimizer(module, OPTIM), settings)
    first = 0
    if checkpoint is not None:
        restore_state(engine, checkpoint)
        first = RunProgress.read(checkpoint).step
    norms = []
    for step in range(first, num_steps):
        micros = list(make_micros(step, size))
        num_targets = sum(int(layout.num_targets) for layout, _ in micros)
        for layout, noise in micros[rank * num_micro : (rank + 1) * num_micro]:
            loss = engine(layout, noise).loss * (world / num_targets)
            engine.backward(loss, scale_wrt_gas=False)
            norm = take_step(engine)
        norms.append(float(norm))
    return engine, norms


def weights_of(engine):
    from a2d_ray.training.engine import whole_weights

    weights = whole_weights(engine, is_kept=True)
    return {name: weight.detach().clone() for name, weight in weights.items()}


@pytest.fixture(scope="module")
def reference():
    engine, norms = train(0, 1)
    assert min(norms) > 2 * CLIP  # or clipping would not be tested
    return weights_of(engine), norms


@pytest.mark.parametrize(("stage", "num_micro"), [(0, 2), (0, 4), (1, 4), (2, 1), (2, 4)])
def test_clipped_steps_are_equal_at_any_stage_and_accumulation(reference, stage, num_micro):
    engine, norms = train(stage, num_micro)
    assert norms == pytest.approx(reference[1], rel=1e-5)
    assert_close(weights_of(engine), reference[0])


@pytest.mark.parametrize(
    ("world", "zero", "expected"),
    [
        (1, {"stage": 2}, {"stage": 0}),
        (1, {"stage": 3}, {"stage": 0}),
        (1, {"stage": 0}, {"stage": 0}),
        (1, {"stage": 3, "overlap_comm": False}, {"stage": 2, "overlap_comm": False}),
        (1, {"stage": 1, "overlap_comm": False}, {"stage": 1, "overlap_comm": False}),
        (2, {"stage": 2}, {"stage": 2}),
        (2, {"stage": 3}, {"stage": 3}),
    ],
)
def test_one_rank_partitions_nothing(make_config, world, zero, expected):
    from a2d_ray.training.engine import deepspeed_config

    config = make_config(deepspeed={"zero_optimization": zero})
    settings = deepspeed_config(config, world=world, num_micro=1)
    assert settings["zero_optimization"] == expected


OWN = {"overlap_comm": False, "reduce_bucket_size": 9}


@pytest.mark.parametrize(
    ("world", "device", "zero", "expected"),
    [
        (2, "cuda", {}, {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 100_000_000}),
        (2, "cuda", OWN, {"stage": 2, **OWN}),
        (2, "cuda", {"stage": 1}, {"stage": 1}),  # DeepSpeed overlaps nothing there
        (1, "cuda", {}, {"stage": 0}),
        (2, "cpu", {}, {"stage": 2}),
    ],
)  # fmt: skip
def test_gpus_reduce_gradients_during_the_backward(make_config, world, device, zero, expected):
    from a2d_ray.training.engine import deepspeed_config

    config = make_config(deepspeed={"zero_optimization": zero})
    settings = deepspeed_config(config, world=world, num_micro=1, device_type=device)
    assert settings["zero_optimization"] == expected


def test_only_cpus_ask_which_ops_deepspeed_could_compile(monkeypatch):
    """The table probes compilers for every op when it is read first."""
    import deepspeed

    from a2d_ray.training import engine as engines

    class Gpu:
        def device_name(self):
            return "cuda"

    class Unread(dict):
        def __setitem__(self, key, value):
            raise AssertionError(f"{key} was looked up")

    monkeypatch.setattr(deepspeed.ops, "__compatible_ops__", Unread())
    monkeypatch.setattr(engines.deepspeed, "initialize", lambda **_: [_Engine()])
    with pytest.raises(AssertionError, match="deepspeed_shm_comm"):
        engines.make_engine(None, None, {})
    monkeypatch.setattr(deepspeed, "get_accelerator", Gpu)
    engines.make_engine(None, None, {})


class _Engine:
    def zero_optimization_stage(self):
        return 0


STAGES = [(3, 3), (0, 3), (3, 2)]


def _moved_between_stages(rank, directory):
    """For each pair: two steps at one stage, saved; the third at another."""
    from a2d_ray.training.state import RunProgress, save_state

    results = {}
    for first, second in STAGES:
        target = directory / f"{first}-{second}"
        engine, norms = train(first, 2, num_steps=2)
        write = save_state(engine, target, RunProgress(step=2, rows=8), is_writer=rank == 0)
        if rank == 0:
            write()
        model = tiny_a2d_model("llama").train()
        halfway = weights_of(engine)
        model.load_state_dict(halfway)
        dist.barrier()
        engine, more = train(second, 1, checkpoint=target, model=model)
        results[first, second] = weights_of(engine), norms + more, halfway
    return results


@pytest.mark.slow
def test_two_ranks_and_partitioned_weights(reference, tmp_path):
    for results in on_two_ranks(_moved_between_stages, tmp_path, tmp_path):
        for weights, norms, _ in results.values():
            assert norms == pytest.approx(reference[1], rel=1e-5)
            assert_close(weights, reference[0])
    for first, second in STAGES:  # and from two ranks to one
        model = tiny_a2d_model("llama").train()
        model.load_state_dict(results[first, second][2])
        engine, norms = train(2, 1, checkpoint=tmp_path / f"{first}-{second}", model=model)
        assert norms == pytest.approx(reference[1][2:], rel=1e-5)
        assert_close(weights_of(engine), reference[0])


def test_a_disk_that_is_full_is_a_problem_that_is_told(make_config, tmp_path):
    from a2d_ray.models.contract import Contract
    from a2d_ray.runs.storage import RunDirectory
    from a2d_ray.training.checkpoints import CheckpointWriter
    from a2d_ray.training.plan import TrainingPlan
    from a2d_ray.training.ranks import Ranks
    from a2d_ray.training.state import RunProgress

    plan, ranks = TrainingPlan(make_config("full"), "nowhere", 6), Ranks(0, 1, torch.device("cpu"))
    directory, progress = RunDirectory.of(str(tmp_path), "run"), RunProgress(step=1, rows=4)
    writer = CheckpointWriter(plan, ranks, directory, Contract(mask_token_id=3), None, None)
    engine, _ = train(2, 1, num_steps=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "whole").mkdir()
    assert writer._write(engine, tmp_path / "whole", progress) is None
    (tmp_path / "half").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        problem = writer._write(engine, tmp_path / "half", progress)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in problem and "half" in problem
    with (tmp_path / "whole" / "large").open("wb") as file:
        file.truncate(2**43)  # sparse
    assert "MiB are free" in writer._write(engine, tmp_path / "whole", progress)
