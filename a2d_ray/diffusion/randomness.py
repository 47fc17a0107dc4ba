"""Counter-based random numbers: a pure function of a key and a counter, on any device.

The noise of a token depends on (seed, epoch, document, token) and on nothing else, so it does not
change with rank, world size, micro-batch, packing or a restart, and there is no state to save.
"""

from torch import Tensor

_MASK32 = 0xFFFFFFFF
_ROUND_A = 0xD2511F53
_ROUND_B = 0xCD9E8D57
_WEYL_A = 0x9E3779B9
_WEYL_B = 0xBB67AE85


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
) -> list[Tensor]:
    """Philox-4x32-10: four 32-bit words for each 128-bit counter.

    Args:
        counter: four int64 tensors of one shape, each word in [0, 2**32).
        key: two words in [0, 2**32), or tensors of them.

    Returns:
        Four int64 tensors of that shape, values in [0, 2**32).

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high_a, low_a = _multiply(c0, _ROUND_A)
        high_b, low_b = _multiply(c2, _ROUND_B)
        c0 = high_b ^ c1 ^ k0
        c1 = low_b
        c2 = high_a ^ c3 ^ k1
        c3 = low_a
        k0 = (k0 + _WEYL_A) & _MASK32
        k1 = (k1 + _WEYL_B) & _MASK32
    return [c0, c1, c2, c3]


def uniform(
    kind: int,
    seed: int | Tensor,
    epoch: int | Tensor,
    document: Tensor,
    block: Tensor,
    index: Tensor,
) -> Tensor:
    """Uniform numbers in [0, 1) with 53 bits.

    Args:
        kind: what the number is for, in [0, 16); kinds are independent of each other.
        seed: run or request seed, or a tensor of them of the same shape; its low 32 bits count.
        epoch: pass over the data in [0, 2**32), or a tensor of them of the same shape.
        document: stable document ids, int64, any shape.
        block: counter in [0, 2**28), of the same shape.
        index: counter in [0, 2**32), of the same shape.

    Returns:
        float64 of that shape.
    """
    low = document & _MASK32
    high = (document >> 32) & _MASK32
    words = philox((index, kind + (block << 4), low, high), (seed & _MASK32, epoch))
    return ((words[0] >> 5) * 67108864 + (words[1] >> 6)) / 9007199254740992.0


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32-bit words of a 32 x 32 bit product (int64 wraps, its bits stay right)."""
    product = a * b
    return (product >> 32) & _MASK32, product & _MASK32
