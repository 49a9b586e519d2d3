"""Images with credentials of another program, for tests."""

import io

import c2pa
from PIL import Image


def png_of(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def signed_photo(keys, png, address=None, source="digitalCapture"):
    """A photograph with credentials of another program, or with the address of its credentials."""
    action = {
        "action": "c2pa.created",
        "digitalSourceType": f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}",
    }
    manifest = {
        "claim_generator_info": [{"name": "Camera", "version": "1"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }
    info = c2pa.C2paSignerInfo(keys.algorithm, keys.chain.encode(), keys.key.encode(), None)
    signed, builder = io.BytesIO(), c2pa.Builder(manifest)
    if address is not None:
        builder.set_no_embed()
        builder.set_remote_url(address)
    builder.sign(c2pa.Signer.from_info(info), "image/png", io.BytesIO(png), signed)
    return signed.getvalue()
