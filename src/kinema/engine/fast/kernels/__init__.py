"""Triton and Gluon kernels with their launches; `kinema.engine.fast.ops` decides when to call them.

Import the modules only where Triton is installed. All computation is in float32. Image sizes are not compile-time
constants, so another video size compiles few kernels again: only for a different type of tile, for a number of frames
beyond the current power of two, or for a frame that is not a whole number of tiles.
"""
