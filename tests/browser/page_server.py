"""Serve only the page, with a stand-in for the model: python page_server.py DATA_FOLDER PORT [WORK]."""

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from kinema.jobs import Queue
from kinema.serving.page import mount
from kinema.settings import Settings

settings = Settings(data_dir=Path(sys.argv[1]), min_free_gb=0, model="pocket", device="cpu")
queue = Queue(settings, (sys.argv[3:] or ["page_work:Work"])[0])
app = FastAPI()
mount(app, queue, settings)
with queue:
    # Without lifespan events, like an app that is mounted inside another.
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
