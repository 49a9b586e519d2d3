"""Options of `kinema generate` for several videos and for their files."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from kinema.cli.options import OUTPUT_PANEL
from kinema.cli.variations import MAX_SEEDS, SHEET_SEEDS

SEVERAL_PANEL = "Several videos"

NumVideos = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=MAX_SEEDS,
        rich_help_panel=SEVERAL_PANEL,
        show_default=False,
        help="Videos per image or prompt, with the seeds seed to seed + N - 1. If --seed is -1 or unset, the first "
        f"seed is chosen at random once for all images. [dim]Default 1, with --sheet {SHEET_SEEDS}.[/dim]",
    ),
]
OnError = Annotated[
    Literal["continue", "stop"],
    typer.Option(
        metavar="continue|stop",
        rich_help_panel=SEVERAL_PANEL,
        help="What an invalid image or a failed generation does to the other videos. continue: they are still made, "
        "every failure is named at the end, and the exit code is 6. Problems that concern all, such as an invalid "
        "parameter, always stop the run.",
    ),
]
Sheet = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.png",
        rich_help_panel=SEVERAL_PANEL,
        help="Also compare motions and seeds of one image in a PNG: a row per motion bucket, a column per seed, each "
        "with the last frame and its difference from the first. The videos are STEM-motionM-seedN.mp4.",
    ),
]
Motions = Annotated[
    str | None,
    typer.Option(
        metavar="INT,INT,…",
        rich_help_panel=SEVERAL_PANEL,
        help="Motion bucket ids of the rows of --sheet, such as 40,80,127. Unset: half of --motion-bucket-id, itself, "
        "and one and a half of it.",
    ),
]
Crf = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
        help="Quality of mp4 (1 to 51) or webm (0 to 63): higher values give smaller files. "
        "[dim]Default 18 for mp4, 20 for webm.[/dim]",
    ),
]
Watermark = Annotated[
    bool | None,
    typer.Option(
        "--watermark/--no-watermark",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
        help="Put an invisible watermark into the frames of the file, by which it can be recognised as generated. "
        "[dim]Unset: off, or as KINEMA_WATERMARK.[/dim]",
    ),
]
Boomerang = Annotated[
    bool,
    typer.Option(
        "--boomerang",
        rich_help_panel=OUTPUT_PANEL,
        help="Play the frames forward and then backward; the first and the last frame are not repeated.",
    ),
]
