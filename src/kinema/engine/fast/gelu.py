"""GELU as our kernels have it: x · Φ(x), with Φ(x) as 1 / (1 + 2^power(x)), no more than 4e-6 from erf's.

Φ's log-odds are x times a smooth function of x², here a polynomial fitted to the least greatest error of GELU; half the
instructions of erf, and no bound on x is needed.
"""

import triton
import triton.language as tl  # noqa: F401 - Triton's interpreter looks for it


@triton.jit
def power(x):
    """Of two."""
    square = x * x
    made = -3.21037941830582e-06 * square + 8.790979336481541e-05
    made = made * square + 3.6204763455316424e-04
    made = made * square - 1.0522997379302979e-01
    return (made * square - 2.3020436763763428) * x
