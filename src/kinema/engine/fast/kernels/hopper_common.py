"""What the Hopper kernels share; import it only where `hardware.capabilities` has Gluon."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

# Copy from global to shared memory by the copy engine (TMA); the second is the name before Triton 3.8.
fetch = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


@gluon.jit
def exp2(x):
    """Compute 2^x by the approximate instruction, with an error of about 2^-22."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], gl.float32, True, 1)
