"""What the page shows of jobs, as HTML: the one that is watched, and all of them. Pure functions of values."""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING

from kinema.jobs.eta import stages_of
from kinema.serving.client_messages import failure_message
from kinema.serving.page.form_html import english, fitted, icon

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.jobs import Job
    from kinema.serving.page.translations.labels import Labels


def _action(name: str, job: Job, text: str, *, quiet: bool = False, more: str = "") -> str:
    """A button that page.js takes to the server; a quiet one shows its icon alone, and its text as a tooltip.

    `more` are attributes, escaped.
    """
    label = f'<span class="{"k-hidden" if quiet else ""}">{escape(text)}</span>'
    tip = f' title="{escape(text)}"' if quiet else ""
    return (
        f'<button type="button" class="k-button k-{name}" data-act="{name}" data-job="{job.id}"{tip}{more}>'
        f"{icon(name)}{label}</button>"
    )


def _link(name: str, href: str, file: str, text: str, *, quiet: bool = False) -> str:
    label = f'<span class="{"k-hidden" if quiet else ""}">{escape(text)}</span>'
    title = f' title="{escape(text)}"' if quiet else ""
    return f'<a class="k-button" href="{href}" download="{escape(file)}"{title}>{icon(name)}{label}</a>'


def nothing(words: Labels) -> str:
    """The panel, while no job is watched."""
    return (
        f'<div class="k-panel" data-job=""><div class="k-screen k-empty">{icon("film")}'
        f'<p class="k-drop">{escape(words.empty)}</p><p class="k-hint">{escape(words.empty_hint)}</p></div></div>'
    )


def panel(job: Job, words: Labels, now: float | None = None) -> str:
    """A job as it is: its place, its progress, its video or why there is none.

    The screen, the state and the actions stand in the same places throughout, so that what has not changed
    (a video that plays, a button in focus) is left alone when the page is told anew.
    """
    request, finished = job.request, "yes" if job.finished else ""
    return (
        f'<div class="k-panel" data-job="{job.id}" data-status="{job.status}" data-finished="{finished}"'
        f' data-lost="{escape(words.lost)}">'
        f'<div class="k-screen" style="aspect-ratio: {request.width} / {request.height}">{_screen(job, words)}</div>'
        f'<p class="k-hidden" role="status">{escape(_headline(job, words))}</p>'
        f'<div class="k-state"><p class="k-headline">{escape(_told(job, words))}</p>'
        f'<p class="k-hint k-left">{_left(job, words, now)}</p>{_details(job, words)}</div>'
        f"{_bar(job, words)}{_actions(job, words)}{_facts(job, words)}</div>"
    )


def _screen(job: Job, words: Labels) -> str:
    size = f'width="{job.request.width}" height="{job.request.height}"'
    badge = f'<span class="k-badge">{escape(words.ai_made)}</span>'
    if job.status == "completed":
        label = escape(words.video_alt.format(title(job, words)))
        return (
            f'<video src="../jobs/{job.id}/video.mp4" poster="{poster(job)}" {size} controls loop muted playsinline '
            f'preload="auto" data-loop aria-label="{label}"></video>{badge}'
        )
    if job.previews and not job.finished:
        source = f"../jobs/{job.id}/preview.jpg?n={job.previews}"
        return f'<img class="k-preview" src="{source}" alt="{escape(words.preview_alt)}" {size}>{badge}'
    if job.image:
        waiting = "k-dim" if not job.finished else "k-dim k-grey"
        return f'<img class="{waiting}" src="{poster(job)}" alt="{escape(words.crop_alt)}" {size}>'
    return f'<div class="k-empty">{icon("film")}</div>'


def _headline(job: Job, words: Labels) -> str:
    """Where a job is, in words that change seldom: a screen reader tells them."""
    match job.status:
        case "queued":
            return words.next if job.queue_position in (None, 1) else words.queued.format(job.queue_position)
        case "in_progress":
            return words.starting if job.stage is None else words.stages.get(job.stage, job.stage)
        case "completed":
            return words.done
    return words.cancelled if job.error and job.error.code == "cancelled" else words.failed


def _told(job: Job, words: Labels) -> str:
    headline = _headline(job, words)
    if job.status == "in_progress" and job.stage is not None and job.total:
        return words.step.format(headline, job.step, job.total)
    return headline


def _left(job: Job, words: Labels, now: float | None) -> str:
    """The line beneath, as HTML: time left, time taken, or the reason."""
    match job.status:
        case "queued":
            return escape(words.empty_hint)
        case "completed":
            spent = sum(job.stage_durations.values())
            return escape(f"{words.made_in.format(words.duration(spent))} · {ago(job, words, now)}")
        case "failed":
            return f"{_reason(job, words)}{escape(words.kept)}"
    return escape(words.left_unknown if job.eta is None else words.left.format(words.duration(job.eta)))


def _reason(job: Job, words: Labels) -> str:
    """Why a job failed: in general, as the page has words for it, else what the server wrote down."""
    if job.error is None or job.error.code == "cancelled":
        return ""
    if general := words.faults.get(job.error.code):
        return f"{escape(general)} "
    message = failure_message(job.error)
    return f"{english(f'{message[:1].upper()}{message[1:]}.', words)} "


def _details(job: Job, words: Labels) -> str:
    """What the server wrote down of a failure, where the reason is said in other words."""
    if job.error is None or job.error.code == "cancelled" or job.error.code not in words.faults:
        return ""
    message = failure_message(job.error)
    if message != job.error.message:
        return ""  # in general is all that a client is told
    summary = f"<summary>{escape(words.details)}</summary>"
    return f'<details class="k-facts">{summary}<p>{english(message, words)}</p></details>'


def _bar(job: Job, words: Labels) -> str:
    """The whole job in percent, and the stages that it goes through; gone when it is finished."""
    if job.finished:
        return '<div class="k-progress"></div>'
    stages = stages_of(text_to_image=job.request.prompt is not None)
    here = stages.index(job.stage) if job.stage in stages else -1
    marks = "".join(
        f'<li class="{"k-past" if i < here else "k-here" if i == here else ""}">{escape(words.stages[stage])}</li>'
        for i, stage in enumerate(stages)
    )
    return (
        f'<div class="k-progress"><div class="k-bar" role="progressbar" aria-label="{escape(_headline(job, words))}" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{job.progress}">'
        f'<div style="width: {job.progress}%"></div></div><ol class="k-stages">{marks}</ol></div>'
    )


def _actions(job: Job, words: Labels) -> str:
    if not job.finished:
        return f'<div class="k-actions">{_action("cancel", job, words.cancel)}</div>'
    made = _downloads(job, words) if job.status == "completed" else ""
    return f'<div class="k-actions">{_action("use", job, words.use)}{made}{_action("delete", job, words.delete)}</div>'


def _downloads(job: Job, words: Labels, *, quiet: bool = False) -> str:
    name = f"kinema-{job.request.seed}"
    return _link("download", f"../jobs/{job.id}/video.mp4", f"{name}.mp4", words.download, quiet=quiet) + _link(
        "recipe", f"../jobs/{job.id}/recipe.json", f"{name}.json", words.recipe, quiet=quiet
    )


def _facts(job: Job, words: Labels) -> str:
    """The settings that it is made by, all that were set."""
    rows = "".join(
        f"<div><dt>{escape(words.labels[name])}</dt><dd>{escape(words.fits.get(str(value), str(value)))}</dd></div>"
        for name, value in job.request.model_dump(exclude_none=True).items()
    )
    return f'<details class="k-facts"><summary>{escape(_meta(job, words))}</summary><dl>{rows}</dl></details>'


def title(job: Job, words: Labels) -> str:
    """What a person knows a job by."""
    return job.title or words.untitled


def poster(job: Job) -> str:
    """Where the server shows a frame of a job's video, or the image that it will begin with."""
    if job.status == "completed":
        return f"../jobs/{job.id}/thumbnail.webp"
    request = job.request
    return fitted(job.image, request.width, request.height, request.fit) if job.image else ""


def ago(job: Job, words: Labels, now: float | None = None) -> str:
    """How long since a job ended, or came."""
    seconds = (time.time() if now is None else now) - (job.completed_at or job.created_at)
    return words.now if seconds < 60 else words.ago.format(words.duration(seconds))


def _meta(job: Job, words: Labels) -> str:
    return f"{words.model(job.request.model)} · {_long(job, words)} · {words.seed.format(job.request.seed)}"


def _long(job: Job, words: Labels) -> str:
    request = job.request
    return words.seconds_long.format(request.num_frames, f"{request.num_frames / request.frame_rate:.1f}")


def gallery(jobs: Sequence[Job], words: Labels, *, more: bool, shown: str | None = None) -> str:
    """All jobs, newest first; `shown` is the one in the panel."""
    if not jobs:
        return f'<div class="k-gallery"><p class="k-hint">{escape(words.gallery_empty)}</p></div>'
    cards = "".join(_card(job, words, shown=job.id == shown) for job in jobs)
    again = (
        f'<button type="button" class="k-button" data-act="more" data-job="">{escape(words.show_more)}</button>'
        if more
        else ""
    )
    return f'<div class="k-gallery"><ul class="k-cards">{cards}</ul>{again}</div>'


def _card(job: Job, words: Labels, *, shown: bool) -> str:
    name = title(job, words)
    shows = job.image or job.status == "completed"
    image = f'<img src="{poster(job)}" alt="" loading="lazy">' if shows else icon("film")
    chip = "" if job.status == "completed" else f'<span class="k-badge">{escape(_headline(job, words))}</span>'
    made = _downloads(job, words, quiet=True) if job.status == "completed" else ""
    current = ' aria-current="true"' if shown else ""
    last = (
        _action("delete", job, words.delete, quiet=True)
        if job.finished
        else _action("cancel", job, words.cancel, quiet=True)
    )
    return (
        f'<li class="k-card"{current}><button type="button" class="k-poster" data-act="open" data-job="{job.id}" '
        f'aria-label="{escape(words.show)}: {escape(name)}">{image}{chip}</button>'
        f'<h3>{escape(name)}</h3><p class="k-hint">{escape(job.request.model)} · {escape(_long(job, words))}<br>'
        f'{escape(ago(job, words))}</p><div class="k-actions">'
        f"{_action('use', job, words.use, quiet=True)}{made}{_naming(job, words)}{last}</div></li>"
    )


def _naming(job: Job, words: Labels) -> str:
    """Rename and pin, on a card."""
    texts = (words.new_title, words.save, words.no_change, job.title or "")
    asks = " ".join(
        f'data-{key}="{escape(text)}"' for key, text in zip(("ask", "yes", "no", "title"), texts, strict=True)
    )
    pin = _action(
        "pin",
        job,
        words.unpin if job.pinned else words.pin,
        quiet=True,
        more=f' aria-pressed="{"true" if job.pinned else "false"}"',
    )
    return _action("rename", job, words.rename, quiet=True, more=f" {asks}") + pin
