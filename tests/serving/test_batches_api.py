"""The unmodified openai package uploads files and runs batches."""

import base64
import json
import os
import signal
import socket
import time
from email.utils import parsedate_to_datetime

import httpx
import openai
import psutil
import pytest
from server_process import start, stop, wait_ready

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

QUICK = {"prompt": "a rocket", "motion_bucket_id": 0, "num_frames": 1, "num_inference_steps": 1, "model": "pocket"}


@pytest.fixture
def api(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        yield client


def line(custom_id, **body):
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/videos", "body": QUICK | body}


def upload(api, lines, name="requests.jsonl"):
    data = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    return api.files.create(file=(name, data.encode()), purpose="batch")


def create(api, file, **options):
    return api.batches.create(input_file_id=file.id, endpoint="/v1/videos", completion_window="24h", **options)


def wait_ended(api, batch, seconds=120):
    deadline = time.monotonic() + seconds
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
        batch = api.batches.retrieve(batch.id)
    return batch


def results(api, file_id):
    return [json.loads(each) for each in api.files.content(file_id).text.splitlines()]


def test_batch_gives_videos_and_named_failures(api, png):
    image = {"image_url": "data:image/png;base64," + base64.b64encode(png).decode()}
    broken = {"image_url": "data:image/png;base64,aGVsbG8="}
    file = upload(api, [line("a", seed=1), "", line("b", input_reference=image), line("c", input_reference=broken),
                        line("d", model="defect")])  # fmt: skip
    assert (file.purpose, file.filename, file.status) == ("batch", "requests.jsonl", "processed")
    batch = wait_ended(api, create(api, file, metadata={"customer": "7"}))
    assert (batch.status, batch.metadata, batch.errors) == ("completed", {"customer": "7"}, None)
    assert batch.request_counts.model_dump() == {"total": 4, "completed": 2, "failed": 2}
    assert batch.completed_at >= batch.finalizing_at >= batch.in_progress_at >= batch.created_at
    output = results(api, batch.output_file_id)
    assert [each["custom_id"] for each in output] == ["a", "b"]
    video = output[0]["response"]["body"]
    assert (output[0]["response"]["status_code"], output[0]["error"], video["seed"]) == (200, None, 1)
    assert api.videos.download_content(video["id"]).read()[4:8] == b"ftyp"
    errors = {each["custom_id"]: each["response"] for each in results(api, batch.error_file_id)}
    assert errors["c"]["status_code"] == 400
    assert errors["c"]["body"]["error"]["code"] == "invalid_image"
    assert errors["c"]["body"]["error"]["param"] == "input_reference"
    assert (errors["d"]["status_code"], errors["d"]["body"]["error"]["code"]) == (500, "internal_error")
    assert batch.id in [each.id for each in api.batches.list(limit=1)]
    assert {file.id, batch.output_file_id} <= {each.id for each in api.files.list(limit=2)}
    assert [each.id for each in api.files.list(purpose="batch_output", limit=100)].count(file.id) == 0
    assert api.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        api.files.retrieve(file.id)


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        ([line("a"), "{", "[1]"], ["line 2: the line is not valid JSON", "line 3: the line is not a JSON object"]),
        ([line("a"), line("b"), line("a")], ["line 3: custom_id 'a' is used in line 1 too"]),
        ([{**line("a"), "url": "/v1/images"}], ["line 1: url '/v1/images' is not supported; use '/v1/videos'"]),
        ([{**line("a"), "method": "GET"}], ["line 1: method 'GET' is not supported; use 'POST'"]),
        ([line(7), line("")], ["line 1: custom_id 7 is not text", "line 2: custom_id '' has 0 characters"]),
        ([{"custom_id": "a"}, line("b\0")], ["line 1: method is missing", "line 2: 'custom_id' contains an invalid"]),
        ([line("a", priority=1001)], ["line 1: priority 1001 is out of range"]),
        (['{"custom_id": "a", "custom_id": "b"}'], ["line 1: 'custom_id' occurs twice in an object"]),
        ([line("a", width=1001)], ["line 1: width 1001 is not a multiple of 8; use 1000 or 1008"]),
        ([line("a", frames=3)], ["line 1: unknown parameter 'frames'"]),
        ([line("a", pinned=True)], ["line 1: pinned is not supported in a batch"]),
        ([line("a", prompt=None)], ["line 1: an image or a prompt is required"]),
        ([{**line("a"), "more": 1}], ["line 1: unknown field 'more'"]),
        (["", "  "], ["the file has no requests"]),
    ],
    ids=lambda value: value[0][:40] if isinstance(value[0], str) else "",
)
def test_invalid_file_fails_with_its_lines(api, lines, messages):
    batch = wait_ended(api, create(api, upload(api, lines)))
    assert (batch.status, batch.request_counts.total, batch.output_file_id) == ("failed", 0, None)
    assert len(batch.errors.data) == len(messages)
    for error, message in zip(batch.errors.data, messages, strict=True):
        assert message in error.message
        assert error.line is None or f"line {error.line}:" in message


def test_invalid_calls_are_rejected_with_the_field(api, server):
    def rejected(**fields):
        good = {"input_file_id": "file-" + "0" * 32, "endpoint": "/v1/videos", "completion_window": "24h"}
        response = httpx.post(f"{server.url}/v1/batches", json={**good, **fields})
        return response.status_code, response.json()["error"]["param"]

    assert rejected() == (404, None)
    assert rejected(endpoint="/v1/images") == (400, "endpoint")
    assert rejected(completion_window="1h") == (400, "completion_window")
    assert rejected(metadata={"a": 1}) == (400, "metadata")
    assert rejected(metadata={"a": "\0"}) == (400, "metadata")
    assert rejected(metadata={"\0": "a"}) == (400, "metadata")
    assert rejected(other=1) == (400, "other")
    with pytest.raises(openai.BadRequestError, match="purpose is missing; send 'batch'"):
        api.files.create(file=("a.jsonl", b"{}"), purpose=openai.omit)
    with pytest.raises(openai.BadRequestError, match="purpose 'vision' is not supported; use 'batch'"):
        api.files.create(file=("a.jsonl", b"{}"), purpose="vision")
    with pytest.raises(openai.BadRequestError, match="unknown field 'expires_after"):
        api.files.create(
            file=("a.jsonl", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    with pytest.raises(openai.NotFoundError, match="an id is batch_ and 32 hexadecimal digits"):
        api.batches.retrieve("batch_7")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"other": 1}, "unknown field 'other'; expected one of input_file_id, endpoint, completion_window, metadata"),
        ({"input_file_id": 5}, "input_file_id '5' is not text; put it in quotation marks"),
        ({"endpoint": "/v1/images"}, "endpoint '/v1/images' is not supported; use '/v1/videos'"),
        ({"metadata": [1]}, 'metadata \'[1]\' is not an object; send names and texts, such as {"customer": "7"}'),
        ({"metadata": {"a": 1}}, "metadata '1' of 'a' is not text; put it in quotation marks"),
        ({"metadata": {"": "a"}}, "metadata has an empty name; use 1 to 64 characters"),
        ({"metadata": dict.fromkeys("abcdefghijklmnopq", "a")}, "metadata has more than 16 names; use fewer"),
        ({"webhook_url": "x" * 2001}, "is too long; use at most 2000 characters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_fields_of_a_batch_are_explained(server, fields, message):
    good = {"input_file_id": "file-" + "0" * 32, "endpoint": "/v1/videos", "completion_window": "24h"}
    assert message in httpx.post(f"{server.url}/v1/batches", json={**good, **fields}).json()["error"]["message"]


def test_errors_name_what_is_missing_or_in_use(api, client):
    def code(path, method="GET"):
        response = client.request(method, path)
        return response.status_code, response.json()["error"]["code"]

    file_id, batch_id = "file-" + "0" * 32, "batch_" + "0" * 32
    no_file, no_batch = (404, "file_not_found"), (404, "batch_not_found")
    for path in (f"files/{file_id}", f"files/{file_id}/content", "files/7", f"files?after={file_id}", "files?after=7"):
        assert code(f"/v1/{path}") == no_file
    for path in (f"batches/{batch_id}", "batches/7", f"batches?after={batch_id}", "batches?after=7"):
        assert code(f"/v1/{path}") == no_batch
    assert code(f"/v1/files/{file_id}", "DELETE") == no_file
    assert code(f"/v1/batches/{batch_id}/cancel", "POST") == no_batch
    with pytest.raises(openai.NotFoundError) as caught:
        api.batches.create(input_file_id=file_id, endpoint="/v1/videos", completion_window="24h")
    assert caught.value.code == "file_not_found"
    file = upload(api, [line(str(number), motion_bucket_id=500) for number in range(9)])
    batch = create(api, file)
    assert code(f"/v1/files/{file.id}", "DELETE") == (409, "file_in_use")
    wait_ended(api, api.batches.cancel(batch.id))


def test_file_that_was_deleted_from_the_disk_is_not_found(api, client, server):
    file = upload(api, [line("a")])
    (server.data / "files" / f"{file.id}.jsonl").unlink()
    response = client.get(f"/v1/files/{file.id}/content")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "file_not_found")
    batch = wait_ended(api, create(api, file))
    assert [error.code for error in batch.errors.data] == ["file_not_found"]


def test_file_has_its_own_time_and_tag_and_not_those_of_a_copy(api, client, server):
    file = upload(api, [line("a")])
    path = f"/v1/files/{file.id}/content"
    before = client.get(path)
    copy = server.data / "files" / f"{file.id}.jsonl"
    os.utime(copy, (1e9, 1e9))
    after = client.get(path)
    assert parsedate_to_datetime(after.headers["last-modified"]).timestamp() == file.created_at
    assert before.headers["etag"] == after.headers["etag"]
    ranged = client.get(path, headers={"Range": "bytes=1-3", "If-Range": before.headers["etag"]})
    assert (ranged.status_code, ranged.content) == (206, after.content[1:4])


@pytest.mark.parametrize("path", ["videos", "batches"])
@pytest.mark.parametrize("key", [f"kinema:batch_{'0' * 32}-1", "k" * 256])
def test_reserved_or_long_key_is_refused(client, path, key):
    body = {"input_file_id": "file-" + "0" * 32, "endpoint": "/v1/videos", "completion_window": "24h"}
    response = client.post(f"/v1/{path}", json=QUICK if path == "videos" else body, headers={"Idempotency-Key": key})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "idempotency_key")


def test_idempotency_key_returns_same_batch_and_rejects_other_request(api):
    key = {"Idempotency-Key": f"key-{time.time_ns()}"}
    file = upload(api, [line("a")])
    first = create(api, file, extra_headers=key, metadata={"customer": "7", "order": "1"})
    wait_ended(api, first)
    api.files.delete(file.id)
    assert create(api, file, extra_headers=key, metadata={"order": "1", "customer": "7"}).id == first.id
    with pytest.raises(openai.ConflictError) as caught:
        create(api, file, extra_headers=key, metadata={"customer": "8"})
    assert caught.value.code == "idempotency_key_reused"
    other = create(api, upload(api, [line("b")]), extra_headers={"Idempotency-Key": "other"})
    assert other.id != first.id
    wait_ended(api, other)


def test_upload_that_is_incomplete_or_too_large_leaves_no_file(server):
    stored = set((server.data / "files").glob("*"))
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}'
    response = httpx.post(f"{server.url}/v1/files", content=part, headers=headers)
    assert (response.status_code, "last boundary is missing" in response.text) == (400, True)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000000\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert b" 413 " in answer
    assert b"larger than 200 MB (KINEMA_MAX_BATCH_FILE_MB)" in answer
    assert set((server.data / "files").glob("*")) == stored


def test_cancel_stops_waiting_and_running_jobs(api):
    file = upload(api, [line(str(number), motion_bucket_id=500) for number in range(60)])
    batch = create(api, file)
    with pytest.raises(openai.ConflictError, match="is the input of an unfinished batch; cancel the batch first"):
        api.files.delete(file.id)
    while not any(video.status == "in_progress" for video in api.videos.list(limit=60)):
        time.sleep(0.05)
    assert api.batches.cancel(batch.id).status == "cancelling"
    batch = wait_ended(api, batch)
    counts = batch.request_counts
    assert (batch.status, counts.completed + counts.failed, counts.total) == ("cancelled", 60, 60)
    errors = results(api, batch.error_file_id)
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
    assert len(errors) == counts.failed > 50
    assert {video.status for video in api.videos.list(limit=60)} <= {"completed", "failed"}
    assert api.batches.cancel(batch.id).status == "cancelled"


def test_file_of_3000_lines_is_validated_in_bounded_memory(api, server, png):
    image = {"image_url": "data:image/png;base64," + base64.b64encode(png + bytes(10_000)).decode()}
    text = "\n".join(
        json.dumps(line(str(number), input_reference=image, motion_bucket_id=400)) for number in range(3000)
    )
    process = psutil.Process(server.api_process().pid)
    before = process.memory_info().rss
    file = api.files.create(file=("large.jsonl", text.encode()), purpose="batch")
    assert file.bytes == len(text) > 40e6
    batch = create(api, file)
    peak = 0
    while batch.status == "validating":
        peak = max(peak, process.memory_info().rss)
        batch = api.batches.retrieve(batch.id)
    assert (batch.status, batch.request_counts.total) == ("in_progress", 3000)
    assert peak - before < 40e6
    while len(list(api.videos.list(limit=100))) < 40:
        time.sleep(0.05)
    assert len([video for video in api.videos.list(limit=100) if video.status == "queued"]) <= 50
    alone = api.videos.create(prompt="alone", model="pocket", extra_body=QUICK | {"prompt": "alone"})
    assert alone.queue_position == 1
    assert wait_ended(api, api.batches.cancel(batch.id)).status == "cancelled"


@pytest.mark.slow
def test_batch_survives_kills_and_runs_each_line_once(tmp_path, png):
    """The server is killed while it validates, submits, collects and writes the results."""
    server = start(tmp_path / "data", work="server_work:NoWork", queue_size=40)
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=20) as api:
            file = upload(api, [line(str(number), seed=number) for number in range(600)])
            batch = create(api, file)
            for seconds in (0.1, 1, 5, 10):
                time.sleep(seconds)
                psutil.Process(server.api_process().pid).send_signal(signal.SIGKILL)
                wait_ready(server)
            batch = wait_ended(api, batch, 400)
            assert batch.request_counts.model_dump() == {"total": 600, "completed": 600, "failed": 0}
            output = results(api, batch.output_file_id)
            assert [each["custom_id"] for each in output] == [str(number) for number in range(600)]
            videos = [each["response"]["body"] for each in output]
            assert [video["seed"] for video in videos] == list(range(600))
            assert {video["id"] for video in videos} == {video.id for video in api.videos.list(limit=100)}
    finally:
        stop(server)
