"""The queue's work: runs the engine in a worker process and keeps models loaded between jobs."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from kinema.errors import InsufficientMemory, KinemaError
from kinema.jobs.job import DeviceState
from kinema.media.image import fit_image, open_image
from kinema.media.safety_check import check_frames, check_image, check_safety_package
from kinema.media.source_video import open_source_video
from kinema.recipe import ImageGeneration
from kinema.settings import read_settings
from kinema.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from PIL import Image

    from kinema.engine import PreparedImages, Projection
    from kinema.jobs.job import Task, TaskResult
    from kinema.media.image import InputImage
    from kinema.media.source_video import SourceVideo
    from kinema.media.video import Video
    from kinema.models.image_pipeline import ImagePipeline
    from kinema.models.loading import VideoPipeline
    from kinema.settings import Settings
    from kinema.steps import Event

PREVIEW_WIDTH = 384  # pixels at most
_IMAGE_GENERATION = "kinema-image-generation"  # text chunk of a generated image's PNG

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedImage:
    """A generated image; its file stores the generation parameters for the video's recipe."""

    image: InputImage

    def save(self, path: Path) -> None:
        """Write a PNG."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        if self.image.image_generation is not None:
            info.add_text(_IMAGE_GENERATION, self.image.image_generation.model_dump_json())
        self.image.rgb.save(path, "PNG", pnginfo=info)


@dataclass(frozen=True, slots=True, eq=False)
class TaskImages:
    """The image of a task, and the one at which its video ends or the video that it extends, if there is one.

    `prepared` is computed from them for one run of the part "latents", if there was time for it.
    """

    image: InputImage
    last_image: InputImage | None
    source_video: SourceVideo | None = None
    prepared: PreparedImages | None = None

    @classmethod
    def opened(cls, task: Task) -> TaskImages:
        """Open the images of a task."""
        last_image = None if task.last_image is None else replace(open_image(task.last_image), name=None)
        source = None if task.source_video is None else open_source_video(task.source_video)
        return cls(_open_image(task), last_image, source)


@dataclass(frozen=True, slots=True, eq=False)
class FinishedVideo:
    """A video whose file gets the invisible watermark, or not.

    `safety_threshold` is the score of the safety check above which it is refused; None if it is not checked.
    """

    video: Video
    watermark: bool
    safety_threshold: float | None = None

    def save(self, path: Path) -> Path:
        """Write an mp4, and return the path. Called in a thread, so the device does not wait for the safety check.

        Raises:
            ContentRefused: the safety check refuses the video; nothing is written.
        """
        video = self.video
        if self.safety_threshold is not None:
            check_frames(video.frames, self.safety_threshold)
        return video.save(path, watermark=self.watermark)


class EngineWork:
    """The work of one worker process. Keeps the last used video pipeline and text-to-image pipeline loaded."""

    watermark: ClassVar[Literal["on", "off"]] = "off"
    """Whether files get the invisible watermark if the setting is unset."""
    has_safety_check: ClassVar[bool] = False
    """Whether the setting `safety` applies."""

    def __init__(self) -> None:
        self._settings = read_settings()
        self._safety = self._settings.safety if self.has_safety_check else "off"
        if self._safety != "off":
            check_safety_package()  # a node of a cluster may lack it; without it, no job may run here
        self._pipeline: tuple[str, VideoPipeline] | None = None
        self._image_pipeline: tuple[str, ImagePipeline] | None = None
        self._projection: Projection | None = None
        self._images: dict[str, TaskImages] = {}  # of the current and the next job
        self._state = DeviceState(self._settings.device, gpus=0)

    @staticmethod
    def import_libraries() -> None:
        """Import all that loading a model on a GPU and the first video need. Uses no device."""
        import av  # noqa: F401

        from kinema import extension  # noqa: F401
        from kinema.engine import generate  # noqa: F401
        from kinema.models import loading, networks  # noqa: F401

        with suppress(Exception):  # `engine.fast.hardware` reports why a kernel is not available
            from kinema.engine.fast.kernels import hopper_attention, winograd  # noqa: F401

    def start(self, report: Callable[[str], object]) -> DeviceState:
        """Load the default model if it is downloaded; on a GPU, also compile its kernels."""
        try:
            self._state.device, self._state.gpus = _device_and_gpus(self._settings)
            self._load_default(report)
        except KinemaError as error:  # only jobs that need this model fail
            print(f"default model not loaded: {error}", file=sys.stderr)  # noqa: T201 - the worker's log
        return self._state

    def prepare(self, task: Task) -> None:
        """Open and fit the images of a job that starts soon, and do what its first part does on the CPU."""
        if task.image is not None:
            images, request = TaskImages.opened(task), task.request
            for image in filter(None, (images.image, images.last_image)):
                fit_image(image, request.width, request.height, request.fit, request.crop_position)
            pipeline = self._pipeline
            if task.part == "latents" and pipeline is not None and pipeline[0] == request.model:
                from kinema.engine import prepare_images

                prepared = prepare_images(pipeline[1], images.image, request, images.last_image)
                images = replace(images, prepared=prepared)
            self._images[task.job] = images

    def __call__(self, task: Task, previous: TaskResult | None) -> Generator[Event, None, TaskResult]:
        """Run one part of a job."""
        from kinema.engine import Checkpoint, generate_image, to_latents, to_video
        from kinema.extension import check_model

        match task.part:
            case "image":
                assert task.request.image_model is not None, "every request with a prompt has an image_model"
                image_pipeline = self._load_image_pipeline(task.request.image_model)
                image = yield from generate_image(image_pipeline, task.request)
                if self._safety != "off":
                    check_image(image.rgb, self._settings.safety_threshold)
                return GeneratedImage(image)
            case "latents":
                pipeline = self._load_pipeline(task.request.model)
                self._fit_projection(pipeline)
                images = self._images_of(task)
                inputs = images.last_image, images.source_video
                if images.source_video is not None:
                    check_model(images.source_video, pipeline)
                return (yield from to_latents(pipeline, images.image, task.request, *inputs, images.prepared))
            case "video":
                assert task.latents is not None, "denoised before"
                denoised = previous if isinstance(previous, Checkpoint) else Checkpoint.load(task.latents)
                pipeline = self._load_pipeline(task.request.model)
                images = self._images_of(task)
                inputs = images.last_image, images.source_video
                video = yield from to_video(pipeline, images.image, task.request, denoised, *inputs)
                is_watermarked = (self._settings.watermark or self.watermark) == "on"
                threshold = self._settings.safety_threshold if self._safety == "video" else None
                return FinishedVideo(video, is_watermarked, threshold)

    def preview(self, state: Step | TaskResult) -> bytes | None:
        """Return a JPEG of the estimated clean latents, of the last decoded frame, or of a generated image.

        If videos are checked, there is none of their frames before that.
        """
        from PIL import Image, ImageOps

        if isinstance(state, GeneratedImage):
            return _jpeg(state.image.rgb)
        if not isinstance(state, Step) or self._safety == "video":
            return None
        if state.frames is not None:
            return _jpeg(Image.fromarray(state.frames[-1]))
        if state.clean is None:
            return None
        assert self._projection is not None, "fitted before the first step"
        return _jpeg(ImageOps.scale(self._projection.image(state.clean), self._projection.factor))

    def _images_of(self, task: Task) -> TaskImages:
        """Return the job's images, and keep only them and those that were opened since, for the next job."""
        images = self._images.pop(task.job, None) or TaskImages.opened(task)
        kept = list(self._images.items())[-1:]
        self._images = dict([*kept, (task.job, replace(images, prepared=None))])
        return images

    def _fit_projection(self, pipeline: VideoPipeline) -> None:
        """Fit the previews' projection before the first step: it runs the VAE, and no module may move during steps."""
        from kinema.engine import Projection

        if self._projection is None:
            self._projection = Projection.fit(pipeline)

    def _load_pipeline(self, model: str) -> VideoPipeline:
        """Return the pipeline of a model; unload the previous one first."""
        from kinema.models import loading

        if self._pipeline is None or self._pipeline[0] != model:
            self._unload_pipeline()
            self._pipeline = (model, self._load_freeing_memory(lambda: loading.load(model, settings=self._settings)))
            self._state.model = model
        return self._pipeline[1]

    def _unload_pipeline(self) -> None:
        if self._pipeline is not None:
            self._pipeline[1].release()
        self._pipeline = self._projection = self._state.model = None

    def _load_image_pipeline(self, name: str) -> ImagePipeline:
        """Return the pipeline of a text-to-image model; it stays in CPU memory between jobs."""
        from kinema.models import image_pipeline

        if self._image_pipeline is None or self._image_pipeline[0] != name:
            self._unload_image_pipeline()
            loaded = self._load_freeing_memory(
                lambda: image_pipeline.load_image_pipeline(name, settings=self._settings)
            )
            self._image_pipeline = (name, loaded)
        return self._image_pipeline[1]

    def _load_freeing_memory(self, load: Callable[[], Loaded]) -> Loaded:
        """Call `load`; if memory does not suffice, unload all pipelines and try again."""
        try:
            return load()
        except InsufficientMemory:
            if self._pipeline is None and self._image_pipeline is None:
                raise
        self._unload_image_pipeline()
        self._unload_pipeline()
        return load()

    def _unload_image_pipeline(self) -> None:
        if self._image_pipeline is not None:
            self._image_pipeline[1].release()
        self._image_pipeline = None

    def _load_default(self, report: Callable[[str], object]) -> None:
        from pathlib import Path

        from kinema.models import loading
        from kinema.models.catalog import CATALOG
        from kinema.models.devices import has_kernels
        from kinema.models.resolve import installed_snapshot

        name = loading.default_model(self._settings)[0]
        entry = CATALOG.get(name)
        is_available = Path(name).expanduser().is_dir() if entry is None else entry.folder or installed_snapshot(entry)
        if not is_available:
            return
        report(f"loading {name}")
        pipeline = self._load_pipeline(name)
        if has_kernels(pipeline.device, pipeline.dtype):
            report(f"compiling the kernels of {name}")
            self._warm_up(pipeline)

    def _warm_up(self, pipeline: VideoPipeline) -> None:
        """Make frames in two steps at the default size: compiles the kernels, and records CUDA graphs.

        The video is not completed: its recipe would wait for the hash of the weights.
        """
        from PIL import Image

        from kinema.engine import generate
        from kinema.models.catalog import request_for

        request = request_for(
            model=pipeline.name, defaults=pipeline.defaults, seed=0, num_inference_steps=2, decode_chunk_size=None
        )
        self._fit_projection(pipeline)
        image = open_image(Image.new("RGB", (request.width, request.height), "grey"))
        with closing(generate(pipeline, image, request)) as events:
            for event in events:
                if isinstance(event, Step) and event.stage == "decode" and event.step == event.total:
                    break


class ServerWork(EngineWork):
    """The work of a server: puts a watermark into videos unless that is off, and checks their content if that is on."""

    watermark = "on"
    has_safety_check = True


def _device_and_gpus(settings: Settings) -> tuple[str, int]:
    """Return the device of this process, such as "cpu" or "cuda:0", and the number of GPUs of its group.

    Raises:
        InvalidRequest: the device is not available.
    """
    from kinema.models.devices import pick_device

    device = pick_device(settings.device)
    if device.type == "cuda":
        return f"cuda:{device.index or 0}", settings.gpus_per_video
    return str(device), 0 if device.type == "cpu" else 1


def _open_image(task: Task) -> InputImage:
    """Open the task's image; for a generated image, also read its generation parameters from the file."""
    from PIL import Image

    assert task.image is not None, "sent by the client, or generated before"
    image = replace(open_image(task.image), name=None)
    if task.request.prompt is None:
        return image
    with Image.open(task.image, formats=("PNG",)) as file:
        text = file.info.get(_IMAGE_GENERATION)
    return image if text is None else replace(image, image_generation=ImageGeneration.model_validate_json(text))


def _jpeg(image: Image.Image) -> bytes:
    """Return an image as a JPEG, at most PREVIEW_WIDTH wide."""
    from PIL import Image as Images

    width = min(PREVIEW_WIDTH, image.width)
    small = image.resize((width, max(1, round(image.height * width / image.width))), Images.Resampling.BILINEAR)
    data = BytesIO()
    small.save(data, "JPEG", quality=80)
    return data.getvalue()
