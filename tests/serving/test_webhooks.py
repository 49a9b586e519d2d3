"""Webhooks: a real receiver verifies each message, while the queue runs stand-in work."""

import json
import time

import pytest
from server_process import start, stop
from webhook_receiver import SECRET, receiving

from kinema.errors import InvalidRequest
from kinema.jobs import NewJob, Queue
from kinema.serving import webhook_sender
from kinema.serving.webhook_sender import WebhookSender, pause_after
from kinema.serving.webhook_urls import check_webhook_url
from kinema.settings import Settings, read_settings
from kinema.values import VideoRequest

REQUEST = VideoRequest(prompt="a rocket", model="pocket", seed=1, motion_bucket_id=0, num_frames=1)


@pytest.fixture
def receiver():
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def settings(tmp_path, receiver):
    hosts = f"{receiver.host},127.0.0.1:9"
    return Settings(data_dir=tmp_path / "data", min_free_gb=0, webhook_hosts=hosts, webhook_secret=SECRET)


@pytest.fixture
def queue(settings):
    """A queue with stand-in work."""
    with Queue(settings, "server_work:Work", devices=("cpu",)) as queue:
        while not queue.ready:
            time.sleep(0.01)
        yield queue


@pytest.fixture
def sender(settings, queue, monkeypatch):
    monkeypatch.setattr(webhook_sender, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(webhook_sender, "MAX_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(webhook_sender, "POLL_SECONDS", 0.02)
    sender = WebhookSender(settings, queue)
    sender.start()
    yield sender
    sender.close()


def submit(queue, url):
    return queue.submit(NewJob(REQUEST, webhook_url=url))


def wait_sent(queue):
    """Wait until no webhook is stored."""
    deadline = time.monotonic() + 60
    while queue.webhooks.due(100, 100):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_message_is_sent_again_with_the_same_id_until_it_is_delivered(queue, sender, receiver):
    receiver.statuses[:] = [500, 302, 429]
    job = submit(queue, receiver.url)
    received = receiver.wait(4)
    wait_sent(queue)
    assert len({webhook_id for webhook_id, _ in received}) == 1
    message = received[-1][1]
    assert (message["type"], message["data"]["id"], message["data"]["status"]) == (
        "video.completed", job.id, "completed",
    )  # fmt: skip
    assert message["timestamp"].endswith("+00:00")
    assert len(receiver.received) == 4  # it does not follow the redirect


def test_cancelled_job_sends_its_failure(queue, sender, receiver):
    job = queue.submit(NewJob(REQUEST.changed(motion_bucket_id=255), webhook_url=receiver.url))
    queue.cancel(job.id)
    message = receiver.wait(1)[0][1]
    assert (message["type"], message["data"]["error"]["code"]) == ("video.failed", "cancelled")


@pytest.mark.parametrize("status", [410, 500])
def test_message_is_given_up_at_once_if_the_receiver_is_gone_else_after_all_attempts(
    queue, sender, receiver, status, caplog
):
    receiver.statuses[:] = [status] * 20
    attempts = 1 if status == 410 else webhook_sender.MAX_ATTEMPTS
    submit(queue, receiver.url)
    receiver.wait(attempts)
    wait_sent(queue)
    assert len(receiver.received) == attempts
    assert f"is given up after {attempts} attempts: {receiver.host} responded with status {status}" in caplog.text
    assert "token" not in caplog.text


def test_message_that_was_delivered_while_the_due_ones_were_read_is_not_sent_again(
    queue, sender, receiver, monkeypatch
):
    receiver.statuses[:] = ["hang"]
    read_due, reads = sender._due, []

    def slow():
        due = read_due()
        reads.extend(due)
        if len(reads) == 2:  # it is being sent; deliver it before the reading ends
            receiver.released.set()
            wait_sent(queue)
            time.sleep(0.1)
        return due

    monkeypatch.setattr(sender, "_due", slow)
    submit(queue, receiver.url)
    receiver.wait(1)
    wait_sent(queue)
    time.sleep(0.2)
    assert len(reads) == 2
    assert len(receiver.received) == 1


def test_receiver_that_hangs_delays_no_other(queue, sender, receiver, settings):
    with receiving() as other:
        sender._settings = settings.model_copy(update={"webhook_hosts": (receiver.host, other.host)})
        receiver.statuses[:] = ["hang"] * 20
        for _ in range(6):
            submit(queue, receiver.url)
        receiver.wait(webhook_sender.MAX_PER_HOST)
        submit(queue, other.url)
        assert other.wait(1)
        assert len(receiver.received) == webhook_sender.MAX_PER_HOST
        receiver.released.set()
        assert len({webhook_id for webhook_id, _ in receiver.wait(6)}) == 6


def test_message_that_was_not_delivered_is_sent_after_the_next_start(queue, settings, receiver, monkeypatch):
    receiver.statuses[:] = ["hang"]
    monkeypatch.setattr(webhook_sender, "POLL_SECONDS", 0.02)
    first = WebhookSender(settings, queue)
    first.start()
    submit(queue, receiver.url)
    receiver.wait(1)
    first.close()
    second = WebhookSender(settings, queue)
    second.start()
    received = receiver.wait(2)
    wait_sent(queue)
    second.close()
    assert received[0] == received[1]


def test_webhook_of_a_deleted_job_is_removed(queue, settings):
    job = submit(queue, "http://127.0.0.1:9/")
    while not queue.get(job.id).finished:
        time.sleep(0.01)
    assert [webhook.owner for webhook in queue.webhooks.due(1, 1)] == [job.id]
    queue.webhooks.remove_orphans()
    assert queue.webhooks.due(1, 1)
    queue.delete(job.id)
    queue.webhooks.remove_orphans()
    assert not queue.webhooks.due(1, 1)


def test_pauses_grow_to_hours():
    pauses = [pause_after(attempts) for attempts in range(webhook_sender.MAX_ATTEMPTS - 1)]
    assert pauses[:6] == sorted(pauses[:6])
    assert 4 <= pauses[0] <= 6
    assert 4 * 3600 < sum(pauses) < 24 * 3600


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://other.example/hook?key=1", r"https://other\.example/hook is not allowed: .* hooks\.example, .*HOSTS"),
        ("https://hooks.example:8080/", "is not allowed"),
        ("http://127.0.0.1/", "is not allowed"),
        ("ftp://hooks.example/", "is not an http:// or https:// URL"),
        ("https://user:secret@hooks.example/", "contains a user name or password"),
        ("https://hooks.example:x/", "is not a valid URL"),
        ("https://hooks.example/" + "a" * 2000, "use at most 2000"),
    ],
)
def test_url_that_is_not_allowed_is_rejected(url, message):
    settings = Settings(webhook_hosts="hooks.example,localhost:3001", webhook_secret=SECRET)
    with pytest.raises(InvalidRequest, match=message) as caught:
        check_webhook_url(settings, url)
    assert caught.value.param == "webhook_url"


def test_allowed_url_needs_a_secret():
    settings = Settings(webhook_hosts="hooks.example")
    with pytest.raises(InvalidRequest, match="KINEMA_WEBHOOK_SECRET"):
        check_webhook_url(settings, "https://hooks.example/a")
    settings = Settings(webhook_hosts="hooks.example", webhook_secret=SECRET)
    assert check_webhook_url(settings, "https://HOOKS.example:443/a#b") == "https://hooks.example/a"


@pytest.mark.parametrize("secret", ["whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_???"])
def test_invalid_secret_is_rejected_and_not_shown(secret):
    with pytest.raises(InvalidRequest, match="expected whsec_ and the base64 of 24 to 64 random bytes") as caught:
        read_settings(webhook_secret=secret)
    assert secret not in str(caught.value)


def test_server_sends_webhooks_of_videos_and_batches(server, client, shared_receiver, png):
    def messages():
        return {(message["type"], message["data"]["id"]): message["data"] for _, message in shared_receiver.received}

    hook = {"webhook_url": shared_receiver.url}
    body = {"prompt": "a rocket", "model": "pocket", "num_frames": 1, "motion_bucket_id": 0}
    video = client.post("/v1/videos", data=body | hook).json()
    made = client.post("/generate", data={"num_frames": 1} | hook, files={"image": ("a.png", png)})
    line = {"custom_id": "a", "method": "POST", "url": "/v1/videos", "body": body | hook}
    files = {"file": ("a.jsonl", json.dumps(line).encode())}
    file = client.post("/v1/files", files=files, data={"purpose": "batch"}).json()
    fields = {"input_file_id": file["id"], "endpoint": "/v1/videos", "completion_window": "24h"}
    batch = client.post("/v1/batches", json=fields | hook).json()
    shared_receiver.wait(4)
    jobs = {video["id"], made.headers["X-Kinema-Job"]}
    assert {("video.completed", job) for job in jobs} | {("batch.completed", batch["id"])} <= messages().keys()
    counts = messages()["batch.completed", batch["id"]]["request_counts"]
    assert counts == {"total": 1, "completed": 1, "failed": 0}


def test_server_rejects_url_of_another_host(client, png):
    def check(response):
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "webhook_url")
        assert "is not allowed: the server sends webhooks to 127.0.0.1:" in error["message"]

    fields = {"webhook_url": "https://other.example/"}
    for path in ("/v1/videos", "/generate"):
        check(client.post(path, data=fields, files={"image": ("a.png", png)}))
    file = client.post("/v1/files", files={"file": ("a.jsonl", b"{}")}, data={"purpose": "batch"}).json()
    batch = {"input_file_id": file["id"], "endpoint": "/v1/videos", "completion_window": "24h"}
    check(client.post("/v1/batches", json=batch | fields))


@pytest.mark.slow
def test_killed_server_sends_the_message_after_its_restart(tmp_path, receiver):
    receiver.statuses[:] = ["hang"]
    server = start(tmp_path / "data", webhook_hosts=receiver.host, webhook_secret=SECRET)
    try:
        fields = {"prompt": "a", "num_frames": 1, "motion_bucket_id": 0, "webhook_url": receiver.url}
        with server.client() as client:
            client.post("/v1/videos", data=fields)
            receiver.wait(1)
            server.api_process().kill()
            received = receiver.wait(2)
        assert received[0] == received[1]
    finally:
        stop(server)
