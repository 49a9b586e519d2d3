#!/usr/bin/env bash
# BentoML's tutorial of Stable Video Diffusion, its commands as they stand: serve, curl, Python client, build, and the
# built Bento served. The port alone is another one than 3000: a free one, so that no other server answers.
# From the root, after `make .venv/installed-dev`: examples/tutorial.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
export BENTOML_DO_NOT_TRACK=True

work=$(mktemp -d)
export BENTOML_HOME="${BENTOML_HOME:-$work/bentoml}"
export KINEMA_DATA_DIR="${KINEMA_DATA_DIR:-$work/data}"
export PORT=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
server=
trap '[ -z "$server" ] || kill "$server" 2> /dev/null || true; wait; rm -rf "$work"' EXIT

serve() { # what to serve; in the background until `stop`
    bentoml serve "$@" --port "$PORT" &
    server=$!
    for _ in $(seq 600); do
        kill -0 "$server"
        ! curl -sf "http://127.0.0.1:$PORT/readyz" > /dev/null || return 0
        sleep 0.5
    done
    echo "the server did not get ready" >&2
    return 1
}

stop() {
    kill "$server"
    wait "$server" || true
    server=
}

is_video() { # a file that begins as every mp4 does
    [ "$(head -c 8 "$1" | tail -c 4)" = ftyp ] && echo "$1: $(wc -c < "$1") bytes of video"
}

mkdir -p "$work/assets"
python -c "from PIL import Image; Image.open('examples/rocket.jpg').save('$work/assets/girl-image.png')"

echo "== bentoml serve service:StableDiffusionVideo"
serve service:StableDiffusionVideo

echo "== curl"
(
    cd "$work"
    curl -X 'POST' \
        "http://127.0.0.1:$PORT/generate" \
        -H 'accept: video/*' \
        -H 'Content-Type: multipart/form-data' \
        -F 'image=@assets/girl-image.png;type=image/png' \
        -o generated.mp4 \
        -F 'decode_chunk_size=2' \
        -F 'seed=null'
)
is_video "$work/generated.mp4"

echo "== the Python client"
(
    cd "$work/assets"
    python - << 'PYTHON'
import os

import bentoml
from pathlib import Path

with bentoml.SyncHTTPClient(f"http://127.0.0.1:{os.environ['PORT']}") as client:
    result = client.generate(
        decode_chunk_size=2,
        image=Path("girl-image.png"),
        seed=0,
    )
Path("client.mp4").write_bytes(result.read_bytes())
PYTHON
)
is_video "$work/assets/client.mp4"
stop

echo "== bentoml build"
bentoml build

echo "== the built Bento, served from elsewhere"
cd "$work"
serve stable_diffusion_video:latest
curl -sS "http://127.0.0.1:$PORT/generate" -F 'image=@assets/girl-image.png;type=image/png' -F 'seed=0' \
    -F 'decode_chunk_size=2' -o bento.mp4
is_video bento.mp4
python - << 'PYTHON'
from kinema.media.video_reader import read_frames

assert (read_frames("bento.mp4")[0] == read_frames("assets/client.mp4")[0]).all()
PYTHON
echo "the same seed gave the same frames"
stop
