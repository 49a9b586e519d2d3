"""The page in one language: what stands where, and what happens when something is touched."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.blocks import Block  # at run time: Gradio reads the handlers' annotations

from kinema.errors import JobNotFound, KinemaError
from kinema.jobs.queue import MAX_PAGE
from kinema.media.image import plain_name
from kinema.models.catalog import parameter_warnings, request_for
from kinema.serving.fields import to_parameters
from kinema.serving.page import form as forms
from kinema.serving.page import form_html, job_html
from kinema.serving.page.translations.languages import LANGUAGES
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
    from collections.abc import Callable

    from kinema.jobs import Job, Queue
    from kinema.serving.page.page_routes import Drafts
    from kinema.serving.page.translations.labels import Labels
    from kinema.settings import Settings

log = logging.getLogger(__name__)

CARDS = 12
# The gallery is told anew so often, while a job in it is not finished.
CLOCK_SECONDS = 2.0
Updates = dict[Block, Any]
# Every handler is private (the page is no API), answers without Gradio's own spinners, and many may run at once.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}


# What reads a still that was given, which may be large: few at once.
IMAGE = QUIET | {"concurrency_limit": 2, "concurrency_id": "image"}


class StudioPage:
    """The page in one language, and its handlers."""

    def __init__(self, queue: Queue, settings: Settings, drafts: Drafts, words: Labels) -> None:
        self._queue, self._settings, self._drafts, self._words = queue, settings, drafts, words
        self._start = request_for(model=default_model(settings))
        with gr.Blocks(title="Kinema", analytics_enabled=False) as self.blocks:
            self._build()
            self._wire()

    def _build(self) -> None:
        words = self._words
        others = [other for other in LANGUAGES.values() if other is not words]
        gr.HTML(form_html.header(words, others), apply_default_css=False, elem_id="k-head")
        with gr.Row(elem_id="k-main"):
            with gr.Column(elem_id="k-form", min_width=300):
                offered = offered_models(self._settings), offered_image_models(self._settings)
                self._form = forms.build(self._start, offered, words)
            with gr.Column(elem_id="k-stage", min_width=300):
                sure = json.dumps([words.delete_sure, words.keep])
                self._panel = gr.HTML(
                    job_html.nothing(words),
                    js_on_load=f"kinema.panel(element, trigger, props, watch, {sure}); // 'act' 'finished'",
                    apply_default_css=False,
                )
        gr.HTML(f'<h2 id="k-videos">{words.gallery}</h2>', apply_default_css=False)
        self._gallery = gr.HTML(
            js_on_load=f"kinema.acting(element, trigger, {sure}); // 'act'", apply_default_css=False
        )
        gr.HTML(form_html.footer(words), apply_default_css=False, elem_id="k-foot")
        self._shown = gr.Textbox(visible=False)  # the id of the job in the panel
        self._cards = gr.Number(CARDS, visible=False, precision=0)
        self._clock = gr.Timer(CLOCK_SECONDS, active=False)

    def _wire(self) -> None:
        form, listed = self._form, [self._shown, self._cards]
        form_outputs: list[Block] = [
            *form.inputs, form.image_fields, form.prompt_fields, form.image_model_fields, form.frame, form.note
        ]  # fmt: skip
        listing = [self._gallery, self._shown, self._cards, self._clock]
        everything = [*form_outputs, self._panel, *listing]
        looked = {"fn": self._answering(self._look), "inputs": form.inputs, "outputs": [form.frame, form.note], **IMAGE}
        gr.on(
            [component.change for component in (form.source, form.image, *form.settings.values())],
            trigger_mode="always_last",
            **looked,
        )
        form.source.input(
            form.sides, form.source, [form.image_fields, form.prompt_fields, form.image_model_fields], **QUIET
        )
        form.settings["model"].input(self._answering(self._model), form.inputs, form_outputs, **QUIET)
        form.frame.given(self._given, None, [form.image, form.title], **QUIET)
        form.frame.refused(self._refused, None, [form.image, form.frame], **QUIET)
        form.frame.removed(self._removed, None, [form.image, form.frame], **QUIET)
        # Who types a seed means it: it is kept.
        form.settings["seed"].input(None, None, form.locked, js="() => true", **QUIET)
        form.dice.click(lambda: (draw_seed(), True), None, [form.settings["seed"], form.locked], **QUIET)
        gr.on(
            [form.generate.click, form.settings["prompt"].submit],
            self._answering(self._generate),
            [*form.inputs, *listed],
            everything,
            **IMAGE,
        )
        for part in (self._panel, self._gallery):
            part.act(self._answering(self._act), listed, everything, trigger_mode="multiple", **QUIET)
        for told in (self._panel.finished, self._clock.tick):
            told(self._answering(self._listing), listed, listing, **QUIET)
        # What it took, the next one should take.
        self._panel.finished(self._answering(self._look), form.inputs, [form.frame, form.note], **IMAGE)
        self.blocks.load(self._answering(self._load), [*form.inputs, *listed], everything, **IMAGE)

    def _answering(self, handler: Callable[..., Updates]) -> Callable[..., Updates]:
        """The same handler; what goes wrong in it is shown in the page's words, not in Gradio's."""
        words = self._words

        @functools.wraps(handler)
        def answered(*given: Any, **named: Any) -> Updates:
            try:
                return handler(*given, **named)
            except KinemaError as fault:
                said = form_html.why(fault, words)
            except Exception:
                log.exception("a defect of the page")
                said = escape(words.defect)
            raise gr.Error(said, title=words.failed, print_exception=False) from None

        return answered

    # What is asked, and what is known of it before it is submitted.

    def _submission(self, asked: forms.FormValues) -> Submission:
        image = None if asked.image is None else self._drafts.read(asked.image)
        return prepare(self._settings, asked.fields, image, self._drafts.inspect)

    def _foreseen(self, asked: forms.FormValues) -> Submission:
        """As `_submission`, also while the still or the sentence is yet to be given."""
        if asked.source == "prompt":
            return prepare(self._settings, {"prompt": "sky", **asked.fields})  # a sentence that needs no warning
        if asked.image is not None:
            return self._submission(asked)
        request = request_for(**to_parameters(asked.fields, lambda: default_model(self._settings)))
        return Submission(request, None, None, tuple(parameter_warnings(request)), fingerprint="")

    def _look(self, *values: Any) -> Updates:
        """Show the still as it will be fitted, and how long it will all take."""
        asked = self._form.asked(values)
        updates = self._looked(asked)
        if asked.image is None:
            updates.pop(self._form.frame, None)  # it may say why a picture was refused
        return updates

    def _looked(self, asked: forms.FormValues) -> Updates:
        words = self._words
        try:
            submission = self._foreseen(asked)
            seconds, waiting = estimate(self._queue, submission), self._queue.waiting()
        except KinemaError as fault:
            return {self._form.note: form_html.refusal(fault, words)}
        note = form_html.note(submission.request, seconds, waiting, submission.warnings, words)
        size = None if asked.image is None else self._drafts.size(asked.image)
        if asked.image is None or size is None:
            return {self._form.note: note, self._form.frame: form_html.empty_frame(words)}
        frame = form_html.frame(asked.image, size, submission.request, words)
        return {self._form.note: note, self._form.frame: frame}

    def _model(self, *values: Any) -> Updates:
        """Another model brings its own size, length and steps."""
        asked = self._form.asked(values)
        return self._form.defaults(request_for(model=asked.fields.get("model", self._start.model)))

    def _given(self, event: gr.EventData) -> tuple[str, str]:
        return str(event.image), plain_name(str(event.name).rpartition(".")[0]) or ""

    def _refused(self, event: gr.EventData) -> tuple[str, str]:
        return "", form_html.empty_frame(self._words, str(event.fault), in_english=bool(event.english))

    def _removed(self) -> tuple[str, str]:
        return "", form_html.empty_frame(self._words)

    # What is done with jobs.

    def _generate(self, *values: Any) -> Updates:
        """Submit what is asked, and show it; what can't be made is said where the button is."""
        *given, _, cards = values
        asked, words = self._form.asked(given), self._words
        missing = asked.image is None if asked.source == "image" else "prompt" not in asked.fields
        if missing:
            message = words.need_image if asked.source == "image" else words.need_prompt
            return {self._form.note: form_html.refusal(message, words)}
        fields = asked.fields if asked.locked else {**asked.fields, "seed": draw_seed()}
        try:
            submission = self._submission(dataclasses.replace(asked, fields=fields))
            job = submit(self._queue, self._settings, submission, title=asked.title)
        except KinemaError as fault:
            return {self._form.note: form_html.refusal(fault, words)}
        return {self._form.settings["seed"]: job.request.seed, **self._showing(job, cards)}

    def _act(self, shown: str, cards: int, event: gr.EventData) -> Updates:
        """A button of the panel or of a card."""
        job_id = str(event.job)
        try:
            if event.act == "open":
                return self._showing(self._queue.get(job_id), cards)
            if event.act == "use":
                return self._using(self._queue.get(job_id))
            if event.act == "more":
                cards += CARDS
            elif event.act == "delete":
                self._queue.delete(job_id)
            else:
                self._do(event, job_id)
        except JobNotFound:  # deleted elsewhere in the meantime, or expired
            pass
        try:
            return self._showing(self._queue.get(shown), cards) if shown == job_id else self._listing(shown, cards)
        except JobNotFound:
            return {**self._emptied(), **self._listing("", cards)}

    def _do(self, event: gr.EventData, job_id: str) -> None:
        """What a button changes of a job that stays."""
        match event.act:
            case "cancel":
                self._queue.cancel(job_id)
            case "rename":
                change(self._queue, job_id, title=str(event.title).strip(), pinned=None)
            case "pin":
                change(self._queue, job_id, title=None, pinned=not self._queue.get(job_id).pinned)

    def _load(self, request: gr.Request, *values: Any) -> Updates:
        """The page is opened: show the job that its address names, with its settings, and all others."""
        *given, _, cards = values
        try:
            job = self._queue.get(request.query_params.get("job", ""))
        except JobNotFound:
            return {**self._look(*given), **self._listing("", cards)}
        return {**self._using(job), **self._showing(job, cards)}

    def _using(self, job: Job) -> Updates:
        """The form, filled as it was for a job."""
        form, request = self._form, job.request
        source: forms.Begin = "image" if request.prompt is None else "prompt"
        image = job.image if source == "image" else None
        asked = forms.FormValues(source, image, job.title, locked=True, fields=request.model_dump(exclude_none=True))
        return {**form.filled(request, image, job.title), **self._looked(asked)}

    def _showing(self, job: Job, cards: int) -> Updates:
        return {self._panel: job_html.panel(job, self._words), **self._listing(job.id, cards)}

    def _emptied(self) -> Updates:
        return {self._panel: job_html.nothing(self._words)}

    def _listing(self, shown: str, cards: int) -> Updates:
        page = self._queue.list(limit=max(1, min(int(cards), MAX_PAGE)))
        return {
            self._gallery: job_html.gallery(page.jobs, self._words, more=page.has_more, shown=shown),
            self._shown: shown,
            self._cards: cards,
            self._clock: gr.Timer(active=not all(job.finished for job in page.jobs)),
        }
