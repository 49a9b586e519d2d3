"""The options of `kinema generate` and `kinema batch`: the same, but for those that one of them can't have."""

import pytest
import typer

from kinema.cli import app
from kinema.values import VideoRequest

GENERATE_ALONE = {
    "images", "prompt", "output", "num_videos", "on_error", "crf", "boomerang", "sheet", "motions", "contact_sheet",
    "save_image", "force",
}  # fmt: skip
BATCH_ALONE = {"sources", "out", "seeds", "server", "api_key"}


@pytest.fixture(scope="module")
def options():
    commands = typer.main.get_command(app).commands
    return {name: {option.name: option for option in commands[name].params} for name in ("generate", "batch")}


def test_generate_and_batch_have_the_same_options_but_for_those_of_one(options):
    generate, batch = options["generate"], options["batch"]
    assert generate.keys() - batch.keys() == GENERATE_ALONE
    assert batch.keys() - generate.keys() == BATCH_ALONE
    shared = generate.keys() & batch.keys()
    assert shared >= {"last_image", "seconds", "size", "watermark", *VideoRequest.model_fields} - {"prompt"}
    for name in shared:
        assert vars(generate[name])["help"] == vars(batch[name])["help"]
        assert (generate[name].opts, generate[name].default) == (batch[name].opts, batch[name].default)


def test_commands_that_write_videos_sign_and_watermark_by_the_same_options():
    commands = typer.main.get_command(app).commands
    named = {name: {option.name: vars(option) for option in commands[name].params} for name in commands}
    for option, names in (("credentials", ("extend", "remake")), ("watermark", ("extend",))):
        for name in names:
            for fact in ("help", "opts", "secondary_opts", "default"):
                assert named[name][option][fact] == named["generate"][option][fact]
