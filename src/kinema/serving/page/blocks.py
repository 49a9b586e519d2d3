"""The page in one language: its layout and its event handlers."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.blocks import Block  # at run time: Gradio reads the handlers' annotations

from kinema.errors import InvalidImage, JobNotFound, KinemaError, QueueUnavailable
from kinema.jobs.queue import MAX_PAGE
from kinema.jobs.worker_state import PoolState
from kinema.media.image import plain_name
from kinema.messages import Message
from kinema.models.catalog import parameter_warnings, request_for
from kinema.models.upscaler_weights import has_upscaler
from kinema.serving.client_messages import error_message
from kinema.serving.extension_submission import prepare_extension
from kinema.serving.fields import to_parameters
from kinema.serving.page import form as forms
from kinema.serving.page import form_html, job_html, workers_html
from kinema.serving.page.translations.languages import LANGUAGES
from kinema.serving.rate_limits import CALLER
from kinema.serving.submission import (
    Submission,
    change,
    default_model,
    estimate,
    offered_image_models,
    offered_models,
    prepare,
    submit,
)
from kinema.values import draw_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kinema.jobs import Job, Queue
    from kinema.serving.page.page_routes import Drafts
    from kinema.serving.page.translations.labels import Labels
    from kinema.settings import Settings

log = logging.getLogger(__name__)

CARDS = 12
# The interval at which the gallery is refreshed while it shows an unfinished job.
CLOCK_SECONDS = 2.0
# The interval at which the workers are refreshed at any time.
WORKERS_SECONDS = 10.0
Updates = dict[Block, Any]
# Options of every handler: private (the page is not an API), without Gradio's spinners, any number at once.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}

# Options of handlers that read the input image, which may be large: two at once.
IMAGE_HANDLER = QUIET | {"concurrency_limit": 2, "concurrency_id": "image"}

# Two fields that change together start two previews at once: one at a time, the latest response is the last one.
PREVIEW_HANDLER = QUIET | {"concurrency_limit": 1, "concurrency_id": "preview"}


class StudioPage:
    """The page in one language with its handlers."""

    def __init__(self, queue: Queue, settings: Settings, drafts: Drafts, labels: Labels) -> None:
        self._queue, self._settings, self._drafts, self._labels = queue, settings, drafts, labels
        self._defaults = request_for(model=default_model(settings))
        with gr.Blocks(title="Kinema", analytics_enabled=False) as self.blocks:
            self._build()
            self._wire()

    def _build(self) -> None:
        labels = self._labels
        others = [other for other in LANGUAGES.values() if other is not labels]
        gr.HTML(form_html.header(labels, others), apply_default_css=False, elem_id="k-head")
        with gr.Row(elem_id="k-main"):
            with gr.Column(elem_id="k-form", min_width=300):
                offered = offered_models(self._settings), offered_image_models(self._settings)
                self._form = forms.build(self._defaults, offered, labels)
            with gr.Column(elem_id="k-stage", min_width=300):
                confirmation = json.dumps([labels.confirm_delete, labels.cancel_delete])
                self._panel = gr.HTML(
                    job_html.empty_panel(labels),
                    js_on_load=f"kinema.panel(element, trigger, props, watch, {confirmation}); // 'act' 'finished'",
                    apply_default_css=False,
                )
                gr.HTML(form_html.notices(labels), js_on_load="kinema.notices(element);", apply_default_css=False)
                self._workers = gr.HTML(
                    js_on_load=f"kinema.workers(element, trigger, watch, {confirmation}); // 'act'",
                    apply_default_css=False,
                )
        gr.HTML(f'<h2 id="k-videos">{labels.gallery}</h2>', apply_default_css=False)
        self._gallery = gr.HTML(
            js_on_load=f"kinema.gallery(element, trigger, watch, {confirmation}); // 'act'", apply_default_css=False
        )
        gr.HTML(form_html.footer(self._labels, self._settings), apply_default_css=False, elem_id="k-foot")
        self._shown = gr.Textbox(visible=False)  # id of the job in the panel
        self._cards = gr.Number(CARDS, visible=False, precision=0)
        self._clock = gr.Timer(CLOCK_SECONDS, active=False)
        self._workers_clock = gr.Timer(WORKERS_SECONDS)

    def _wire(self) -> None:
        form, listed = self._form, [self._shown, self._cards]
        form_outputs: list[Block] = [
            *form.inputs, form.shape, form.image_fields, form.prompt_fields, form.image_model_fields, form.frame,
            form.last_frame, form.note,
        ]  # fmt: skip
        listing = [self._gallery, self._shown, self._cards, self._clock, self._workers]
        everything = [*form_outputs, self._panel, *listing]
        previewed = [form.frame, form.last_frame, form.note, form.seconds, form.shape]
        sides = [form.parameters["width"], form.parameters["height"]]
        gr.on(
            [
                component.change
                for component in (form.source, form.image, form.last_image, form.seconds, *form.parameters.values())
            ],
            self._with_errors_shown(self._preview),
            form.inputs,
            previewed,
            trigger_mode="multiple",  # "always_last" waits for the response before, which a busy client can lose
            **PREVIEW_HANDLER,
        )
        form.source.input(
            form.source_visibility,
            form.source,
            [form.image_fields, form.prompt_fields, form.image_model_fields],
            **QUIET,
        )
        form.shape.input(self._with_errors_shown(self._shape), [form.shape, form.parameters["model"]], sides, **QUIET)
        form.parameters["model"].input(self._with_errors_shown(self._model), form.inputs, form_outputs, **QUIET)
        form.frame.uploaded(self._uploaded, None, [form.image, form.title, form.parameters["crop_position"]], **QUIET)
        form.frame.moved(self._moved, None, [form.parameters["crop_position"]], **QUIET)
        form.frame.rejected(self._rejected, None, [form.image, form.frame], **QUIET)
        form.frame.removed(self._removed, None, [form.image, form.frame], **QUIET)
        form.last_frame.uploaded(self._last_uploaded, None, form.last_image, **QUIET)
        form.last_frame.rejected(self._last_rejected, None, None, **QUIET)
        form.last_frame.removed(lambda: "", None, form.last_image, **QUIET)
        # Typing a seed also selects "keep this seed".
        form.parameters["seed"].input(None, None, form.seed_fixed, js="() => true", **QUIET)
        form.new_seed.click(lambda: (draw_seed(), True), None, [form.parameters["seed"], form.seed_fixed], **QUIET)
        gr.on(
            [form.generate.click, form.parameters["prompt"].submit],
            self._with_errors_shown(self._generate),
            [*form.inputs, *listed],
            everything,
            **IMAGE_HANDLER,
        )
        for part in (self._panel, self._gallery, self._workers):
            part.act(self._with_errors_shown(self._act), listed, everything, trigger_mode="multiple", **QUIET)
        for event in (self._panel.finished, self._clock.tick):
            event(self._with_errors_shown(self._list), listed, listing, **QUIET)
        self._workers_clock.tick(self._with_errors_shown(self._list_workers), None, [self._workers], **QUIET)
        # A finished job changes the time estimate.
        self._panel.finished(self._with_errors_shown(self._preview), form.inputs, previewed, **PREVIEW_HANDLER)
        self.blocks.load(self._with_errors_shown(self._load), [*form.inputs, *listed], everything, **IMAGE_HANDLER)

    def _with_errors_shown(self, handler: Callable[..., Updates]) -> Callable[..., Updates]:
        """Return the handler with its errors shown in the page's language instead of Gradio's."""
        labels = self._labels

        @functools.wraps(handler)
        def wrapped(*args: Any, **kwargs: Any) -> Updates:
            try:
                return handler(*args, **kwargs)
            except KinemaError as error:
                text = form_html.error_html(error, labels)
            except Exception:
                log.exception("internal error in a handler of the page")
                text = escape(labels.internal_error)
            raise gr.Error(text, title=labels.error, print_exception=False) from None

        return wrapped

    # The form: its submission, image preview and time estimate.

    def _submission(self, entered: forms.FormValues) -> Submission:
        image = None if entered.image is None else self._drafts.read(entered.image)
        last_image = None if entered.last_image is None else self._drafts.read(entered.last_image)
        if entered.last_image is not None and last_image is None:
            raise InvalidImage(
                Message("last_image_gone", "the last image is no longer stored here; choose it again"), "last_image"
            )
        return prepare(self._settings, entered.fields, image, self._drafts.inspect, last_image)

    def _draft_submission(self, entered: forms.FormValues) -> Submission:
        """Return what `_submission` does, also while the image or the prompt is missing."""
        if entered.source == "prompt":
            return prepare(self._settings, {"prompt": "sky", **entered.fields})  # a prompt without warnings
        if entered.image is not None:
            return self._submission(entered)
        request = request_for(**to_parameters(entered.fields, lambda: default_model(self._settings)))
        return Submission(request, None, None, tuple(parameter_warnings(request)), fingerprint="")

    def _preview(self, *values: Any) -> Updates:
        """Show the fitted image, the time estimate and the warnings."""
        entered = self._form.read(values)
        updates = self._preview_updates(entered)
        if entered.image is None:
            updates.pop(self._form.frame, None)  # keep the error of a rejected image
        return updates

    def _preview_updates(self, entered: forms.FormValues) -> Updates:
        labels = self._labels
        try:
            submission = self._draft_submission(entered)
            seconds, waiting = estimate(self._queue, submission), self._queue.waiting()
        except KinemaError as error:
            return {self._form.note: form_html.submit_error(error, labels)}
        note = form_html.estimate_html(submission.request, seconds, waiting, submission.warnings, labels)
        size = None if entered.image is None else self._drafts.size(entered.image)
        updates = {
            self._form.note: note,
            self._form.seconds: gr.update(
                maximum=forms.max_seconds(submission.request, has_last_image=entered.last_image is not None)
            ),
            self._form.last_frame: form_html.last_image_frame(entered.last_image, submission.request, labels),
            self._form.shape: forms.shape_of(entered.fields, submission.request),
        }
        if entered.image is None or size is None:
            return {**updates, self._form.frame: form_html.empty_image_frame(labels)}
        return {**updates, self._form.frame: form_html.image_frame(entered.image, size, submission.request, labels)}

    def _model(self, *values: Any) -> Updates:
        """Apply the defaults of the chosen model."""
        entered = self._form.read(values)
        return self._form.updates_for_model(request_for(model=entered.fields.get("model", self._defaults.model)))

    def _shape(self, shape: str, model: str) -> Updates:
        """Fill in the size of the chosen shape."""
        sides = zip(("width", "height"), forms.size_of_shape(model, shape), strict=True)
        return {self._form.parameters[name]: str(side or "") for name, side in sides}

    def _uploaded(self, event: gr.EventData) -> tuple[str, str, float]:
        return str(event.image), plain_name(str(event.name).rpartition(".")[0]) or "", form_html.CENTRE

    def _moved(self, event: gr.EventData) -> float:
        return float(event.position)

    def _rejected(self, event: gr.EventData) -> tuple[str, str]:
        return "", form_html.empty_image_frame(self._labels, str(event.error), in_english=bool(event.english))

    def _removed(self) -> tuple[str, str]:
        return "", form_html.empty_image_frame(self._labels)

    def _last_uploaded(self, event: gr.EventData) -> str:
        return str(event.image)

    def _last_rejected(self, event: gr.EventData) -> None:
        raise gr.Error(escape(str(event.error)), title=self._labels.bad_image, print_exception=False)

    # Jobs.

    def _generate(self, request: gr.Request, *values: Any) -> Updates:
        """Submit the form and show its job; show an error beside the button if it is invalid."""
        *form_values, _, cards = values
        entered, labels = self._form.read(form_values), self._labels
        missing = entered.image is None if entered.source == "image" else "prompt" not in entered.fields
        if missing:
            message = labels.need_image if entered.source == "image" else labels.need_prompt
            return {self._form.note: form_html.submit_error(message, labels)}
        fields = entered.fields if entered.seed_fixed else {**entered.fields, "seed": draw_seed()}
        try:
            submission = self._submission(dataclasses.replace(entered, fields=fields))
            job = submit(self._queue, self._settings, submission, title=entered.title, caller=_caller(request))
        except KinemaError as error:
            return {self._form.note: form_html.submit_error(error, labels)}
        return {self._form.parameters["seed"]: job.request.seed, **self._show(job, cards)}

    def _act(self, shown: str, cards: int, event: gr.EventData, request: gr.Request) -> Updates:
        """Handle a button of the panel or of a card."""
        job_id = str(event.job)
        try:
            if event.act == "open":
                return self._show(self._queue.get(job_id), cards)
            if event.act == "use":
                return self._use_parameters(self._queue.get(job_id))
            if event.act == "last":
                return self._use_last_frame(self._queue.get(job_id))
            if event.act == "extend":
                return self._extend(job_id, str(event.title), cards, request)
            if event.act == "more":
                cards += CARDS
            elif event.act == "delete":
                self._queue.delete(job_id)
            else:
                self._change(event, job_id)
        except JobNotFound:  # deleted elsewhere or expired in the meantime
            pass
        try:
            return self._show(self._queue.get(shown), cards) if shown == job_id else self._list(shown, cards)
        except JobNotFound:
            return {**self._clear(), **self._list("", cards)}

    def _change(self, event: gr.EventData, job_id: str) -> None:
        """Cancel, rename, pin or unpin a job."""
        match event.act:
            case "cancel":
                self._queue.cancel(job_id)
            case "rename":
                change(self._queue, job_id, title=str(event.title).strip(), pinned=None)
            case "pin":
                change(self._queue, job_id, title=None, pinned=not self._queue.get(job_id).pinned)

    def _load(self, request: gr.Request, *values: Any) -> Updates:
        """Show the job named in the URL with its parameters, and the gallery."""
        *form_values, _, cards = values
        try:
            job = self._queue.get(request.query_params.get("job", ""))
        except JobNotFound:
            return {**self._preview(*form_values), **self._list("", cards)}
        return {**self._reuse(job), **self._show(job, cards)}

    def _use_parameters(self, job: Job) -> Updates:
        """Fill the form with a job's parameters, and show which of them it can't have."""
        for text in self._lost_parameters(job):
            gr.Warning(escape(text), title=self._labels.reuse, duration=None)
        return self._reuse(job)

    def _lost_parameters(self, job: Job) -> list[str]:
        """Return what of a job the form can't restore."""
        labels = self._labels
        lost = []
        if job.request.upscale > 1 and not has_upscaler():
            lost.append(labels.upscale_lost)
        if job.extend is not None:
            lost.append(labels.extension_lost if self._first_part(job) else labels.first_part_lost)
        return lost

    def _first_part(self, job: Job) -> Job | None:
        """Return the job that was extended to this one, maybe in several steps; None if it is not stored any more."""
        while job.extend is not None:
            try:
                job = self._queue.get(job.extend)
            except JobNotFound:
                return None
        return job

    def _reuse(self, job: Job) -> Updates:
        """Fill the form with a job's parameters; a video that was extended has those of its first part."""
        form, request = self._form, job.request
        if job.extend is not None and (first := self._first_part(job)) is not None:
            request = first.request.model_copy(update={"num_frames": request.num_frames})
        source: forms.Source = "image" if request.prompt is None else "prompt"
        image = job.image if source == "image" else None
        fields = request.model_dump(exclude_none=True)
        last_image = job.last_image if source == "image" and not job.extend else None
        entered = forms.FormValues(source, image, job.title, seed_fixed=True, fields=fields, last_image=last_image)
        updates = form.updates_for_job(request, entered, size_is_set=self._is_size_set(entered))
        return {**self._preview_updates(entered), **updates}

    def _use_last_frame(self, job: Job) -> Updates:
        """Make the last frame of a job's video the input image."""
        form = self._form
        image = self._drafts.add_last_frame(self._queue.result(job.id))
        return {
            form.source: "image",
            **form.source_visibility("image"),
            form.image: image,
            form.title: job.title or "",
            form.parameters["crop_position"]: form_html.CENTRE,
        }

    def _extend(self, job_id: str, seconds: str, cards: int, request: gr.Request) -> Updates:
        """Submit a job that continues a video, and show it."""
        submission = prepare_extension(
            self._queue, self._settings, {"extend": job_id, "seconds": seconds}, has_image=False
        )
        return self._show(submit(self._queue, self._settings, submission, caller=_caller(request)), cards)

    def _is_size_set(self, entered: forms.FormValues) -> bool:
        """Return whether a job's size is another than without width and height."""
        fields = {name: value for name, value in entered.fields.items() if name not in ("width", "height")}
        try:
            request = self._draft_submission(dataclasses.replace(entered, fields=fields)).request
        except KinemaError:
            return True
        return (request.width, request.height) != (entered.fields["width"], entered.fields["height"])

    def _show(self, job: Job, cards: int) -> Updates:
        return {self._panel: job_html.panel(job, self._labels), **self._list(job.id, cards)}

    def _clear(self) -> Updates:
        return {self._panel: job_html.empty_panel(self._labels)}

    def _list(self, shown: str, cards: int) -> Updates:
        page = self._queue.list(limit=max(1, min(int(cards), MAX_PAGE)))
        return {
            self._gallery: job_html.gallery(page.jobs, self._labels, more=page.has_more, shown=shown),
            self._shown: shown,
            self._cards: cards,
            self._clock: gr.Timer(active=not all(job.finished for job in page.jobs)),
            **self._list_workers(),
        }

    def _list_workers(self) -> Updates:
        titles: Mapping[str, str | None] = {}
        try:
            state = self._queue.pool_state
            titles = self._queue.titles([job for worker in state.workers for job in worker.jobs])
        except QueueUnavailable as error:
            state = PoolState(problems=(error_message(error),))
        return {self._workers: workers_html.workers(state, titles, self._labels)}


def _caller(request: gr.Request) -> str:
    """Return the name of the API key of a call."""
    return "" if request.request is None else str(request.request.scope.get(CALLER, ""))
