"""The form: one component of Gradio's for each setting of `VideoRequest`, labelled and explained."""

from __future__ import annotations

from abc import ABCMeta
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import gradio as gr

from kinema.serving.page import form_html
from kinema.values import TEXT_TO_IMAGE_FIELDS, Fit, Scheduler, VideoRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gradio.blocks import Block

    from kinema.serving.page.translations.labels import Labels

Begin = Literal["image", "prompt"]

# Numbers in the fold, in the order in which they are met; the other settings stand in sight, or have a list.
_NUMBERS = (
    "width",
    "height",
    "num_inference_steps",
    "fps",
    "playback_fps",
    "min_guidance_scale",
    "max_guidance_scale",
    "noise_aug_strength",
    "decode_chunk_size",
)
_IMAGE_MODEL_NUMBERS = ("image_guidance_scale", "image_num_inference_steps")
# A slider's end is what is usual; a job's settings that lie beyond move it.
_USUAL_ENDS = {"motion_bucket_id": 255, "num_frames": 50}


def _as_typed(kind: type[Any]) -> type[Any]:
    """A component of Gradio's that hands over what was typed or chosen as it is.

    `VideoRequest` refuses what is wrong, in the page's words and by the field's name; Gradio would round it, or refuse
    it in English without a name. Its metaclass is bypassed, because it writes a .pyi file beside this one.
    """
    own = {"preprocess": lambda _, payload: payload, "__module__": __name__}
    return ABCMeta.__new__(type(kind), kind.__name__, (kind,), own)


Slider, Number, Dropdown, Radio = (_as_typed(kind) for kind in (gr.Slider, gr.Number, gr.Dropdown, gr.Radio))


@dataclass(frozen=True)
class Form:
    """The form's components; `values` of them come and go in the order of `inputs`."""

    source: gr.Radio
    image: gr.Textbox  # hidden: SHA-256 of the still that was given
    title: gr.Textbox  # hidden: its file's name
    locked: gr.Checkbox
    settings: Mapping[str, Any]  # Gradio's components, whose events are made as they are asked for
    frame: gr.HTML
    image_fields: gr.Column
    prompt_fields: gr.Column
    image_model_fields: gr.Column
    dice: gr.Button
    note: gr.HTML
    generate: gr.Button
    words: Labels

    @property
    def inputs(self) -> list[Block]:
        """What a handler needs to know all that was asked."""
        return [self.source, self.image, self.title, self.locked, *self.settings.values()]

    def asked(self, values: Sequence[Any]) -> FormValues:
        """What the components say."""
        source, image, title, locked, *settings = values
        fields = {
            name: value for name, value in zip(self.settings, settings, strict=True) if value not in (None, "", [])
        }
        if source == "image":
            fields = {name: value for name, value in fields.items() if name not in TEXT_TO_IMAGE_FIELDS}
            return FormValues(source, image or None, title or None, bool(locked), fields)
        return FormValues(source, None, None, bool(locked), fields)

    def sides(self, source: Begin) -> dict[Block, Any]:
        """What is shown for a still, or for a sentence."""
        return {
            self.image_fields: gr.update(visible=source == "image"),
            self.prompt_fields: gr.update(visible=source == "prompt"),
            self.image_model_fields: gr.update(visible=source == "prompt"),
        }

    def filled(self, request: VideoRequest, image: str | None, title: str | None) -> dict[Block, Any]:
        """The form as it was when this was asked; the seed is kept, so that it gives the same video."""
        source: Begin = "image" if request.prompt is None else "prompt"
        updates: dict[Block, Any] = {self.source: source, self.locked: True, **self.sides(source)}
        if source == "image":
            updates |= {self.image: image or "", self.title: title or ""}
        for name, component in self.settings.items():
            value = getattr(request, name)
            end = _USUAL_ENDS.get(name)
            beyond = {} if end is None else {"maximum": max(end, value)}
            if isinstance(component, gr.Textbox):
                value = "" if value is None else str(value)
            updates[component] = gr.update(value=value, **beyond)
        updates[self.settings["model"]] = gr.update(value=request.model, info=self.words.about_model(request.model))
        return updates

    def defaults(self, request: VideoRequest) -> dict[Block, Any]:
        """What a model brings along, when it is chosen: not what a person gave for this video."""
        own = [
            name
            for name in self.settings
            if name not in ("model", "seed", "motion_bucket_id", "fit", *TEXT_TO_IMAGE_FIELDS)
        ]
        updates: dict[Block, Any] = {
            self.settings[name]: "" if (value := getattr(request, name)) is None else value for name in own
        }
        updates[self.settings["model"]] = gr.update(info=self.words.about_model(request.model))
        return updates


@dataclass(frozen=True)
class FormValues:
    """What a person asked, not yet checked."""

    source: Begin
    image: str | None
    title: str | None
    locked: bool
    fields: dict[str, Any]


def build(start: VideoRequest, offered: tuple[Sequence[str], Sequence[str]], words: Labels) -> Form:
    """The form within the Blocks that are being built, filled with `start`; models and painters are those offered."""
    made: dict[str, Any] = {}
    source = Radio(
        [(words.from_image, "image"), (words.from_prompt, "prompt")],
        value="image",
        label=words.source,
        elem_classes="k-segments",
    )
    image, title = gr.Textbox(visible=False), gr.Textbox(visible=False)
    with gr.Column(elem_classes="k-side") as image_fields:
        frame = gr.HTML(
            form_html.empty_frame(words),
            js_on_load="kinema.image(element, trigger); // 'given' 'refused' 'removed'",
            apply_default_css=False,
        )
        fits = [(words.fits[fit], fit) for fit in get_args(Fit)]
        made["fit"] = Radio(fits, value=start.fit, label=words.labels["fit"], elem_classes="k-segments k-small")
    with gr.Column(visible=False, elem_classes="k-side") as prompt_fields:
        made["prompt"] = gr.Textbox(lines=3, max_lines=6, placeholder=words.prompt_hint, **_told("prompt", words))
    made["model"] = _choice("model", offered[0], start, words)
    for name in ("motion_bucket_id", "num_frames"):
        made[name] = Slider(
            0 if name == "motion_bucket_id" else 1,
            _USUAL_ENDS[name],
            value=getattr(start, name),
            step=1,
            buttons=[],
            **_told(name, words),
        )
    with gr.Column(elem_classes="k-side"):
        made["seed"] = Number(start.seed, **_told("seed", words))
        with gr.Row(elem_classes="k-seed"):
            dice = gr.Button(words.dice, size="sm", elem_id="k-dice", min_width=100, scale=0)
            locked = gr.Checkbox(label=words.lock, container=False, min_width=140)
    image_model_fields = _folded(made, start, offered, words)
    with gr.Column(elem_id="k-go"):
        note = gr.HTML(apply_default_css=False, elem_id="k-note")
        generate = gr.Button(words.generate, variant="primary", size="lg", elem_id="k-generate")
    # In the order of the values, whatever the order on the page.
    settings = {name: made[name] for name in VideoRequest.model_fields}
    return Form(
        source, image, title, locked, settings, frame, image_fields, prompt_fields, image_model_fields,
        dice, note, generate, words,
    )  # fmt: skip


def _folded(
    made: dict[str, Any], start: VideoRequest, offered: tuple[Sequence[str], Sequence[str]], words: Labels
) -> gr.Column:
    """The rest of the settings; gives the part that is of sentences alone."""
    with gr.Accordion(words.more, open=False, elem_classes="k-more"):
        gr.HTML(f'<p class="k-hint">{words.more_hint}</p>', apply_default_css=False)
        made.update({name: _number(name, start, words) for name in _NUMBERS})
        image_model_fields: gr.Column = gr.Column(visible=False, elem_classes="k-side")
        with image_model_fields:
            made["negative_prompt"] = gr.Textbox(**_told("negative_prompt", words))
            made["image_model"] = _choice("image_model", ["", *offered[1]], start, words)
            made.update({name: _number(name, start, words) for name in _IMAGE_MODEL_NUMBERS})
            made["scheduler"] = _choice("scheduler", ["", *get_args(Scheduler)], start, words)
    return image_model_fields


def _told(name: str, words: Labels) -> dict[str, Any]:
    return {"label": words.labels[name], "info": words.explained[name]}


def _number(name: str, start: VideoRequest, words: Labels) -> Any:
    """A number, or a line that may be empty where there may be none; what is out of range the request itself tells."""
    if VideoRequest.model_fields[name].default is None:
        value = getattr(start, name)
        own = words.fps_own if name == "playback_fps" else words.own
        return gr.Textbox(
            "" if value is None else str(value),
            placeholder=own,
            max_lines=1,
            elem_classes="k-knob",
            **_told(name, words),
        )
    whole = "float" not in str(VideoRequest.model_fields[name].annotation)
    step = 8 if name in ("width", "height") else 1 if whole else 0.01 if name == "noise_aug_strength" else 0.1
    return Number(getattr(start, name), step=step, elem_classes="k-knob", **_told(name, words))


def _choice(name: str, choices: Sequence[str], start: VideoRequest, words: Labels) -> Any:
    """One of a list; an empty one leaves it open."""
    listed = [(words.model(choice) if choice else words.own, choice) for choice in choices]
    told = _told(name, words)
    if name == "model":
        told["info"] = words.about_model(start.model)
    return Dropdown(listed, value=getattr(start, name) or choices[0], filterable=False, **told)
