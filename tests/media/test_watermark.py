import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinema.media import reencode as reencode_module
from kinema.media.encoding_steps import KeptWatermark, with_kept_watermark
from kinema.media.source_video import open_source_video
from kinema.media.verification import verify_file
from kinema.media.video import Video
from kinema.media.video_writer import VideoWriter, read_frames, read_recipe, save_video
from kinema.media.watermark import detect, embed, payload_of, strongest
from kinema.media.watermark.convolutional_code import CODE_BITS, decode_payload, encode_payload
from kinema.media.watermark.spread_pattern import tile, waves
from kinema.media.watermark.watermark_detection import MAX_CHANCE
from kinema.recipe import FileEncoding
from kinema.values import VideoRequest

ROOT = Path(__file__).parents[2]
ROCKET = ROOT / "examples" / "rocket.jpg"
PAYLOAD = 0xA5C371E9
DIGESTS = ["00be49735e3dc407", "421e23d0960c4cf6", "eb72b5b5b8aba4e1", "3542f1ee05442ce1", "52ad5b0f15224d03"]


@pytest.fixture(scope="module")
def clip():
    """Four frames of 288×160 in which the camera moves."""
    image = Image.open(ROCKET).convert("RGB")
    boxes = [(x, 0, x + image.width * 0.9, image.width * 0.5) for x in (0, 2, 4, 6)]
    return np.stack([np.asarray(image.resize((288, 160), Image.Resampling.LANCZOS, box=box)) for box in boxes])


@pytest.fixture(scope="module")
def watermarked(clip):
    return embed(clip, PAYLOAD)


def scaled(frames, width, height):
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


def psnr(before, after):
    return 10 * np.log10(255**2 / ((before.astype(float) - after) ** 2).mean())


# The code


@pytest.mark.parametrize("payload", [0, 1, 2**31, 2**32 - 1, PAYLOAD])
def test_decoding_gives_the_encoded_payload(payload):
    assert decode_payload(encode_payload(payload)) == (payload, CODE_BITS)


def test_payload_is_decoded_with_seven_of_96_signs_wrong():
    rng = np.random.default_rng(0)
    for _ in range(20):
        payload = int(rng.integers(2**32))
        word = encode_payload(payload).astype(float)
        word[rng.choice(CODE_BITS, 7, replace=False)] *= -1
        assert decode_payload(word)[0] == payload


def test_code_words_differ_in_many_signs():
    """The code is linear and cyclic: payloads whose ones are within ten bits stand for the nearest of all."""
    zero = encode_payload(0)
    assert min(int((encode_payload(payload) != zero).sum()) for payload in range(1, 2**10)) == 15


# The pattern


def test_pattern_is_that_of_all_versions():
    """A change here means that watermarks in existing videos are not found any more."""
    own = waves()
    facts = [
        own.x.astype("<i4"),
        own.y.astype("<i4"),
        own.bits.astype("<i4"),
        np.round(own.phases.real, 6).astype("<f4"),
    ]
    digests = [hashlib.sha256(data.tobytes()).hexdigest()[:16] for data in (*facts, tile(PAYLOAD))]
    assert digests == DIGESTS


def test_flat_areas_get_a_weaker_watermark_than_busy_ones(clip):
    frame = clip[0].copy()
    frame[:80] = 120
    difference = embed(frame[None], PAYLOAD)[0].astype(int) - frame
    assert difference[:70].std() < 0.9
    assert difference[90:].std() > 1.2


def test_watermarked_frames_have_a_psnr_of_42_db(clip, watermarked):
    noise = np.random.default_rng(0).integers(0, 256, (1, 160, 288, 3), np.uint8)
    for frames, after in ((clip, watermarked), (noise, embed(noise, PAYLOAD))):
        assert min(psnr(a, b) for a, b in zip(frames, after, strict=True)) >= 42


def test_watermark_of_a_frame_does_not_depend_on_other_frames(clip, watermarked):
    assert np.array_equal(np.concatenate([embed(clip[:1], PAYLOAD), embed(clip[1:], PAYLOAD)]), watermarked)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 2), (129, 131)])
def test_frames_of_any_size_can_be_watermarked(size):
    frames = np.full((2, *size, 3), 255, np.uint8)
    assert embed(frames, PAYLOAD).shape == frames.shape


# Detection


CHANGES = {
    "none": lambda frames: frames,
    "one frame": lambda frames: frames[2:3],
    "cropped": lambda frames: frames[:, 9:151, 13:270],
    "half the size": lambda frames: scaled(frames, 144, 80),
    "half the size and back": lambda frames: scaled(scaled(frames, 144, 80), 288, 160),
    "1.37 times the size": lambda frames: scaled(frames, 395, 219),
    "cropped and scaled back": lambda frames: scaled(frames[:, 9:153, 13:272], 288, 160),
    "darker": lambda frames: (frames * 0.7).astype(np.uint8),
}


@pytest.mark.parametrize("name", CHANGES)
def test_watermark_is_read_after_change(watermarked, name):
    watermark = detect(CHANGES[name](watermarked))
    assert watermark.payload == PAYLOAD
    assert watermark.confidence > 1 - MAX_CHANCE


@pytest.mark.parametrize("crf", [18, 28])
def test_watermark_is_read_from_mp4(tmp_path, clip, recipe, crf):
    frames, _ = read_frames(Video(clip, 7, recipe).save(tmp_path / "a.mp4", crf=crf, watermark=True))
    assert f"{detect(frames).payload:08x}" == read_recipe(tmp_path / "a.mp4").encoding.watermark


def test_frames_without_watermark_have_none(clip):
    assert strongest(clip[:2]).chance > 1e-3
    assert detect(clip[:1, :5, :5]) is None
    assert detect([]) is None


# Files


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a"])
def test_frames_of_a_file_have_the_watermark_that_its_recipe_names(tmp_path, clip, recipe, name):
    path = Video(clip, 7, recipe).save(tmp_path / name, watermark=True)
    payload = payload_of(recipe.request, recipe.image_sha256, recipe.last_image_sha256)
    assert read_recipe(path).encoding == FileEncoding(watermark=f"{payload:08x}")
    assert detect(read_frames(path)[0]).payload == payload


def test_file_has_no_watermark_unless_it_is_asked_for(tmp_path, clip, recipe):
    path = Video(clip, 7, recipe).save(tmp_path / "plain")
    assert np.array_equal(read_frames(path)[0], clip)
    assert read_recipe(path).encoding == FileEncoding()


def test_chunks_do_not_change_the_file(tmp_path, clip, recipe):
    encoding = FileEncoding(watermark="0000002a")
    whole = save_video(clip, tmp_path / "whole.mp4", 7, recipe, encoding=encoding)
    with VideoWriter(tmp_path / "parts.mp4", 7, recipe, encoding=encoding) as writer:
        for i in (0, 1, 2):
            writer.write(clip[i : i + 2] if i == 2 else clip[i : i + 1])
        writer.finish()
    assert whole.read_bytes() == (tmp_path / "parts.mp4").read_bytes()


def test_reencoded_file_keeps_the_watermark(tmp_path, clip, recipe):
    stored = Video(clip, 7, recipe).save(tmp_path / "stored.mp4", watermark=True)
    (tmp_path / "other.mp4").write_bytes(reencode_module.reencode(stored, 30, boomerang=True))
    encoding = read_recipe(tmp_path / "other.mp4").encoding
    assert encoding.watermark == read_recipe(stored).encoding.watermark
    again = save_video(clip, tmp_path / "again.mp4", 7, recipe, encoding=encoding)
    assert again.read_bytes() == (tmp_path / "other.mp4").read_bytes()
    assert f"{detect(read_frames(again)[0]).payload:08x}" == encoding.watermark


def test_watermark_of_an_extended_video_goes_on_in_its_new_frames(tmp_path, clip, recipe):
    source = Video(clip[:2], 7, recipe.model_copy(update={"request": recipe.request.changed(num_frames=2)}))
    opened = open_source_video(source.save(tmp_path / "source", watermark=True))
    assert opened.watermark == KeptWatermark(opened.recipe.encoding.watermark, 2)
    encoding = with_kept_watermark(FileEncoding(), opened.watermark)
    assert encoding == FileEncoding(watermark=opened.watermark.payload, watermarked_before=2)
    with VideoWriter(tmp_path / "extended", 7, recipe, encoding=encoding) as writer:
        for frames in (opened.frames[:1], opened.frames[1:], clip[2:3], clip[3:]):
            writer.write(frames)
        writer.finish()
    assert np.array_equal(read_frames(tmp_path / "extended")[0], embed(clip, int(encoding.watermark, 16)))
    whole = save_video(np.concatenate([opened.frames, clip[2:]]), tmp_path / "whole", 7, recipe, encoding=encoding)
    assert np.array_equal(read_frames(whole)[0], read_frames(tmp_path / "extended")[0])


def test_saving_an_extended_video_does_not_watermark_its_kept_frames_again(tmp_path, clip, watermarked, recipe):
    kept = KeptWatermark(f"{PAYLOAD:08x}", 2)
    extended = Video(np.concatenate([watermarked[:2], clip[2:]]), 7, recipe, kept_watermark=kept)
    for watermark in (True, False):
        path = extended.save(tmp_path / f"extended-{watermark}", watermark=watermark)
        assert np.array_equal(
            read_frames(path)[0], watermarked
        )  # 42.4 dB; with two watermarks, the kept frames have 38.3
    found = verify_file(extended.save(tmp_path / "extended.mp4", watermark=True)).watermark
    assert (found.payload, found.matches_recipe) == (kept.payload, True)


def test_source_without_watermark_has_none_to_keep(tmp_path, clip, recipe):
    source = Video(clip[:2], 7, recipe.model_copy(update={"request": recipe.request.changed(num_frames=2)}))
    assert open_source_video(source).watermark is None
    assert open_source_video(source.save(tmp_path / "plain")).watermark is None


# The payload


def test_payload_depends_on_request_and_images():
    request = VideoRequest(model="pocket", seed=1)
    payloads = [
        payload_of(request, "a"),
        payload_of(request, "b"),
        payload_of(request, "a", "b"),
        payload_of(request.changed(seed=2), "a"),
        payload_of(request.changed(motion_bucket_id=99), "a"),
    ]
    assert len(set(payloads)) == len(payloads)


def test_payload_does_not_depend_on_the_path_of_the_model_and_on_memory():
    request = VideoRequest(model="/models/pocket", seed=1)
    assert payload_of(request, "a") == payload_of(request.changed(model="pocket", decode_chunk_size=2), "a")


def test_table_of_the_guide_is_that_of_the_record():
    record = json.loads((ROOT / "bench" / "results" / "watermark.json").read_text("utf-8"))["survival"]
    guide = (ROOT / "docs" / "trust.md").read_text("utf-8")
    for name in record["288×160"]["changes"]:
        read = [(record[size]["changes"][name]["read"], record[size]["videos"]) for size in ("288×160", "1024×576")]
        assert f"| {name} | {' | '.join(f'{count} of {videos}' for count, videos in read)} |" in guide
