"""Files with credentials that Kinema does not make: of another program, or of an expired certificate."""

import io
import time

import c2pa
from PIL import Image

from certificate_files import own_certificate
from kinema.media.credentials.file_signer import RECIPE, FileSigner
from kinema.media.credentials.signing_keys import signing_keys
from kinema.media.video_writer import encode_video


def png_of(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def signed_photo(keys, png, address=None, source="digitalCapture", generator="Camera", recipe=None):
    """A photograph with credentials of another program, or with the address of its credentials."""
    action = {
        "action": "c2pa.created",
        "digitalSourceType": f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}",
    }
    manifest = {
        "claim_generator_info": [{"name": generator, "version": "1"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }
    if recipe is not None:
        manifest["assertions"].append({"label": RECIPE, "data": recipe})
    info = c2pa.C2paSignerInfo(keys.algorithm, keys.chain.encode(), keys.key.encode(), None)
    signed, builder = io.BytesIO(), c2pa.Builder(manifest)
    if address is not None:
        builder.set_no_embed()
        builder.set_remote_url(address)
    builder.sign(c2pa.Signer.from_info(info), "image/png", io.BytesIO(png), signed)
    return signed.getvalue()


def expired_gif(folder, frames):
    """Return a gif with credentials whose certificate has expired since; its files are in the folder."""
    keys = signing_keys(own_certificate(folder, days=8 / 86400))
    content = FileSigner(keys).sign(encode_video(frames, ".gif", 7), None, "a.gif").content
    while not keys.has_expired:
        time.sleep(0.1)
    time.sleep(1)  # C2PA compares whole seconds
    return content
