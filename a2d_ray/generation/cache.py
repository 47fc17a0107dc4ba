"""Keys and values of one request: written once per token, read in place."""

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values of `capacity` tokens in every layer.

    Args:
        num_layers: layers of the model.
        num_key_heads: key/value heads, K.
        head_dim: width of a head, d.
        capacity: most tokens that will be held.
        dtype, device: of the keys and values.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_key_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, 1, num_key_heads, capacity, head_dim)
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)

    def write(self, layer: int, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Writes [1, K, n, d] behind the first `start` tokens; returns views of all start + n."""
        stop = start + keys.shape[2]
        self._keys[layer, :, :, start:stop] = keys
        self._values[layer, :, :, start:stop] = values
        return self._keys[layer, :, :, :stop], self._values[layer, :, :, :stop]
