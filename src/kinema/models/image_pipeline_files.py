"""Checks of a text-to-image pipeline's folder: the kind of pipeline, and the files that loading reads.

Any text-to-image pipeline of diffusers is supported, so its components are those that its index lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kinema.errors import ModelIncomplete, NotAnImagePipeline
from kinema.models import hub
from kinema.models.model_files import (
    INDEX,
    PICKLES,
    PIPELINE,
    SVD,
    Layout,
    choose_weights,
    class_name,
    no_weights,
    read_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

# Not loaded: the first two classify generated images, the third is for adapters with image prompts.
SKIPPED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")
# Of a tokenizer or processor; weights for other libraries in the same folder are not read.
TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja")
# Text-to-image pipelines, known without importing all of diffusers' pipelines, which takes seconds.
_COMMON = frozenset({"StableDiffusionPipeline", "StableDiffusionXLPipeline"})
SUPPORTED = "a text-to-image pipeline of diffusers (Stable Diffusion 1 to 3, XL, Flux and others)"


@dataclass(frozen=True, slots=True)
class PipelineComponent:
    """One component that a pipeline's index lists: a network, scheduler or tokenizer."""

    name: str
    library: str
    kind: str

    @property
    def is_scheduler(self) -> bool:
        """Whether it is the scheduler."""
        return self.kind.endswith("Scheduler")

    @property
    def is_network(self) -> bool:
        """Whether it has weights."""
        return not self.is_scheduler and not any(word in self.kind for word in ("Tokenizer", "Processor", "Extractor"))

    @property
    def stem(self) -> str:
        """Common prefix of its weight files' names."""
        return "model" if self.library == "transformers" else "diffusion_pytorch_model"


def components_of(index: Mapping[str, Any]) -> list[PipelineComponent]:
    """Return the components of a pipeline's index that are loaded."""
    return [
        PipelineComponent(name, *entry)
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)
        if name not in SKIPPED_COMPONENTS
    ]


class ImagePipelineLayout:
    """The layout of diffusers' text-to-image pipelines."""

    def check(self, folder: Path, where: str | None = None) -> None:
        """Reject a model that can't generate an image from a prompt alone.

        Raises:
            NotAnImagePipeline: if it is another kind of model; names that kind.
            ModelIncomplete: if it is not a model.
        """
        where = where or str(folder)
        if not (folder / INDEX).is_file():
            for path in sorted(folder.glob("*")):
                if path.suffix in (".safetensors", *PICKLES):
                    raise NotAnImagePipeline(
                        f"{path} is a single-file checkpoint, but Kinema loads folders in diffusers' layout; convert "
                        "it with diffusers' from_single_file and save_pretrained, or use --image-model sd-2.1-base"
                    )
            raise ModelIncomplete(f"{where} has no {INDEX}, so it is not a model in diffusers' layout")
        index = read_json(folder / INDEX)
        name = class_name(index, where)
        if name == PIPELINE:
            raise NotAnImagePipeline(
                f"{where} generates videos, not images; use it as the model, not as the image model"
            )
        if name not in _COMMON and name not in _text_to_image():
            raise NotAnImagePipeline(
                f"{where} is a {name}, which can't generate an image from a prompt alone; use {SUPPORTED}"
            )
        for component in components_of(index):
            if component.library not in ("diffusers", "transformers"):
                raise NotAnImagePipeline(
                    f"{where}: its {component.name} is a {component.kind} of {component.library}, which "
                    "runs custom code; only components of diffusers and transformers are loaded"
                )

    def needed(self, folder: Path, names: Iterable[str], *, half: bool, where: str) -> list[str]:
        """Return the files that loading reads.

        Raises:
            ModelIncomplete: if a file is missing; names it. Pickles never replace safetensors.
        """
        available = set(names)
        if INDEX not in available:
            raise ModelIncomplete(f"{where} has no {INDEX}, so it is not a model in diffusers' layout")
        index = read_json(folder / INDEX)
        components = components_of(index)
        if not any(component.is_network for component in components):
            raise ModelIncomplete(
                f"{where}: {INDEX} lists no component with weights (unet, transformer, vae, text_encoder); download "
                "the model again, or choose another"
            )
        wanted = [INDEX]
        for component in components:
            if component.is_network:
                weights = choose_weights(available, component.name, half=half, stem=component.stem)
                if weights is None:
                    raise no_weights(
                        available, component.name, where, stem=component.stem, pipeline=str(index.get("_class_name"))
                    )
                wanted += [f"{component.name}/config.json", *weights.files, *([weights.index] if weights.index else [])]
            elif component.is_scheduler:
                wanted.append(f"{component.name}/scheduler_config.json")
            else:
                small = {
                    name
                    for name in available
                    if name.startswith(f"{component.name}/") and name.endswith(TOKENIZER_FILES)
                }
                wanted += sorted(small) or [f"{component.name}/"]
        for name in wanted:
            if name not in available:
                raise ModelIncomplete(f"{where} has no {name}; it is incomplete, download it again")
        return wanted

    def stems(self, folder: Path) -> Mapping[str, str]:
        """Return the networks that the index lists, with the prefix of their file names."""
        return {
            component.name: component.stem
            for component in components_of(read_json(folder / INDEX))
            if component.is_network
        }


def _text_to_image() -> set[str]:
    """Return the names of diffusers' text-to-image pipelines that need only a prompt."""
    import diffusers  # noqa: F401 - both configure their loggers on import, so quiet() must come after it
    import transformers  # noqa: F401

    with hub.quiet():
        from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING as PIPELINES

    names = {kind.__name__ for kind in PIPELINES.values()}
    return {name for name in names if "Control" not in name and "Kontext" not in name}


class AnyPipelineLayout:
    """Either layout, depending on the folder's index: for a download of unknown kind."""

    def check(self, folder: Path, where: str | None = None) -> None:
        """See the layout that the index selects."""
        self._of(folder).check(folder, where)

    def needed(self, folder: Path, names: Iterable[str], *, half: bool, where: str) -> list[str]:
        """See the layout that the index selects."""
        return self._of(folder).needed(folder, names, half=half, where=where)

    def stems(self, folder: Path) -> Mapping[str, str]:
        """See the layout that the index selects."""
        return self._of(folder).stems(folder)

    def _of(self, folder: Path) -> Layout:
        index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
        return SVD if index.get("_class_name", PIPELINE) == PIPELINE else IMAGE_PIPELINE


IMAGE_PIPELINE = ImagePipelineLayout()
EITHER = AnyPipelineLayout()
