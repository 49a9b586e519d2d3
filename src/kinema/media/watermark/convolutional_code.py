"""Error correction of the payload: a tail-biting convolutional code of rate 1/3 with 64 states, as LTE uses it.

3GPP TS 36.212, section 5.1.3.1. Of 32 bits it makes 96; any two code words differ in at least 15 or so.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

PAYLOAD_BITS = 32
RATE = 3
CODE_BITS = PAYLOAD_BITS * RATE
_POLYNOMIALS = (0o133, 0o171, 0o165)
_MEMORY = 6
_STATES = 1 << _MEMORY


def encode_payload(payload: int) -> Array:
    """Return the code word of a payload of 32 bits: 96 values, +1 for a bit of 0 and −1 for a bit of 1."""
    bits = [payload >> (PAYLOAD_BITS - 1 - i) & 1 for i in range(PAYLOAD_BITS)]
    state = sum(bits[-1 - i] << (_MEMORY - 1 - i) for i in range(_MEMORY))  # as after the last bit
    word = []
    for bit in bits:
        register = bit << _MEMORY | state
        word += [1 - 2 * ((register & polynomial).bit_count() & 1) for polynomial in _POLYNOMIALS]
        state = register >> 1
    return np.array(word, np.int8)


def decode_payload(soft: Array) -> tuple[int, float]:
    """Return the payload whose code word correlates most with 96 real values, and that correlation.

    The Viterbi algorithm runs from each of the 64 states at once, so the result is exact.
    """
    before, bits, outputs = _trellis()
    metrics = np.full((_STATES, _STATES), -np.inf)  # [first state, current state]
    np.fill_diagonal(metrics, 0)
    choices = np.empty((PAYLOAD_BITS, _STATES, _STATES), np.int8)
    for i in range(PAYLOAD_BITS):
        gains = outputs @ soft[RATE * i : RATE * (i + 1)]  # [which predecessor, state]
        first_way, second_way = (metrics[:, before[way]] + gains[way] for way in range(2))
        choices[i] = second_way > first_way
        metrics = np.maximum(first_way, second_way)
    first = state = int(np.diag(metrics).argmax())
    payload = 0
    for i in reversed(range(PAYLOAD_BITS)):
        payload |= int(bits[state]) << (PAYLOAD_BITS - 1 - i)
        state = before[choices[i, first, state], state]
    return payload, float(metrics[first, first])


@cache
def _trellis() -> tuple[Array, Array, Array]:
    """Return each state's two predecessors [2, state], the bit that leads to it [state], and outputs [2, state, 3]."""
    states = np.arange(_STATES)
    bits = states >> (_MEMORY - 1)
    before = np.stack([states << 1 & (_STATES - 1), (states << 1 & (_STATES - 1)) | 1])
    outputs = np.empty((2, _STATES, RATE))
    for way in range(2):
        for state in states:
            register = int(bits[state]) << _MEMORY | int(before[way, state])
            outputs[way, state] = [1 - 2 * ((register & p).bit_count() & 1) for p in _POLYNOMIALS]
    return before, bits, outputs
