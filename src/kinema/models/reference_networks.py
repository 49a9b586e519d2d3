"""The three networks as diffusers and transformers define them: for the reference engine and sequential offload."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kinema.models import hub
from kinema.models.model_files import CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from kinema.models.memory_plan import Component


def make_reference_network(component: Component, config: Mapping[str, Any]) -> torch.nn.Module:
    """Return a network with its weights on the meta device, from its `config.json`.

    Raises:
        ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError: if the configuration is
            invalid.
    """
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    fields = {name: value for name, value in config.items() if not name.startswith("_")}
    with hub.quiet(), init_empty_weights():
        module: torch.nn.Module
        if component == "image_encoder":
            module = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**fields))
        else:
            module = getattr(diffusers, CLASSES[component]).from_config(fields)
    return module


def as_reference(component: Component, network: torch.nn.Module) -> torch.nn.Module:
    """Return the reference of one of `kinema.models.networks` in CPU memory; it shares the tensors."""
    module = make_reference_network(component, asdict(network.config))  # type: ignore[call-overload]
    module.load_state_dict(network.state_dict(), assign=True)
    return module.eval().requires_grad_(requires_grad=False)
