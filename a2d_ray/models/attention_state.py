"""What attention functions need besides tensors, for layers that drop keyword arguments.

Attention functions get their state as keyword arguments of the model's forward. The layers of a few
families do not pass these down. Their attention finds the state here, by the configuration that
all modules of a model share.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_states: dict[int, dict[str, Any]] = {}


@contextmanager
def attention_state(model: Any, **state: Any) -> Iterator[dict[str, Any]]:
    """Within it, attention of a model finds this state; yields it as keyword arguments.

    With gradient checkpointing it stays: layers run again in the backward pass.

    Args:
        model: its modules hold its configuration, the same object.
        state: by name.
    """
    key = id(model.config)
    _states[key] = state
    try:
        yield state
    finally:
        if not (torch.is_grad_enabled() and model.is_gradient_checkpointing):
            _states.pop(key, None)


def state_of(module: Any, name: str) -> Any:
    """A part of the state that an attention module was not given."""
    state = _states.get(id(module.config))
    assert state is not None, f"attention was called without {name}, outside its own forward"
    return state[name]
