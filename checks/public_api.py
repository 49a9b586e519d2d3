"""Print the public API: each name of `kinema.__all__` with its signature, fields or base class, one per line.

docs/public-api.txt stores the output, and a test compares both. docs/stability.md says how the API may change.
"""

import dataclasses
import functools
import inspect
import re

import kinema

# The stable attributes of loaded models; the others belong to the engine.
PIPELINE_ATTRIBUTES = (
    "name",
    "device",
    "dtype",
    "engine",
    "precision",
    "gpus",
    "defaults",
    "notes",
    "identity",
    "release",
)


def describe(name: str) -> list[str]:
    """Return the lines for one public name."""
    value = getattr(kinema, name)
    if inspect.isfunction(value):
        return [f"{name}(", *(f"    {parameter}," for parameter in parameters(value)), f") -> {returned(value)}"]
    lines = [f"class {name}({', '.join(base.__name__ for base in value.__bases__ if base is not object)})"]
    if issubclass(value, kinema.KinemaError):
        return [f"{lines[0]}: code {value.code}"]
    if hasattr(value, "model_fields"):
        lines += [f"    {field}: {kind(info.annotation)}" for field, info in value.model_fields.items()]
    elif dataclasses.is_dataclass(value):
        fields = [field for field in dataclasses.fields(value) if is_stable(name, field.name)]
        lines += [f"    {field.name}: {kind(field.type)}" for field in fields]
    for method, function in vars(value).items():
        if method.startswith("_") or not is_stable(name, method):
            continue
        if isinstance(function, property | functools.cached_property):
            lines.append(f"    {method} (property)")
        elif inspect.isfunction(inspect.unwrap(getattr(function, "__func__", function))):
            signature = ", ".join(parameters(getattr(value, method)))
            lines.append(f"    {method}({signature}) -> {returned(getattr(value, method))}")
    return lines


def is_stable(name: str, attribute: str) -> bool:
    """Return whether an attribute of a public class is public."""
    return not name.endswith("Pipeline") or attribute in PIPELINE_ATTRIBUTES


def parameters(function: object) -> list[str]:
    """Return the parameters of a function as text, with `*` before the first that is keyword-only."""
    texts, is_keyword = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not is_keyword:
            texts.append("*")
            is_keyword = True
        annotation = "" if parameter.annotation is inspect.Parameter.empty else f": {kind(parameter.annotation)}"
        default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
        stars = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
        texts.append(f"{stars}{parameter.name}{annotation}{default}")
    return texts


def returned(function: object) -> str:
    """Return the type that a function returns."""
    return kind(inspect.signature(function).return_annotation)


def kind(annotation: object) -> str:
    """Return an annotation as text, without module names."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", repr(annotation))
    if (not isinstance(annotation, str) and "[" in repr(annotation)) or "|" in repr(annotation):
        text = repr(annotation)
    text = re.sub(r"ForwardRef\('([^']*)'[^)]*\)", r"\1", str(text).strip("'"))
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", text)


if __name__ == "__main__":
    for public in sorted(kinema.__all__):
        print("\n".join(describe(public)))
