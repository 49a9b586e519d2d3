"""The invisible watermark: 32 bits in the brightness of every frame. `embed` puts it in, `detect` reads it.

Spread spectrum (Cox et al. 1997, "Secure spread spectrum watermarking for multimedia") with a known template for
synchronisation (Pereira and Pun 2000, "Robust template matching for affine resistant image watermarks"). A tile of
128×128 pixels repeats over each frame. It is a sum of about 1,200 waves of middle frequency whose phases follow from a
key; the signs of most of them carry the payload with error correction, the others are known and give scale and
position. The key is public: anyone can read the watermark, and forge it.
"""

from kinema.media.watermark.watermark_detection import Watermark, detect, strongest
from kinema.media.watermark.watermark_embedding import embed
from kinema.media.watermark.watermark_payload import payload_of

__all__ = ["Watermark", "detect", "embed", "payload_of", "strongest"]
