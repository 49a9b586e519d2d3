"""The OpenAPI document against the server: schemathesis sends valid and invalid requests.

Run the slow test with 1,000 examples: .venv/bin/pytest tests/serving/test_openapi.py -m slow
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def run_schemathesis(server, tmp_path, examples):
    config = tmp_path / "schemathesis.toml"
    config.write_text("")
    command = [
        Path(sys.executable).with_name("schemathesis"), "--config-file", config, "run", f"{server.url}/v1/openapi.json",
        "--checks", CHECKS, "--max-examples", str(examples), "--phases", "examples,fuzzing", "--mode", "all",
        "--exclude-path-regex", "/events$", "--generation-database", "none", "--request-timeout", "60", "--seed", "1",
        "--suppress-health-check", "all", "--no-color",
    ]  # fmt: skip
    environment = os.environ | {"COLUMNS": "120"}
    completed = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert completed.returncode == 0, completed.stdout[-6000:] + completed.stderr[-2000:]
    return int(re.search(r"(\d+) generated", completed.stdout)[1])


@pytest.mark.slow
def test_responses_match_document(server, tmp_path):
    run_schemathesis(server, tmp_path, 3)


@pytest.mark.slow
def test_responses_match_document_in_1000_examples(server, tmp_path):
    assert run_schemathesis(server, tmp_path, 200) >= 1000  # at most 200 per operation


def test_document_has_all_routes_and_examples(server):
    document = httpx.get(f"{server.url}/v1/openapi.json").json()
    create_content = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert create_content["application/json"]["examples"]
    assert "input_reference" in create_content["multipart/form-data"]["schema"]["properties"]
    for example in create_content["application/json"]["examples"].values():
        created = httpx.post(f"{server.url}/v1/videos", json=example["value"])
        assert created.status_code == 200
    update_content = document["paths"]["/v1/videos/{video_id}"]["post"]["requestBody"]["content"]["application/json"]
    updated = httpx.post(f"{server.url}/v1/videos/{created.json()['id']}", json=update_content["example"]).json()
    assert (updated["prompt"], updated["pinned"]) == (update_content["example"]["title"], True)
    assert len(document["paths"]) == 16
