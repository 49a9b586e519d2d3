"""The form: one Gradio component with label and help text for each parameter of `VideoRequest`."""

from __future__ import annotations

import math
from abc import ABCMeta
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import gradio as gr

from kinema.models.catalog import default_parameters, frames_at_once
from kinema.models.upscaler_weights import has_upscaler
from kinema.models.video_size import fitting_size
from kinema.serving.page import form_html
from kinema.values import MAX_FRAMES, TEXT_TO_IMAGE_FIELDS, Fit, Scheduler, VideoRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gradio.blocks import Block

    from kinema.serving.page.translations.labels import Labels

Source = Literal["image", "prompt"]

# Number fields under "More parameters", in order.
_NUMBERS = (
    "width",
    "height",
    "num_frames",
    "num_inference_steps",
    "fps",
    "playback_fps",
    "min_guidance_scale",
    "max_guidance_scale",
    "noise_aug_strength",
    "decode_chunk_size",
)
# Fields that are empty unless the user sets them, although `VideoRequest` has a default. A gr.Number can't be empty.
_SIZE = ("width", "height")
_UNSET = (*_SIZE, "num_frames")
# Shapes of a video by the aspect ratio of an image that gets them; "auto" leaves the size to the image or the model.
_SHAPES = {"landscape": (16, 9), "square": (1, 1), "portrait": (9, 16)}
_IMAGE_MODEL_NUMBERS = ("image_guidance_scale", "image_num_inference_steps")
# The usual maximum of motion. It is raised when the form is filled with a larger value.
_MAX_MOTION = 255
# Fields that another model leaves unchanged.
_KEPT = (
    "model",
    "seed",
    "motion_bucket_id",
    "fit",
    "crop_position",
    "loop",
    "interpolate",
    "upscale",
    *TEXT_TO_IMAGE_FIELDS,
)


def _as_typed(kind: type[Any]) -> type[Any]:
    """Return a subclass of a Gradio component that passes values on unchanged.

    `VideoRequest` rejects invalid values in the page's language and names the parameter. Gradio would round them, or
    reject them in English without the name. Gradio's metaclass writes a .pyi file beside this one, so it is bypassed.
    """
    namespace = {"preprocess": lambda _, payload: payload, "__module__": __name__}
    return ABCMeta.__new__(type(kind), kind.__name__, (kind,), namespace)


Slider, Number, Dropdown, Radio = (_as_typed(kind) for kind in (gr.Slider, gr.Number, gr.Dropdown, gr.Radio))


@dataclass(frozen=True)
class Form:
    """The form's components. Handlers receive their values in the order of `inputs`."""

    source: gr.Radio
    image: gr.Textbox  # hidden: SHA-256 of the input image
    title: gr.Textbox  # hidden: the image's file name
    last_image: gr.Textbox  # hidden: SHA-256 of the image at which the video ends
    seed_fixed: gr.Checkbox
    seconds: Any  # the slider of the video's length, which applies while the number of frames is empty
    shape: Any  # sets the size
    parameters: Mapping[str, Any]  # components by parameter name; Any, since Gradio defines their events at run time
    frame: gr.HTML
    last_frame: gr.HTML
    image_fields: gr.Column
    prompt_fields: gr.Column
    image_model_fields: gr.Column
    new_seed: gr.Button
    note: gr.HTML
    generate: gr.Button
    labels: Labels

    @property
    def inputs(self) -> list[Block]:
        """The components whose values make up the form."""
        return [
            self.source,
            self.image,
            self.title,
            self.last_image,
            self.seed_fixed,
            self.seconds,
            *self.parameters.values(),
        ]

    def read(self, values: Sequence[Any]) -> FormValues:
        """Return the form's values from those of `inputs`."""
        source, image, title, last_image, seed_fixed, seconds, *parameters = values
        fields = {
            name: value for name, value in zip(self.parameters, parameters, strict=True) if value not in (None, "", [])
        }
        if "num_frames" not in fields and seconds is not None:
            fields["seconds"] = seconds
        if fields.get("fit") != "crop" or source == "prompt":
            fields.pop("crop_position", None)  # it has no effect
        if source == "image":
            fields = {name: value for name, value in fields.items() if name not in TEXT_TO_IMAGE_FIELDS}
            return FormValues(source, image or None, title or None, bool(seed_fixed), fields, last_image or None)
        return FormValues(source, None, None, bool(seed_fixed), fields)

    def source_visibility(self, source: Source) -> dict[Block, Any]:
        """Return updates that show the fields of an image or of a prompt."""
        return {
            self.image_fields: gr.update(visible=source == "image"),
            self.prompt_fields: gr.update(visible=source == "prompt"),
            self.image_model_fields: gr.update(visible=source == "prompt"),
        }

    def updates_for_job(self, request: VideoRequest, entered: FormValues, *, size_is_set: bool) -> dict[Block, Any]:
        """Return updates that fill the form with a job's request. The seed is fixed, so it gives the same video.

        Unless `size_is_set`, the form gives the job's size with its size fields empty.
        """
        source = entered.source
        updates: dict[Block, Any] = {self.source: source, self.seed_fixed: True, **self.source_visibility(source)}
        if source == "image":
            updates |= {self.image: entered.image or "", self.title: entered.title or ""}
            updates[self.last_image] = entered.last_image or ""
        for name, component in self.parameters.items():
            value: Any = None if name in _SIZE and not size_is_set else getattr(request, name)
            if name == "upscale" and not has_upscaler():
                value = 1
            limits = {"maximum": max(_MAX_MOTION, value)} if name == "motion_bucket_id" else {}
            if isinstance(component, gr.Textbox):
                value = "" if value is None else str(value)
            updates[component] = gr.update(value=value, **limits)
        updates[self.parameters["model"]] = gr.update(value=request.model, info=self.labels.model_help(request.model))
        return (
            updates
            | self._length(request)
            | {self.shape: shape_of(request.model_dump() if size_is_set else {}, request)}
        )

    def _length(self, request: VideoRequest) -> dict[Block, Any]:
        """Return updates that fill in a request's length: in seconds if that is exact, else in frames."""
        seconds = round(request.num_frames / request.generated_rate, 1)
        exact = round(seconds * request.generated_rate) == request.num_frames
        return {
            self.seconds: gr.update(value=seconds, maximum=max_seconds(request)),
            self.parameters["num_frames"]: "" if exact else str(request.num_frames),
        }

    def updates_for_model(self, request: VideoRequest) -> dict[Block, Any]:
        """Return updates with a model's defaults. Those of `_KEPT` stay."""
        names = [name for name in self.parameters if name not in _KEPT]
        updates: dict[Block, Any] = {
            self.parameters[name]: "" if name in _UNSET or (value := getattr(request, name)) is None else value
            for name in names
        }
        updates[self.parameters["model"]] = gr.update(info=self.labels.model_help(request.model))
        return updates | self._length(request) | {self.shape: "auto"}


@dataclass(frozen=True)
class FormValues:
    """The form's values, not yet checked."""

    source: Source
    image: str | None
    title: str | None
    seed_fixed: bool
    fields: dict[str, Any]
    last_image: str | None = None


def max_seconds(request: VideoRequest, *, has_last_image: bool = False) -> float:
    """Return the longest video with the request's other parameters, in seconds, rounded down to a tenth."""
    most = (frames_at_once(request.model) if request.loop or has_last_image else None) or MAX_FRAMES
    return math.floor(10 * most / request.generated_rate) / 10


def size_of_shape(model: str, shape: str) -> tuple[int | None, int | None]:
    """Return the size (width, height) of a model's videos of this shape; None and None for "auto"."""
    if shape not in _SHAPES:
        return None, None
    own = VideoRequest(**({"model": model} | default_parameters(model)))
    return fitting_size(_SHAPES[shape], (own.width, own.height))


def shape_of(fields: Mapping[str, Any], request: VideoRequest) -> str | None:
    """Return the shape that these fields set, with "auto" for no size; None for a size of its own."""
    if not any(name in fields for name in _SIZE):
        return "auto"
    sides = (request.width, request.height)
    return next((name for name in _SHAPES if size_of_shape(request.model, name) == sides), None)


def build(defaults: VideoRequest, offered: tuple[Sequence[str], Sequence[str]], labels: Labels) -> Form:
    """Build the form in the current Blocks context.

    Args:
        defaults: The initial values.
        offered: The models and the text-to-image models to choose from.
        labels: The texts of the page.
    """
    components: dict[str, Any] = {}
    source = Radio(
        [(labels.from_image, "image"), (labels.from_prompt, "prompt")],
        value="image",
        label=labels.source,
        elem_classes="k-segments",
    )
    image, title, last_image = (gr.Textbox(visible=False) for _ in range(3))
    with gr.Column(elem_classes="k-side") as image_fields:
        frame = gr.HTML(
            form_html.empty_image_frame(labels),
            js_on_load="kinema.image(element, trigger, true); // 'uploaded' 'rejected' 'removed' 'moved'",
            apply_default_css=False,
        )
        fits = [(labels.fits[fit], fit) for fit in get_args(Fit)]
        components["fit"] = Radio(
            fits, value=defaults.fit, label=labels.parameter_names["fit"], elem_classes="k-segments k-small"
        )
        last_frame = gr.HTML(
            form_html.last_image_frame(None, defaults, labels),
            js_on_load="kinema.image(element, trigger, false); // 'uploaded' 'rejected' 'removed'",
            apply_default_css=False,
        )
    components["crop_position"] = Number(defaults.crop_position, visible=False)
    with gr.Column(visible=False, elem_classes="k-side") as prompt_fields:
        components["prompt"] = gr.Textbox(
            lines=3, max_lines=6, placeholder=labels.prompt_hint, **_label_and_help("prompt", labels)
        )
    shapes = [(text, name) for name, text in labels.shapes.items()]
    shape = Radio(shapes, value="auto", label=labels.shape, elem_classes="k-segments k-small")
    components["model"] = _dropdown("model", offered[0], defaults, labels)
    components["motion_bucket_id"] = Slider(
        0,
        _MAX_MOTION,
        value=defaults.motion_bucket_id,
        step=1,
        buttons=[],
        **_label_and_help("motion_bucket_id", labels),
    )
    seconds = Slider(
        0.1,
        max_seconds(defaults),
        value=round(defaults.num_frames / defaults.generated_rate, 1),
        step=0.1,
        buttons=[],
        label=labels.length,
        info=labels.length_help,
    )
    components["loop"] = gr.Checkbox(value=defaults.loop, **_label_and_help("loop", labels))
    components["interpolate"] = Radio(
        [(f"{factor}×", factor) for factor in (1, 2, 4)],
        value=defaults.interpolate,
        elem_classes="k-segments k-small",
        **_label_and_help("interpolate", labels),
    )
    components["upscale"] = Radio(
        [(f"{factor}×", factor) for factor in (1, 2)],
        value=defaults.upscale,
        visible=has_upscaler(),
        elem_classes="k-segments k-small",
        **_label_and_help("upscale", labels),
    )
    with gr.Column(elem_classes="k-side"):
        components["seed"] = Number(defaults.seed, **_label_and_help("seed", labels))
        with gr.Row(elem_classes="k-seed"):
            new_seed = gr.Button(labels.new_seed, size="sm", elem_id="k-dice", min_width=100, scale=0)
            seed_fixed = gr.Checkbox(label=labels.fix_seed, container=False, min_width=140)
    image_model_fields = _build_more_parameters(components, defaults, offered, labels)
    with gr.Column(elem_id="k-go"):
        note = gr.HTML(apply_default_css=False, elem_id="k-note")
        generate = gr.Button(labels.generate, variant="primary", size="lg", elem_id="k-generate")
    # The order of VideoRequest's fields, which differs from the order on the page.
    parameters = {name: components[name] for name in VideoRequest.model_fields}
    return Form(
        source, image, title, last_image, seed_fixed, seconds, shape, parameters, frame, last_frame, image_fields,
        prompt_fields, image_model_fields, new_seed, note, generate, labels,
    )  # fmt: skip


def _build_more_parameters(
    components: dict[str, Any], defaults: VideoRequest, offered: tuple[Sequence[str], Sequence[str]], labels: Labels
) -> gr.Column:
    """Build the section "More parameters" and return its column that only applies to prompts."""
    with gr.Accordion(labels.more_parameters, open=False, elem_classes="k-more"):
        gr.HTML(f'<p class="k-hint">{labels.more_parameters_hint}</p>', apply_default_css=False)
        components.update({name: _number_field(name, defaults, labels) for name in _NUMBERS})
        image_model_fields: gr.Column = gr.Column(visible=False, elem_classes="k-side")
        with image_model_fields:
            components["negative_prompt"] = gr.Textbox(**_label_and_help("negative_prompt", labels))
            components["image_model"] = _dropdown("image_model", ["", *offered[1]], defaults, labels)
            components.update({name: _number_field(name, defaults, labels) for name in _IMAGE_MODEL_NUMBERS})
            components["scheduler"] = _dropdown("scheduler", ["", *get_args(Scheduler)], defaults, labels)
    return image_model_fields


def _label_and_help(name: str, labels: Labels) -> dict[str, Any]:
    return {"label": labels.parameter_names[name], "info": labels.parameter_help[name]}


def _number_field(name: str, defaults: VideoRequest, labels: Labels) -> Any:
    """Return a number field, or a text field if the parameter is optional. `VideoRequest` checks the range."""
    texts = _label_and_help(name, labels)
    if name in _UNSET or VideoRequest.model_fields[name].default is None:
        value = None if name in _UNSET else getattr(defaults, name)
        placeholders = {"playback_fps": labels.same_as_fps, "num_frames": labels.follows_length}
        placeholders |= dict.fromkeys(_SIZE, labels.follows_image)
        return gr.Textbox(
            "" if value is None else str(value),
            placeholder=placeholders.get(name, labels.automatic),
            max_lines=1,
            elem_classes="k-field",
            **texts,
        )
    is_integer = "float" not in str(VideoRequest.model_fields[name].annotation)
    step = 1 if is_integer else 0.01 if name == "noise_aug_strength" else 0.1
    return Number(getattr(defaults, name), step=step, elem_classes="k-field", **texts)


def _dropdown(name: str, choices: Sequence[str], defaults: VideoRequest, labels: Labels) -> Any:
    """Return a dropdown; the empty choice means automatic."""
    listed = [(labels.model_label(choice) if choice else labels.automatic, choice) for choice in choices]
    texts = _label_and_help(name, labels)
    if name == "model":
        texts["info"] = labels.model_help(defaults.model)
    return Dropdown(listed, value=getattr(defaults, name) or choices[0], filterable=False, **texts)
