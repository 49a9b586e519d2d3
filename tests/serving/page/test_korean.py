"""Whatever the library can say on the page, the Korean page says in Korean."""

import ast
import html
import io
import math
import re
import string
from pathlib import Path

import pytest
from PIL import Image
from test_job_html import job, text

import kinema
from kinema import errors
from kinema.errors import InvalidImage, InvalidRequest, JobUnfinished, KinemaError, QueueFull
from kinema.jobs import Failure
from kinema.jobs.job import OWN_FAILURES
from kinema.jobs.job_files import JobFiles
from kinema.media.image import fit_warnings, open_image
from kinema.messages import Message
from kinema.models.catalog import CATALOG, IMAGE_MODELS, parameter_warnings, request_for
from kinema.serving.client_messages import failure_message
from kinema.serving.page import form_html, job_html
from kinema.serving.page.translations.english import ENGLISH
from kinema.serving.page.translations.korean import KOREAN
from kinema.serving.submission import prepare
from kinema.settings import Settings
from kinema.values import VideoRequest

SOURCE = Path(kinema.__file__).parent
# What the page calls, and so can be told by. The functions that are named read what no page gives: files, addresses
# and arrays; keys, priorities and other names of the API; the server's own folders, before there is a page.
TELLING = {
    "values.py": set(),
    "models/catalog.py": set(),
    "media/image.py": {"open_image", "_fitted", "_read", "_from_array", "_upright"},
    "media/image_structure.py": set(),
    "serving/submission.py": set(),
    "jobs/queue.py": {"list", "result", "_check", "_known"},
    "jobs/job_files.py": {"__init__"},
    "jobs/job_table.py": {"__init__", "get", "page"},
}
# What only explains, in the words of a library, and may be left out.
EXPLAINING = {"label", "message", "reason"}


def kinds(kind=KinemaError):
    yield kind
    for other in kind.__subclasses__():
        yield from kinds(other)


def calls(path):
    """Each call in a module, with the names of the functions around it."""

    def within(node, names):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = (*names, node.name)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name):
                yield child, names
            yield from within(child, names)

    yield from within(ast.parse(path.read_text(encoding="utf-8")), ())


SENTENCES = [(path, call) for path in SOURCE.rglob("*.py") for call, _ in calls(path) if call.func.id == "Message"]


def places(message):
    return {place[1] for place in string.Formatter().parse(message) if place[1] is not None}


def test_every_sentence_has_its_korean_and_nothing_else_has():
    assert KOREAN.messages.keys() == {call.args[0].value for _, call in SENTENCES}


@pytest.mark.parametrize(("path", "call"), SENTENCES, ids=[call.args[0].value for _, call in SENTENCES])
def test_the_korean_names_each_value_that_the_english_names(path, call):
    code, english = (argument.value for argument in call.args)
    korean, given = KOREAN.messages[code], {keyword.arg for keyword in call.keywords}
    assert re.search("[가-힣]", korean), code
    assert places(english) <= given
    assert places(english) - EXPLAINING <= places(korean) <= given, (path, code)


@pytest.mark.parametrize("module", TELLING)
def test_what_the_page_can_be_told_is_no_plain_english(module):
    refusals = {kind.__name__ for kind in kinds()} | ({"ValueError"} if module == "values.py" else set())
    plain = [
        (call.lineno, call.func.id)
        for call, around in calls(SOURCE / module)
        if call.func.id in refusals and not TELLING[module] & set(around)
        if call.args and isinstance(call.args[0], ast.Constant | ast.JoinedStr)
    ]
    assert not plain


def test_every_kind_of_error_and_of_failure_has_its_korean():
    known = {kind.code for kind in kinds() if kind.__module__ == errors.__name__}
    assert KOREAN.faults.keys() == known | set(OWN_FAILURES)
    assert all(re.search("[가-힣]", reason) for reason in KOREAN.faults.values())


def test_failures_that_are_no_errors_are_those_that_are_listed():
    told = set()
    for path in (SOURCE / "jobs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name("Failure" | "WorkerLost" | "WorkFailed"), args=[ast.Constant(code), *_]):
                    told.add(code)
                case ast.Tuple(elts=[ast.Constant("failed"), ast.Constant(code), *_]):
                    told.add(code)
    assert {"cancelled", "worker_died"} <= told
    assert told - {kind.code for kind in kinds()} <= set(OWN_FAILURES)


def korean(message):
    """What the Korean page says, which must be Korean from end to end."""
    said = form_html.told(message, KOREAN)
    assert 'lang="en"' not in said
    assert re.search("[가-힣]", said)
    return html.unescape(said)


BEYOND = ["", "x", "7.5.1", -1, 10**12, 7.3, math.nan, math.inf, None, [], {}]


@pytest.mark.parametrize("name", VideoRequest.model_fields)
def test_a_setting_is_refused_with_its_label_and_its_value(name):
    prompt = {} if name == "prompt" else {"prompt": "a boat"}
    refused = 0
    for value in BEYOND:
        try:
            VideoRequest.checked(**prompt, **{name: value})
        except InvalidRequest as fault:
            refused += 1
            said = korean(fault.args[0])
            assert repr(value) in said
            assert KOREAN.labels[name] in said
    assert refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 1001}, "너비: 1001 값은 8의 배수가 아닙니다. 1000, 1008 가운데 하나를 넣으세요."),
        ({"height": 3000}, "높이: 3000 값은 범위를 벗어났습니다. 64부터 2048까지 넣을 수 있습니다."),
        ({"decode_chunk_size": 0}, "함께 현상할 장수: 0 값은 범위를 벗어났습니다. 1 이상만 넣을 수 있습니다."),
        ({"fps": "many"}, "초당 장수: 'many' 값은 쓸 수 없습니다. 정수를 넣으세요."),
        ({"fit": "zoom"}, "맞추기: 'zoom' 값은 쓸 수 없습니다. crop, pad, stretch 가운데 하나를 고르세요."),
        ({"speed": 2}, "그런 설정은 없습니다"),
        ({"scheduler": "euler", "prompt": None}, "문장으로 사진을 그릴 때만"),
        ({"prompt": "x" * 10_001}, "10001자를 썼습니다. 10000자까지만"),
    ],
)
def test_a_refusal_names_value_and_remedy(settings, said):
    with pytest.raises(InvalidRequest) as refused:
        VideoRequest.checked(**settings)
    assert said in korean(refused.value.args[0])


def all_warnings():
    for model in CATALOG:
        yield from parameter_warnings(request_for(model=model, motion_bucket_id=300, fps=40, num_frames=99, width=512))
    for image_pipeline in IMAGE_MODELS:
        drawn = {"prompt": "a boat", "image_model": image_pipeline, "negative_prompt": "fog", "image_guidance_scale": 1}
        yield from parameter_warnings(request_for(model="svd", width=512, **drawn))
    for prompt in ("an old man in Paris", "an old horse", "a boat a1 a2 a3 a4 a5 a6 a7 a8 a9"):
        yield from parameter_warnings(request_for(model="pocket", prompt=prompt, image_model="pocket-t2i"))
    yield from fit_warnings((64, 64), 1024, 320)


def test_cautions_are_korean_and_name_the_same_figures():
    told = list(all_warnings())
    assert {warning.code for warning in told} >= {
        "untrained_motion", "untrained_fps", "untrained_size", "untrained_length", "not_tuned", "no_effect",
        "image_enlarged", "image_cut",
    }  # fmt: skip
    for warning in told:
        assert set(re.findall(r"[\d.]*\d", warning)) <= set(re.findall(r"[\d.]*\d", korean(warning))), warning


def png_image(size=(64, 64), kind="PNG", **saved):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind, **saved)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "파일이 비어 있습니다"),
        (b"GIF89a", "GIF 그림 같습니다. 한 장면을 PNG로 저장해서 쓰세요. (JPEG, PNG, WebP를 읽습니다)"),
        (b"\0\0\0\x18ftypheic", "HEIC 사진 같습니다. JPEG로 내보내서"),
        (b"<!doctype html>", "웹 페이지 같습니다"),
        (b"<svg>", "SVG 그림 같습니다"),
        (b"hello", "알 수 없는 파일입니다. JPEG, PNG, WebP"),
        (png_image()[:60], "손상되었거나 끝이 잘렸습니다"),
        (png_image((8, 8)), "8×8 픽셀입니다. 32×32 픽셀은"),
        (png_image((8000, 8000)), "8000×8000, 64.0메가픽셀입니다. 40메가픽셀까지만"),
        (png_image((20_000, 20_000), kind="JPEG"), "40메가픽셀보다 훨씬"),
    ],
)
def test_a_still_is_refused_with_what_is_wrong_and_what_to_do(data, said):
    with pytest.raises(InvalidImage) as refused:
        open_image(data)
    assert said in korean(refused.value.args[0])


def test_an_animated_still_is_told_of():
    moving = png_image(kind="PNG", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")])
    assert [korean(warning) for warning in open_image(moving).warnings] == ["움직이는 사진입니다. 첫 장면을 씁니다."]


def test_a_server_refuses_in_korean(tmp_path):
    tight = Settings(data_dir=tmp_path, model="pocket", device="cpu", max_work=1)
    for fields, image, said in [
        ({"model": "someone/theirs"}, png_image(), "'someone/theirs' 모델이 없습니다. 쓸 수 있는 모델은 pocket, svd"),
        ({}, png_image(), "288×160 픽셀 × 14장 × 8단계는 5백만으로, 한 번에 만들 수 있는 1백만(KINEMA_MAX_WORK)"),
        ({}, None, "사진도 문장도 없습니다"),
        ({"prompt": "\ud800"}, None, "글자가 아닌 것"),
        ({"prompt": 7}, None, "문장이 아닙니다"),
    ]:
        with pytest.raises(InvalidRequest) as refused:
            prepare(tight, fields, image)
        assert said in korean(refused.value.args[0])
    with pytest.raises(KinemaError) as refused:
        JobFiles(tmp_path).check_room(10**9)
    assert f"{tmp_path}: 디스크에" in korean(refused.value.args[0])
    assert "KINEMA_MIN_FREE_GB" in korean(refused.value.args[0])


def test_what_has_no_korean_is_marked_as_english():
    plain = JobUnfinished("it is <queued>")
    assert form_html.why(plain, KOREAN) == '아직 완성된 영상이 없습니다. <span lang="en">it is &lt;queued&gt;</span>'
    assert form_html.why(plain, ENGLISH) == "it is &lt;queued&gt;"
    unknown = Message("of_tomorrow", "it is {what}", what=Message("new", "new"))
    assert form_html.why(QueueFull(unknown, 1), KOREAN).endswith('<span lang="en">it is new</span>')
    assert (
        form_html.told(Message("not_usable", "{wanted}", wanted=unknown), KOREAN) == '<span lang="en">it is new</span>'
    )


@pytest.mark.parametrize("code", [code for code in KOREAN.faults if code != "cancelled"])
def test_a_failed_job_says_why_and_keeps_the_servers_words(code):
    failed = job("failed", error=Failure(code, "no <room> for 3 GB"))
    panel = job_html.panel(failed, KOREAN)
    assert f"{KOREAN.faults[code]} {KOREAN.kept}" in text(panel)
    said = failure_message(failed.error)  # what the server keeps to itself is said in general
    kept = said == failed.error.message
    assert ('<p><span lang="en">no &lt;room&gt; for 3 GB</span></p></details>' in panel) is kept
    assert f"{said[:1].upper()}{said[1:]}. Your settings" in text(job_html.panel(failed, ENGLISH))
    assert ENGLISH.details not in text(job_html.panel(failed, ENGLISH))


def test_a_job_that_failed_of_something_new_says_so_in_english():
    panel = job_html.panel(job("failed", error=Failure("of_tomorrow", "it <broke>")), KOREAN)
    assert f'<span lang="en">It &lt;broke&gt;.</span> {KOREAN.kept}' in panel


def test_a_cancelled_job_has_no_reason():
    panel = job_html.panel(job("failed", error=Failure("cancelled", "it was cancelled")), KOREAN)
    assert "it was" not in panel
    assert f'k-left">{KOREAN.kept}<' in panel
