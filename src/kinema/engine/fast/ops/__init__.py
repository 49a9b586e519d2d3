"""One operation a file: the reference in plain torch, the choice of an implementation, and the call of the kernel.

Tests compare each kernel with its reference, which also runs in float32, on MPS, or without Triton. Videos are passed
as [frames, pixels, c] where frames matter and as [pixels of all frames, c] where they do not. `frame_bias` is added to
every pixel of a frame: [frames, c], in float32 at least.
"""
