"""HTML of jobs: the panel of one job and the gallery of all. Pure functions."""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING

from kinema.jobs.eta import stages_of
from kinema.serving.client_messages import failure_message
from kinema.serving.page.form_html import english_html, icon, request_src

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.jobs import Job
    from kinema.serving.page.translations.labels import Labels


def _action(name: str, job: Job, text: str, *, quiet: bool = False, attributes: str = "") -> str:
    """Return a button whose click page.js sends to the server.

    A quiet button shows only its icon, with the text as a tooltip. `attributes` must be escaped.
    """
    label = f'<span class="{"k-hidden" if quiet else ""}">{escape(text)}</span>'
    title = f' title="{escape(text)}"' if quiet else ""
    return (
        f'<button type="button" class="k-button k-{name}" data-act="{name}" data-job="{job.id}"{title}{attributes}>'
        f"{icon(name)}{label}</button>"
    )


def _link(name: str, href: str, file: str, text: str, *, quiet: bool = False) -> str:
    label = f'<span class="{"k-hidden" if quiet else ""}">{escape(text)}</span>'
    title = f' title="{escape(text)}"' if quiet else ""
    return f'<a class="k-button" href="{href}" download="{escape(file)}"{title}>{icon(name)}{label}</a>'


def empty_panel(labels: Labels) -> str:
    """Return the panel without a job."""
    return (
        f'<div class="k-panel" data-job=""><div class="k-media k-empty">{icon("film")}'
        f'<p class="k-drop">{escape(labels.panel_empty)}</p>'
        f'<p class="k-hint">{escape(labels.close_page_hint)}</p></div></div>'
    )


def panel(job: Job, labels: Labels, now: float | None = None) -> str:
    """Return the panel of a job: queue position, progress, video or error.

    The structure is the same in every state, so an update leaves unchanged elements (a playing video, a focused
    button) alone.
    """
    request, finished = job.request, "yes" if job.finished else ""
    return (
        f'<div class="k-panel" data-job="{job.id}" data-status="{job.status}" data-finished="{finished}"'
        f' data-lost="{escape(labels.connection_lost)}">'
        f'<div class="k-media" style="aspect-ratio: {request.width} / {request.height}">'
        f"{_media_html(job, labels)}</div>"
        f'<p class="k-hidden" role="status">{escape(_headline(job, labels))}</p>'
        f'<div class="k-state"><p class="k-headline">{escape(_headline_with_step(job, labels))}</p>'
        f'<p class="k-hint k-left">{_state_line(job, labels, now)}</p>{_details(job, labels)}</div>'
        f"{_bar(job, labels)}{_action_buttons(job, labels)}{_parameters(job, labels)}</div>"
    )


def _media_html(job: Job, labels: Labels) -> str:
    size = f'width="{job.request.width}" height="{job.request.height}"'
    badge = f'<span class="k-badge">{escape(labels.ai_generated)}</span>'
    if job.status == "completed":
        label = escape(labels.video_alt.format(title(job, labels)))
        return (
            f'<video src="../jobs/{job.id}/video.mp4" poster="{poster(job)}" {size} controls loop muted playsinline '
            f'preload="auto" data-loop aria-label="{label}"></video>{badge}'
        )
    if job.previews and not job.finished:
        source = f"../jobs/{job.id}/preview.jpg?n={job.previews}"
        return f'<img class="k-preview" src="{source}" alt="{escape(labels.preview_alt)}" {size}>{badge}'
    if job.image:
        style = "k-dim" if not job.finished else "k-dim k-grey"
        return f'<img class="{style}" src="{poster(job)}" alt="{escape(labels.input_alt)}" {size}>'
    return f'<div class="k-empty">{icon("film")}</div>'


def _headline(job: Job, labels: Labels) -> str:
    """Return the status or stage of a job, without the step: screen readers announce each change."""
    match job.status:
        case "queued":
            return labels.queued_next if job.queue_position in (None, 1) else labels.queued.format(job.queue_position)
        case "in_progress":
            return labels.starting if job.stage is None else labels.stages.get(job.stage, job.stage)
        case "completed":
            return labels.completed
    return labels.cancelled if job.error and job.error.code == "cancelled" else labels.failed


def _headline_with_step(job: Job, labels: Labels) -> str:
    headline = _headline(job, labels)
    if job.status == "in_progress" and job.stage is not None and job.total:
        return labels.step.format(headline, job.step, job.total)
    return headline


def _state_line(job: Job, labels: Labels, now: float | None) -> str:
    """Return the line below the headline as HTML: time left, time taken, or the error."""
    match job.status:
        case "queued":
            return escape(labels.close_page_hint)
        case "completed":
            seconds = sum(job.stage_durations.values())
            return escape(f"{labels.generated_in.format(labels.duration(seconds))} · {ago(job, labels, now)}")
        case "failed":
            return f"{_reason(job, labels)}{escape(labels.parameters_kept)}"
    return escape(labels.time_left_unknown if job.eta is None else labels.time_left.format(labels.duration(job.eta)))


def _reason(job: Job, labels: Labels) -> str:
    """Return why a job failed: the description of its error code, else the recorded English message."""
    if job.error is None or job.error.code == "cancelled":
        return ""
    if general := labels.errors.get(job.error.code):
        return f"{escape(general)} "
    message = failure_message(job.error)
    return f"{english_html(f'{message[:1].upper()}{message[1:]}.', labels)} "


def _details(job: Job, labels: Labels) -> str:
    """Return the recorded English message of a failure that `_reason` describes in the page's language."""
    if job.error is None or job.error.code == "cancelled" or job.error.code not in labels.errors:
        return ""
    message = failure_message(job.error)
    if message != job.error.message:
        return ""  # clients may only see the general description
    summary = f"<summary>{escape(labels.details)}</summary>"
    return f'<details class="k-facts">{summary}<p>{english_html(message, labels)}</p></details>'


def _bar(job: Job, labels: Labels) -> str:
    """Return the progress bar and the list of stages; empty for a finished job."""
    if job.finished:
        return '<div class="k-progress"></div>'
    stages = stages_of(job.request, text_to_image=job.request.prompt is not None)
    current = stages.index(job.stage) if job.stage in stages else -1
    items = "".join(
        f'<li class="{"k-past" if i < current else "k-here" if i == current else ""}">'
        f"{escape(labels.stages[stage])}</li>"
        for i, stage in enumerate(stages)
    )
    return (
        f'<div class="k-progress"><div class="k-bar" role="progressbar" aria-label="{escape(_headline(job, labels))}" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{job.progress}">'
        f'<div style="width: {job.progress}%"></div></div><ol class="k-stages">{items}</ol></div>'
    )


def _action_buttons(job: Job, labels: Labels) -> str:
    if not job.finished:
        return f'<div class="k-actions">{_action("cancel", job, labels.cancel)}</div>'
    downloads = ""
    if job.status == "completed":
        downloads = _extend(job, labels) + _action("last", job, labels.use_last_frame) + _downloads(job, labels)
    use, delete = _action("use", job, labels.reuse), _action("delete", job, labels.delete)
    return f'<div class="k-actions">{use}{downloads}{delete}</div>'


def _downloads(job: Job, labels: Labels, *, quiet: bool = False) -> str:
    name = f"kinema-{job.request.seed}"
    return _link("download", f"../jobs/{job.id}/video.mp4", f"{name}.mp4", labels.download, quiet=quiet) + _link(
        "recipe", f"../jobs/{job.id}/recipe.json", f"{name}.json", labels.recipe, quiet=quiet
    )


def _parameters(job: Job, labels: Labels) -> str:
    """Return the list of the job's parameters that are not None."""
    rows = "".join(
        f"<div><dt>{escape(labels.parameter_names[name])}</dt>"
        f"<dd>{escape(labels.fits.get(str(value), str(value)))}</dd></div>"
        for name, value in job.request.model_dump(exclude_none=True).items()
    )
    return f'<details class="k-facts"><summary>{escape(_summary(job, labels))}</summary><dl>{rows}</dl></details>'


def title(job: Job, labels: Labels) -> str:
    """Return the job's title, or the text for untitled videos."""
    return job.title or labels.untitled


def poster(job: Job) -> str:
    """Return the URL of a frame of the job's video, or of its fitted input image."""
    if job.status == "completed":
        return f"../jobs/{job.id}/thumbnail.webp"
    return request_src(job.image, job.request) if job.image else ""


def ago(job: Job, labels: Labels, now: float | None = None) -> str:
    """Return the time since the job ended, or since it was created."""
    seconds = (time.time() if now is None else now) - (job.completed_at or job.created_at)
    return labels.just_now if seconds < 60 else labels.ago.format(labels.duration(seconds))


def _summary(job: Job, labels: Labels) -> str:
    return f"{labels.model_label(job.request.model)} · {_facts(job, labels)} · {labels.seed.format(job.request.seed)}"


def _facts(job: Job, labels: Labels) -> str:
    """Return the length of a job's video, and where it ends if it is a loop or has a last image."""
    loop = [labels.parameter_names["loop"]] if job.request.loop else []
    last_image = [labels.last_image] if job.last_image and not job.extend else []
    return " · ".join([_length(job, labels), *loop, *last_image])


def _length(job: Job, labels: Labels) -> str:
    request = job.request
    return labels.frames_and_seconds.format(request.output_frames, f"{request.duration:.1f}")


def gallery(jobs: Sequence[Job], labels: Labels, *, more: bool, shown: str | None = None) -> str:
    """Return the gallery of all jobs in the given order; `shown` is the id of the job in the panel."""
    if not jobs:
        return f'<div class="k-gallery"><p class="k-hint">{escape(labels.gallery_empty)}</p></div>'
    cards = "".join(_card(job, labels, shown=job.id == shown) for job in jobs)
    more_button = (
        f'<button type="button" class="k-button" data-act="more" data-job="">{escape(labels.show_more)}</button>'
        if more
        else ""
    )
    return f'<div class="k-gallery"><ul class="k-cards">{cards}</ul>{more_button}</div>'


def _card(job: Job, labels: Labels, *, shown: bool) -> str:
    name = title(job, labels)
    has_image = job.image or job.status == "completed"
    image = f'<img src="{poster(job)}" alt="" loading="lazy">' if has_image else icon("film")
    badge = "" if job.status == "completed" else f'<span class="k-badge">{escape(_headline(job, labels))}</span>'
    downloads = _downloads(job, labels, quiet=True) if job.status == "completed" else ""
    current = ' aria-current="true"' if shown else ""
    delete_or_cancel = (
        _action("delete", job, labels.delete, quiet=True)
        if job.finished
        else _action("cancel", job, labels.cancel, quiet=True)
    )
    finished, headline = "yes" if job.finished else "", escape(_headline(job, labels))
    state = f'data-id="{job.id}" data-finished="{finished}" data-state="{headline}"'
    return (
        f'<li class="k-card" {state}{current}>'
        f'<button type="button" class="k-poster" data-act="open" data-job="{job.id}" '
        f'aria-label="{escape(labels.show)}: {escape(name)}">{image}{badge}</button>'
        f'<h3>{escape(name)}</h3><p class="k-hint">{escape(job.request.model)} · {escape(_facts(job, labels))}<br>'
        f'{escape(ago(job, labels))}</p><div class="k-actions">'
        f"{_action('use', job, labels.reuse, quiet=True)}{downloads}"
        f"{_rename_and_pin(job, labels)}{delete_or_cancel}</div></li>"
    )


def _extend(job: Job, labels: Labels) -> str:
    """Return the button that asks for the seconds to add; empty for a video that has a fixed end."""
    if job.request.loop or (job.last_image and not job.extend):
        return ""
    dialog = _dialog(labels.seconds_to_add, labels.extend, labels.cancel_rename, "2")
    return _action("extend", job, labels.extend, attributes=f" {dialog}")


def _dialog(question: str, yes: str, no: str, before: str) -> str:
    """Return the attributes of a button for which page.js asks for a text."""
    texts = {"question": question, "yes": yes, "no": no, "title": before}
    return " ".join(f'data-{key}="{escape(text)}"' for key, text in texts.items())


def _rename_and_pin(job: Job, labels: Labels) -> str:
    """Return the rename and pin buttons of a card."""
    dialog = _dialog(labels.new_title, labels.save, labels.cancel_rename, job.title or "")
    pin = _action(
        "pin",
        job,
        labels.unpin if job.pinned else labels.pin,
        quiet=True,
        attributes=f' aria-pressed="{"true" if job.pinned else "false"}"',
    )
    return _action("rename", job, labels.rename, quiet=True, attributes=f" {dialog}") + pin
