"""Serve the page, and the route that verifies files, with a stand-in for the model: page_server.py DATA PORT [WORK]."""

import sys
from pathlib import Path
from types import SimpleNamespace

import uvicorn
from fastapi import FastAPI

from kinema.errors import KinemaError
from kinema.jobs import Queue
from kinema.serving.body_quota import BodyQuota
from kinema.serving.image_service import ImageService
from kinema.serving.page import mount
from kinema.serving.verify_api import add_verify_route
from kinema.serving.videos import answer_to
from kinema.settings import Settings

settings = Settings(data_dir=Path(sys.argv[1]), min_free_gb=0, model="pocket", device="cpu")
queue = Queue(settings, (sys.argv[3:] or ["page_work:Work"])[0])
app = FastAPI()
images, bodies = ImageService(), BodyQuota(settings.max_body_mb, settings.min_free_gb)
app.state.server = SimpleNamespace(settings=settings, queue=queue, images=images, bodies=bodies, signed=None)
add_verify_route(app)
app.add_exception_handler(KinemaError, lambda _, error: answer_to(error))
mount(app, queue, settings, images=images, bodies=bodies)
with queue:
    # Without lifespan events, like an app that is mounted inside another.
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
