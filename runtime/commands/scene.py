"""A generated scene as a video, and a file of questions to it beside it: what stc-run can be given.

The video is lossless (FFV1 in Matroska), so that what is right about the scene is right about it.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from stc.errors import SettingsError
from stc.runtime.answers.questions import Question
from stc.runtime.evaluate.question_file import write_questions
from stc.runtime.output import whole_file
from stc.runtime.video.decoding.libraries import require_av
from stc.scenes import FPS, make_scene
from stc.scenes.chance import generator
from stc.scenes.store import Split
from stc.shell import command
from stc.shell.ranges import MAX_COUNT, whole_flag

ENDING = ".mkv"
QUESTIONS = 10
_TICK_S = Fraction(1, 1000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command.run(lambda: _write(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="python -m stc.runtime.commands.scene", description=__doc__)
    add = parser.add_argument
    add("--split", choices=get_args(Split), default="test", help="of the scenes, default test")
    seed = "which scene of the split; the same number is the same scene everywhere"
    add("--seed", type=whole_flag(0, MAX_COUNT), required=True, metavar="N", help=seed)
    count = f"questions at most, default {QUESTIONS}"
    add(
        "--questions",
        type=whole_flag(1, MAX_COUNT),
        default=QUESTIONS,
        metavar="N",
        help=count,
    )
    told = f"video; its questions go to the .json of the same name ({ENDING})"
    add("--output", type=Path, required=True, metavar=f"FILE{ENDING}", help=told)
    return parser.parse_args(arguments)


def _write(flags: argparse.Namespace) -> int:
    path: Path = flags.output
    if path.suffix != ENDING:
        raise SettingsError("--output", f"got {path}", f"a name that ends in {ENDING}")
    require_av()
    scene = make_scene(flags.split, flags.seed)
    drawn = scene.questions(generator(flags.seed), flags.questions)
    asked = [
        Question(one.text, one.frame / FPS, one.answer)
        for one in sorted(drawn, key=lambda one: (one.frame, one.text))
    ]
    beside = path.with_suffix(".json")
    try:
        with whole_file(path) as file:
            file.write(lossless(scene.frames(), FPS))
            write_questions(beside, asked)
    except OSError as error:
        got = f"cannot be written ({error.strerror or error})"
        fix = "check its folder and the space left, or choose another path"
        raise SettingsError(f"--output {path}", got, fix=fix) from error
    command.tell(
        f"{path}: scene {flags.seed} of {flags.split}, {scene.frame_count} frames; "
        f"{beside}: {len(asked)} questions"
    )
    return 0


def lossless(frames: NDArray[np.uint8], fps: float) -> bytes:
    """A Matroska file of `frames`, uint8 [F, height_px, width_px, 3] RGB, `fps` of them a second.

    Decoded they are the same to the bit.
    """
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        stream.codec_context.time_base = stream.time_base = _TICK_S
        for index, rgb in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            picture.pts, picture.time_base = round(index / fps / _TICK_S), _TICK_S
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
