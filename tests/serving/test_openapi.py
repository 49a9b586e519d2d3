"""The OpenAPI document against the server: schemathesis asks whatever it allows, and more.

1,000 examples, which is the slow one: .venv/bin/pytest tests/serving/test_openapi.py -m slow
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def examine(server, tmp_path, examples):
    config = tmp_path / "schemathesis.toml"
    config.write_text("")
    command = [
        Path(sys.executable).with_name("schemathesis"), "--config-file", config, "run", f"{server.url}/v1/openapi.json",
        "--checks", CHECKS, "--max-examples", str(examples), "--phases", "examples,fuzzing", "--mode", "all",
        "--exclude-path-regex", "/events$", "--generation-database", "none", "--request-timeout", "60", "--seed", "1",
        "--suppress-health-check", "all", "--no-color",
    ]  # fmt: skip
    wide = os.environ | {"COLUMNS": "120"}
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=wide)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    return int(re.search(r"(\d+) generated", ran.stdout)[1])


def test_responses_match_document(server, tmp_path):
    examine(server, tmp_path, 8)


@pytest.mark.slow
def test_responses_match_document_in_1000_examples(server, tmp_path):
    assert examine(server, tmp_path, 200) >= 1000  # at most so many for each operation


def test_document_has_all_routes_and_examples(server):
    document = httpx.get(f"{server.url}/v1/openapi.json").json()
    making = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert making["application/json"]["examples"]
    assert "input_reference" in making["multipart/form-data"]["schema"]["properties"]
    for example in making["application/json"]["examples"].values():
        made = httpx.post(f"{server.url}/v1/videos", json=example["value"])
        assert made.status_code == 200
    changing = document["paths"]["/v1/videos/{video_id}"]["post"]["requestBody"]["content"]["application/json"]
    changed = httpx.post(f"{server.url}/v1/videos/{made.json()['id']}", json=changing["example"]).json()
    assert (changed["prompt"], changed["pinned"]) == (changing["example"]["title"], True)
    assert len(document["paths"]) == 8
