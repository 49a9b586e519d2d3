"""What the kernels in Gluon share; imported where `kernels` says that Triton's Gluon is one they compile with."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

# By the copy engine, from global to shared memory; the second is its name before Triton 3.8.
fetch = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


@gluon.jit
def exp2(x):
    """2^x, by the approximate instruction, which is off by some 2^-22."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], gl.float32, True, 1)
