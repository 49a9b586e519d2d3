"""Every message that the library can show on the page has a Korean translation."""

import ast
import html
import io
import math
import re
import string
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_job_html import job, text

import kinema
from kinema import errors
from kinema.cli.verify import FAULTS, SOURCES
from kinema.errors import InvalidImage, InvalidRequest, JobUnfinished, KinemaError, QueueFull
from kinema.jobs import Failure
from kinema.jobs.job import QUEUE_FAILURE_CODES
from kinema.jobs.job_files import JobFiles
from kinema.media.image import fit_warnings, open_image
from kinema.media.video_writer import save_video
from kinema.messages import Message
from kinema.models.catalog import CATALOG, IMAGE_MODELS, parameter_warnings, request_for
from kinema.recipe import ModelIdentity, Recipe
from kinema.serving.client_messages import failure_message
from kinema.serving.extension_submission import prepare_extension
from kinema.serving.page import form_html, job_html
from kinema.serving.page.translations.english import ENGLISH
from kinema.serving.page.translations.korean import KOREAN
from kinema.serving.page.translations.verify_words import VERIFY_WORDS
from kinema.serving.submission import prepare
from kinema.settings import Settings
from kinema.values import VideoRequest, too_long

SOURCE = Path(kinema.__file__).parent
# Modules whose errors can reach the page, with functions to ignore: they read files, URLs and arrays, parameters that
# only the API has, or the server's folders at start.
PAGE_MODULES = {
    "values.py": set(),
    "models/catalog.py": {"_stored_defaults"},
    "media/image.py": {"open_image", "_fit", "read_image_file", "_read_file", "_from_array", "_to_upright"},
    "media/image_structure.py": set(),
    "media/verification.py": {"check_size"},
    "media/safety_check.py": {"check_safety_package"},
    "serving/blocked_words.py": {"_unusable"},
    "serving/extension_submission.py": {"_integer"},
    "serving/submission.py": set(),
    "serving/work_limits.py": set(),
    "jobs/queue.py": {"list", "_check_completed"},
    "jobs/submitter.py": set(),
    "jobs/job_files.py": {"__init__"},
    "jobs/job_table.py": {"get", "page"},
    "jobs/job_inserts.py": set(),
    "jobs/queue_database.py": {"__init__"},
    "jobs/database.py": set(),
}
# Placeholders with a library's own English text, which a translation may leave out.
OPTIONAL = {"label", "message", "reason"}


def error_types(kind=KinemaError):
    yield kind
    for other in kind.__subclasses__():
        yield from error_types(other)


def calls(path):
    """Yield each call in a module with the names of the enclosing functions."""

    def within(node, names):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = (*names, node.name)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name):
                yield child, names
            yield from within(child, names)

    yield from within(ast.parse(path.read_text(encoding="utf-8")), ())


MESSAGE_CALLS = [
    (path, call)
    for path in SOURCE.rglob("*.py")
    if "Message(" in path.read_text(encoding="utf-8")
    for call, _ in calls(path)
    if call.func.id == "Message"
]


def placeholders(message):
    return {field[1] for field in string.Formatter().parse(message) if field[1] is not None}


def test_every_message_has_a_translation_and_no_translation_is_unused():
    assert KOREAN.messages.keys() == {call.args[0].value for _, call in MESSAGE_CALLS}


@pytest.mark.parametrize(("path", "call"), MESSAGE_CALLS, ids=[call.args[0].value for _, call in MESSAGE_CALLS])
def test_translation_has_the_placeholders_of_the_english(path, call):
    code, english = (argument.value for argument in call.args)
    korean, values = KOREAN.messages[code], {keyword.arg for keyword in call.keywords}
    assert re.search("[가-힣]", korean), code
    assert placeholders(english) <= values
    assert placeholders(english) - OPTIONAL <= placeholders(korean) <= values, (path, code)


@pytest.mark.parametrize("module", PAGE_MODULES)
def test_errors_that_reach_the_page_have_a_message_code(module):
    errors_raised = {kind.__name__ for kind in error_types()} | ({"ValueError"} if module == "values.py" else set())
    plain = [
        (call.lineno, call.func.id)
        for call, around in calls(SOURCE / module)
        if call.func.id in errors_raised and not PAGE_MODULES[module] & set(around)
        if call.args and isinstance(call.args[0], ast.Constant | ast.JoinedStr)
    ]
    assert not plain


def test_no_particle_depends_on_the_last_sound_of_a_value():
    texts = [*KOREAN.messages.values(), *KOREAN.errors.values(), *VERIFY_WORDS["ko"].values()]
    texts += [*KOREAN.parameter_names.values(), *KOREAN.parameter_help.values()]
    assert [shown for shown in texts if re.search(r"이\(가\)|은\(는\)|을\(를\)|와\(과\)|\(으\)로", shown)] == []


def test_foot_names_watermark_and_credentials_only_if_they_are_on():
    for labels in (ENGLISH, KOREAN):
        notes = [labels.watermark_note, labels.credentials_note]
        for settings, shown in (
            ({}, [True, True]),
            ({"watermark": "off"}, [False, True]),
            ({"credentials": "off"}, [True, False]),
        ):
            foot = html.unescape(form_html.footer(labels, Settings(**settings)))
            assert labels.ai_note in foot
            assert [note in foot for note in notes] == shown


def test_every_word_of_the_page_that_verifies_is_translated():
    english, translated = VERIFY_WORDS["en"], VERIFY_WORDS["ko"]
    assert english.keys() == translated.keys()
    for name, word in english.items():
        assert placeholders(word) == placeholders(translated[name]), name
    assert {f"source_{name}" for name in SOURCES} <= english.keys()
    assert {f"fault_{name}" for name in FAULTS} <= english.keys()


def test_every_error_code_has_a_korean_description():
    known = {kind.code for kind in error_types() if kind.__module__ == errors.__name__}
    assert KOREAN.errors.keys() == known | set(QUEUE_FAILURE_CODES)
    assert all(re.search("[가-힣]", reason) for reason in KOREAN.errors.values())


def test_failure_codes_without_an_error_type_are_in_own_failures():
    codes = set()
    for path in (SOURCE / "jobs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name("Failure" | "WorkerLost" | "WorkFailed"), args=[ast.Constant(code), *_]):
                    codes.add(code)
                case ast.Tuple(elts=[ast.Constant("failed"), ast.Constant(code), *_]):
                    codes.add(code)
    assert {"cancelled", "worker_died"} <= codes
    assert codes - {kind.code for kind in error_types()} <= set(QUEUE_FAILURE_CODES)


def korean(message):
    """Return a message as the Korean page shows it, and check that no part of it is English."""
    markup = form_html.message_html(message, KOREAN)
    assert 'lang="en"' not in markup
    assert re.search("[가-힣]", markup)
    return html.unescape(markup)


INVALID_VALUES = ["", "x", "7.5.1", -1, 10**12, 7.3, math.nan, math.inf, None, [], {}]


@pytest.mark.parametrize("name", VideoRequest.model_fields)
def test_invalid_parameter_is_rejected_with_label_and_value(name):
    prompt = {} if name == "prompt" else {"prompt": "a boat"}
    errors_raised = 0
    for value in INVALID_VALUES:
        try:
            VideoRequest.checked(**prompt, **{name: value})
        except InvalidRequest as error:
            errors_raised += 1
            message = korean(error.args[0])
            assert repr(value) in message or (name, value) == ("prompt", "")
            assert KOREAN.parameter_names[name] in message
    assert errors_raised


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"width": 1001}, "너비: 1001 값은 8의 배수가 아닙니다. 1000 또는 1008 값을 입력하세요."),
        ({"height": 3000}, "높이: 3000 값은 범위를 벗어났습니다. 입력할 수 있는 값은 64부터 2048까지입니다."),
        (
            {"decode_chunk_size": 0},
            "한 번에 디코딩할 프레임 수: 0 값은 범위를 벗어났습니다. 입력할 수 있는 값은 1 이상입니다.",
        ),
        ({"fps": "many"}, "초당 프레임 수(fps): 'many' 값은 정수가 아닙니다. 입력할 수 있는 값은 1부터 120까지입니다."),
        ({"fit": "zoom"}, "화면 맞춤: 'zoom' 값은 사용할 수 없습니다. crop, pad, stretch 중 하나를 선택하세요."),
        ({"loop": "maybe"}, "반복 재생용 영상: 'maybe' 값은 사용할 수 없습니다. true 또는 false를 입력하세요."),
        ({"speed": 2}, "없는 설정입니다"),
        ({"scheduler": "euler", "prompt": None}, "프롬프트로 이미지를 생성할 때만"),
        ({"prompt": "x" * 10_001}, "10001자를 입력했습니다. 10000자까지"),
    ],
)
def test_invalid_parameter_message_has_value_and_remedy(parameters, expected):
    with pytest.raises(InvalidRequest) as raised:
        VideoRequest.checked(**parameters)
    assert expected in korean(raised.value.args[0])


def test_title_too_long_message_names_the_title():
    assert korean(too_long("title", 10_001, 10_000)).startswith(f"{KOREAN.new_title}: 10001자")


@pytest.mark.parametrize(
    ("frames", "seconds", "expected"),
    [
        (14, "0", "길이(초): '0' 값은 범위를 벗어났습니다"),
        (14, "18", "길이(초): '18' 값은 범위를 벗어났습니다. 1초에 7프레임이면 0.14초부터 16.3초(114프레임)까지"),
        (128, "1", "더 이어서 만들 수 없습니다."),
    ],
)
def test_length_of_an_extension_is_explained(tmp_path, frames, seconds, expected):
    request = request_for(model="pocket", width=64, height=64, num_frames=frames, seed=1)
    recipe = Recipe(
        kinema="1", request=request, model=ModelIdentity(name="pocket", revision=None, weights_sha256="1" * 64),
        image_sha256="c" * 64, device="cpu", dtype="float32", memory_plan="resident", decode_chunk_size=7, versions={},
    )  # fmt: skip
    save_video(np.zeros((frames, 64, 64, 3), np.uint8), tmp_path / "a.mp4", 7, recipe)
    job = SimpleNamespace(status="completed", id="video_1")
    stored = SimpleNamespace(
        get=lambda _: job, result=lambda _: tmp_path / "a.mp4", image=lambda _: tmp_path / "a.mp4"
    )  # a queue with this video
    with pytest.raises(InvalidRequest) as raised:
        prepare_extension(stored, Settings(), {"extend": "video_1", "seconds": seconds}, has_image=False)
    assert expected in korean(raised.value.args[0])


def all_warnings():
    for model in CATALOG:
        yield from parameter_warnings(request_for(model=model, motion_bucket_id=300, fps=40, num_frames=99, width=512))
    for image_pipeline in IMAGE_MODELS:
        image_parameters = {
            "prompt": "a boat",
            "image_model": image_pipeline,
            "negative_prompt": "fog",
            "image_guidance_scale": 1,
        }
        yield from parameter_warnings(request_for(model="svd", width=512, **image_parameters))
    yield from parameter_warnings(request_for(model="svd", fit="pad", crop_position=0.25))
    for prompt in ("an old man in Paris", "an old horse", "a boat a1 a2 a3 a4 a5 a6 a7 a8 a9"):
        yield from parameter_warnings(request_for(model="pocket", prompt=prompt, image_model="pocket-t2i"))
    yield from fit_warnings((64, 64), 1024, 320)


def test_warnings_are_korean_with_the_same_numbers():
    warnings = list(all_warnings())
    assert {warning.code for warning in warnings} >= {
        "untrained_motion", "untrained_fps", "untrained_size", "not_tuned", "no_effect",
        "crop_position_unused",
        "image_enlarged", "image_cut",
    }  # fmt: skip
    for warning in warnings:
        assert set(re.findall(r"[\d.]*\d", warning)) <= set(re.findall(r"[\d.]*\d", korean(warning))), warning


def png_image(size=(64, 64), kind="PNG", mode="RGB", **saved):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **saved)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "파일이 비어 있습니다"),
        (
            b"GIF89a",
            "GIF 이미지 파일인 것 같습니다. 프레임 하나를 PNG로 저장해 사용하세요. 지원 형식: JPEG, PNG, WebP, HEIC,",
        ),
        (b"\0\0\0\x18ftypheic", "손상되었거나 끝부분이 잘렸습니다"),
        (b"<!doctype html>", "웹 페이지 파일인 것 같습니다"),
        (b"<svg>", "SVG 이미지 파일인 것 같습니다"),
        (b"hello", "알 수 없는 파일 형식입니다. JPEG, PNG, WebP, HEIC, AVIF"),
        (png_image()[:60], "손상되었거나 끝부분이 잘렸습니다"),
        (png_image((8, 8)), "8×8 픽셀입니다. 32×32 픽셀 이상"),
        (partial(png_image, (9000, 8000), mode="L"), "9000×8000 픽셀(72.0메가픽셀)입니다. 65메가픽셀까지"),
        (partial(png_image, (12_000, 12_000), kind="JPEG", mode="L"), "65메가픽셀보다 훨씬"),
    ],
)
def test_invalid_image_message_has_reason_and_remedy(data, expected):
    with pytest.raises(InvalidImage) as raised:
        open_image(data() if callable(data) else data)
    assert expected in korean(raised.value.args[0])


def test_animated_image_gives_a_warning():
    moving = png_image(kind="PNG", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")])
    assert [korean(warning) for warning in open_image(moving).warnings] == [
        "애니메이션 이미지입니다. 첫 프레임만 사용합니다."
    ]


def test_server_errors_are_korean(tmp_path):
    settings = Settings(data_dir=tmp_path, model="pocket", device="cpu", max_work=1)
    for fields, image, expected in [
        (
            {"model": "someone/theirs"},
            png_image(),
            "'someone/theirs' 모델이 없습니다. 사용할 수 있는 모델은 pocket, svd",
        ),
        ({}, png_image(), "288×160 픽셀 × 14프레임 × 8단계 = 5.16096백만)이 한도(1백만, KINEMA_MAX_WORK)"),
        ({}, None, "이미지도 프롬프트도 없습니다"),
        ({"prompt": "\ud800"}, None, "올바르지 않은 문자"),
        ({"prompt": 7}, None, "텍스트가 아닙니다"),
    ]:
        with pytest.raises(InvalidRequest) as raised:
            prepare(settings, fields, image)
        assert expected in korean(raised.value.args[0])
    with pytest.raises(KinemaError) as raised:
        JobFiles(tmp_path).check_free_space(10**9)
    assert f"{tmp_path}: 디스크에" in korean(raised.value.args[0])
    assert "KINEMA_MIN_FREE_GB" in korean(raised.value.args[0])


def test_untranslated_message_is_marked_as_english():
    plain = JobUnfinished("it is <queued>")
    assert (
        form_html.error_html(plain, KOREAN)
        == '아직 완성되지 않은 영상입니다. <span lang="en">it is &lt;queued&gt;</span>'
    )
    assert form_html.error_html(plain, ENGLISH) == "it is &lt;queued&gt;"
    unknown = Message("of_tomorrow", "it is {what}", what=Message("new", "new"))
    assert form_html.error_html(QueueFull(unknown, 1), KOREAN).endswith('<span lang="en">it is new</span>')
    assert (
        form_html.message_html(Message("not_usable", "{wanted}", wanted=unknown), KOREAN)
        == '<span lang="en">it is new</span>'
    )


@pytest.mark.parametrize("code", [code for code in KOREAN.errors if code != "cancelled"])
def test_failed_job_shows_the_description_and_the_english_message(code):
    failed = job("failed", error=Failure(code, "no <room> for 3 GB"))
    panel = job_html.panel(failed, KOREAN)
    assert f"{KOREAN.errors[code]} {KOREAN.parameters_kept}" in text(panel)
    message = failure_message(failed.error)
    is_public = message == failed.error.message
    assert ('<p><span lang="en">no &lt;room&gt; for 3 GB</span></p></details>' in panel) is is_public
    assert f"{message[:1].upper()}{message[1:]}. Your parameters" in text(job_html.panel(failed, ENGLISH))
    assert ENGLISH.details not in text(job_html.panel(failed, ENGLISH))


def test_unknown_failure_code_shows_the_english_message():
    panel = job_html.panel(job("failed", error=Failure("of_tomorrow", "it <broke>")), KOREAN)
    assert f'<span lang="en">It &lt;broke&gt;.</span> {KOREAN.parameters_kept}' in panel


def test_cancelled_job_shows_no_reason():
    panel = job_html.panel(job("failed", error=Failure("cancelled", "it was cancelled")), KOREAN)
    assert "it was" not in panel
    assert f'k-left">{KOREAN.parameters_kept}<' in panel
