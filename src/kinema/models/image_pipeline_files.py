"""A painter's folder, judged as `files` judges an SVD's: what it is, and which of its files will be read.

A painter is any text-to-image pipeline of diffusers, so its parts are those that its index names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kinema.errors import NotAnImagePipeline, WeightsMissing
from kinema.models import hub
from kinema.models.model_files import INDEX, PICKLES, PIPELINE, SVD, Layout, choose_weights, no_weights, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

# Not loaded: the first two judge pictures that are drawn, the third is for adapters that take pictures as prompts.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
# Of a tokenizer or processor; weights of other libraries that lie beside are not taken.
SMALL_FILES = (".json", ".txt", ".model", ".jinja")
ANY_IMAGE_PIPELINE = "any text-to-image pipeline of diffusers (Stable Diffusion 1 to 3, XL, Flux and more) is"


@dataclass(frozen=True, slots=True)
class ImagePipelinePart:
    """One part that a pipeline's index names: a network, a scheduler, or a tokenizer."""

    name: str
    library: str
    kind: str

    @property
    def is_scheduler(self) -> bool:
        """Whether it is the sampler."""
        return self.kind.endswith("Scheduler")

    @property
    def is_network(self) -> bool:
        """Whether it has weights."""
        return not self.is_scheduler and not any(word in self.kind for word in ("Tokenizer", "Processor", "Extractor"))

    @property
    def stem(self) -> str:
        """How the names of its weight files begin."""
        return "model" if self.library == "transformers" else "diffusion_pytorch_model"


def parts_of(index: Mapping[str, Any]) -> list[ImagePipelinePart]:
    """The parts that are loaded of a pipeline, by its index."""
    return [
        ImagePipelinePart(name, *entry)
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)
        if name not in LEFT_OUT
    ]


class ImagePipelineLayout:
    """The layout of diffusers' text-to-image pipelines."""

    def check(self, folder: Path, where: str | None = None) -> None:
        """Refuse what can't draw a still from a prompt alone.

        Raises:
            NotAnImagePipeline: saying what it is instead.
            WeightsMissing: when it is no model at all.
        """
        where = where or str(folder)
        if not (folder / INDEX).is_file():
            for path in sorted(folder.glob("*")):
                if path.suffix in (".safetensors", *PICKLES):
                    raise NotAnImagePipeline(
                        f"{path} is a checkpoint in one file, and Kinema reads folders in diffusers' layout: convert "
                        "it by diffusers' from_single_file and save_pretrained, or take --image-model sd-2.1-base"
                    )
            raise WeightsMissing(f"{where} has no {INDEX}, so it is no model in diffusers' layout")
        index = read_json(folder / INDEX)
        name = str(index.get("_class_name"))
        if name == PIPELINE:
            raise NotAnImagePipeline(f"{where} makes videos from stills, and draws none: give it as the model")
        if name not in _text_to_image():
            raise NotAnImagePipeline(
                f"{where} is a {name}, which draws no still from a prompt alone; {ANY_IMAGE_PIPELINE} usable"
            )
        for part in parts_of(index):
            if part.library not in ("diffusers", "transformers"):
                raise NotAnImagePipeline(
                    f"{where} has a {part.kind} of {part.library} for its {part.name}, which runs code "
                    "of its own; parts of diffusers and transformers alone are loaded"
                )

    def needed(self, folder: Path, names: Iterable[str], *, half: bool, where: str) -> list[str]:
        """Every file that loading will read.

        Raises:
            WeightsMissing: naming what is not there; pickles are never taken in place of safetensors.
        """
        here = set(names)
        if INDEX not in here:
            raise WeightsMissing(f"{where} has no {INDEX}, so it is no model in diffusers' layout")
        index = read_json(folder / INDEX)
        parts = parts_of(index)
        if not any(part.is_network for part in parts):
            raise WeightsMissing(f"{where}: its {INDEX} names no network, so there is nothing to load")
        wanted = [INDEX]
        for part in parts:
            if part.is_network:
                weights = choose_weights(here, part.name, half=half, stem=part.stem)
                if weights is None:
                    raise no_weights(here, part.name, where, stem=part.stem, pipeline=str(index.get("_class_name")))
                wanted += [f"{part.name}/config.json", *weights.files, *([weights.index] if weights.index else [])]
            elif part.is_scheduler:
                wanted.append(f"{part.name}/scheduler_config.json")
            else:
                small = {name for name in here if name.startswith(f"{part.name}/") and name.endswith(SMALL_FILES)}
                wanted += sorted(small) or [f"{part.name}/"]
        for name in wanted:
            if name not in here:
                raise WeightsMissing(f"{where} has no {name}; it is incomplete: fetch it again")
        return wanted

    def stems(self, folder: Path) -> Mapping[str, str]:
        """The networks that the index names."""
        return {part.name: part.stem for part in parts_of(read_json(folder / INDEX)) if part.is_network}


def _text_to_image() -> set[str]:
    """The names of diffusers' text-to-image pipelines that ask for nothing beside a prompt."""
    import diffusers  # noqa: F401 - these two set their loggers up when they are imported, and are silenced afterwards
    import transformers  # noqa: F401

    with hub.quiet():
        from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING as PIPELINES

    names = {kind.__name__ for kind in PIPELINES.values()}
    return {name for name in names if "Control" not in name and "Kontext" not in name}


class AnyPipelineLayout:
    """Whichever of the two a folder's index says: for a download whose use is not known yet."""

    def check(self, folder: Path, where: str | None = None) -> None:
        """As the layout that the index names."""
        self._of(folder).check(folder, where)

    def needed(self, folder: Path, names: Iterable[str], *, half: bool, where: str) -> list[str]:
        """As the layout that the index names."""
        return self._of(folder).needed(folder, names, half=half, where=where)

    def stems(self, folder: Path) -> Mapping[str, str]:
        """As the layout that the index names."""
        return self._of(folder).stems(folder)

    def _of(self, folder: Path) -> Layout:
        index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
        return SVD if index.get("_class_name", PIPELINE) == PIPELINE else IMAGE_PIPELINE


IMAGE_PIPELINE = ImagePipelineLayout()
EITHER = AnyPipelineLayout()
