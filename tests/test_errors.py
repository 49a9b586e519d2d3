"""Every error class has a code of its own, which is part of the HTTP API."""

import re

from kinema import errors
from kinema.errors import InsufficientMemory, KinemaError, NotAnSvdModel


def error_classes(base=KinemaError):
    """The error classes of `kinema.errors`, whatever other modules are imported."""
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from error_classes(kind)


def test_error_code_is_the_class_name_in_snake_case():
    assert (InsufficientMemory.code, NotAnSvdModel("no").code) == ("insufficient_memory", "not_an_svd_model")
    for kind in error_classes():
        assert kind.code == re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
