"""fp8: the 8-bit dtype of large matmuls, its range, and the scale that standardised values get."""

import torch

# 4 bits of exponent and 3 of mantissa.
FP8_DTYPE = torch.float8_e4m3fn
FP8_MAX = 448.0
# Lifts standardised values to where fp8 is finest, still far from FP8_MAX.
FP8_SCALE = 8.0
