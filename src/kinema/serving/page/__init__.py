"""The page at /studio: a Gradio form, a panel that follows one job, and the gallery."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

    from kinema.jobs import Queue
    from kinema.serving.body_quota import BodyQuota
    from kinema.serving.image_service import ImageService
    from kinema.serving.signed_videos import SignedVideos
    from kinema.settings import Settings

PATH = "/studio"
IDLE_POLL_SECONDS = 0.02
# Path prefixes that Gradio's script requests by itself, without an action of the user.
POLLED = ("/studio/en/gradio_api/", "/studio/ko/gradio_api/")


def mount(
    app: FastAPI,
    queue: Queue,
    settings: Settings,
    stopping: Callable[[], bool] = lambda: False,
    images: ImageService | None = None,
    bodies: BodyQuota | None = None,
    signed: SignedVideos | None = None,
) -> None:
    """Mount the page at /studio/<language>; /studio redirects to the browser's language.

    Args:
        app: The app to mount it on. Nothing may be mounted at / before.
        queue: The queue whose jobs are shown and to which new jobs are submitted.
        settings: The server's settings: offered models, limits, data folder.
        stopping: Returns whether the server is shutting down. Event streams end then; browsers reconnect by themselves.
        images: The service that checks and decodes images; a new one by default.
        bodies: The quota for request bodies; a new one by default.
        signed: What signs videos; none by default.
    """
    import os
    from pathlib import Path

    from kinema.jobs.job_files import JobFiles

    # Gradio reads these variables at import. Its default folder for files is shared by all users of the machine.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if not os.environ.get("GRADIO_TEMP_DIR"):
        folder = JobFiles(settings.data_dir).gradio
        folder.mkdir(exist_ok=True, mode=0o700)
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from fastapi.staticfiles import StaticFiles
    from starlette.routing import Mount

    from kinema.serving.body_quota import BodyQuota
    from kinema.serving.image_service import ImageService
    from kinema.serving.page.blocks import StudioPage
    from kinema.serving.page.csp import PageMiddleware
    from kinema.serving.page.page_routes import Drafts, language_of, routes
    from kinema.serving.page.theme import THEME
    from kinema.serving.page.translations.languages import LANGUAGES
    from kinema.serving.page.verify_page import verify_routes

    drafts = Drafts(settings.data_dir, settings.min_free_gb, images or ImageService(), queue.find_image)
    bodies = bodies or BodyQuota(settings.max_body_mb, settings.min_free_gb)
    app.include_router(routes(queue, drafts, bodies, stopping, signed))
    app.include_router(verify_routes(language_of))
    app.mount(f"{PATH}/static", StaticFiles(directory=Path(__file__).with_name("static")))
    for language, labels in LANGUAGES.items():
        page = StudioPage(queue, settings, drafts, labels)
        gr.mount_gradio_app(
            app, page.blocks, f"{PATH}/{language}", theme=THEME, footer_links=[], run_history=False, show_error=False
        )
        # Gradio's loops poll 1,000 and 100 times a second: 6% of a core on an idle server.
        page.blocks._queue.sleep_when_free = IDLE_POLL_SECONDS  # noqa: SLF001 - there is no public setting
        page.blocks._queue.progress_update_sleep_when_free = 1.0  # noqa: SLF001 - no progress bar of Gradio's is used
        mounted = app.routes[-1]
        assert isinstance(mounted, Mount), "Gradio mounts its app last"
        assert isinstance(mounted.app, FastAPI), "Gradio's app is a FastAPI app"
        # FastAPI's default response repeats the body, which takes seconds for a body of many values.
        mounted.app.add_exception_handler(RequestValidationError, _invalid)
        mounted.app = PageMiddleware(mounted.app, page.blocks, language)


async def _invalid(_: Request, __: Exception) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"detail": "the page sends no such call"}, 422)
