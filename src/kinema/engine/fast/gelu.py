"""GELU in this package's kernels: x · Φ(x), with Φ(x) = 1 / (1 + 2^power(x)); it is within 4e-6 of GELU by erf.

The log-odds of Φ are x times a smooth function of x². Here that function is a polynomial fitted to minimise the maximum
error of GELU. It takes half the instructions of erf, and x needs no clamping.
"""

import triton
import triton.language as tl  # noqa: F401 - Triton's interpreter looks for it


@triton.jit
def power(x):
    """Return the exponent of 2."""
    square = x * x
    made = -3.21037941830582e-06 * square + 8.790979336481541e-05
    made = made * square + 3.6204763455316424e-04
    made = made * square - 1.0522997379302979e-01
    return (made * square - 2.3020436763763428) * x
