"""`stc-export`: a Hugging Face checkpoint becomes a bundle of ONNX graphs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from stc import contracts, settings
from stc.bundles.writer import BundleWriter
from stc.errors import SettingsError, StcError
from stc.manifest import ON_REQUEST, Precision, Weights
from stc.method.graphs import vision_graphs
from stc.settings import PRESETS
from stc.shell import command
from stc.shell.command import Console
from stc.shell.progress import PLAIN_S, Progress
from stc.shell.ranges import whole_flag

MODELS = ("llava-ov", "demo")
SIZES = ("0.5b", "7b")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command.run(lambda: _export(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="stc-export", description=__doc__)
    parser.add_argument("--model", required=True, choices=MODELS, help="what is exported")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint", metavar="DIR_OR_ID", help="LlavaOnevision checkpoint, local or on the hub"
    )
    source.add_argument(
        "--random-weights",
        nargs="?",
        choices=SIZES,
        const=SIZES[0],
        metavar="0.5b|7b",
        help="full-size architecture with seeded weights, to measure speed; default size 0.5b",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default out/MODEL")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32", help="of weights, default fp32"
    )
    parser.add_argument(
        "--vision-only", action="store_true", help="no language graphs: kept tokens, no answers"
    )
    parser.add_argument(
        "--int4",
        type=whole_flag(),
        choices=ON_REQUEST["int4"],
        metavar="32|128",
        help="language matrices in four bits as well, so many values to a scale; default none",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    settings.add_flags(parser)
    return parser.parse_args(arguments)


def _export(flags: argparse.Namespace) -> int:
    if flags.model == "llava-ov" and not (flags.checkpoint or flags.random_weights):
        raise SettingsError(
            "--model llava-ov", "got no weights", "--checkpoint DIR_OR_ID or --random-weights"
        )
    if flags.model == "demo" and (flags.checkpoint or flags.random_weights):
        raise SettingsError("--model demo", "got other weights", "none, the model is built in")
    if flags.int4 and flags.vision_only:
        raise SettingsError("--int4", "cannot be combined with --vision-only")
    precision: Precision = flags.precision
    output = flags.output or Path("out") / flags.model
    BundleWriter(output, force=flags.force).refuse_taken()

    kind: Weights = "demo"
    source: str | None = None
    if flags.checkpoint:
        kind, source = "checkpoint", flags.checkpoint
    elif flags.random_weights:
        kind, source = "random", f"llava-ov-{flags.random_weights}"

    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # torch takes seconds to import: after what was asked for is known to be right.
    try:
        from stc.export.bundle_export import export_bundle
        from stc.export.weights import open_weights
    except ModuleNotFoundError as error:
        raise StcError(
            "stc-export", f"{error.name} is not installed", fix="pip install 'stc[export]'"
        ) from error

    with open_weights(kind, source) as weights:
        pooled = weights.spec.pooled
        default = settings.scaled(PRESETS[settings.DEFAULT_PRESET], pooled)
        chosen = settings.from_flags(flags, default, pooled)
        language = None if flags.vision_only else weights.language()
        graphs = len(vision_graphs(weights.spec.blocks))
        if language is not None:
            graphs += len(contracts.language_graphs(language.spec.blocks))
        on_disk = kind != "random"
        with _progress(graphs + on_disk) as tick:
            manifest = export_bundle(
                weights,
                output,
                language=language,
                int4=flags.int4,
                model=flags.model,
                kind=kind,
                precision=precision,
                settings=chosen,
                force=flags.force,
                tick=tick,
            )
    size = sum(file.size_bytes for file in manifest.files)
    whole = "random weights, so no checkpoint to compare the whole model with"
    if on_disk:
        does = "sees" if language is None else "answers"
        whole = f"the whole model {does} as transformers' does"
    made = [name for name, variant in manifest.variants.items() if not variant.default]
    again = "".join(f", {name} beside them" for name in made)
    command.tell(
        f"{output}: {len(manifest.graphs)} graphs{again}, {precision}, {size / 1e6:,.0f} MB, "
        f"each equal to PyTorch; {whole}"
    )
    return 0


@contextmanager
def _progress(graphs: int) -> Iterator[Callable[[str], None]]:
    columns = (
        TextColumn("exporting {task.fields[graph]:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), every_s=PLAIN_S) as progress:
        task = progress.add_task("graphs exported", total=graphs, graph="")

        def tick(graph: str) -> None:
            progress.update(task, graph=graph)
            progress.advance(task)

        yield tick


if __name__ == "__main__":
    sys.exit(main())
