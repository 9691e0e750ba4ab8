"""The `hf-autosparse` command. Each command imports what it needs, so that help comes at once."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .reports.sparsity import SparsityReport
    from .serialization.pack import PackSummary

app = typer.Typer(
    help="Look at sparse models, compare them and make their files small.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[
    str,
    typer.Argument(
        help="Directory of a saved model, a .safetensors file, or a repository of the Hub.", show_default=False
    ),
]
Source = Annotated[
    str, typer.Argument(help="Directory of a saved model, or a repository of the Hub.", show_default=False)
]
Output = Annotated[Path, typer.Argument(help="Directory to make, or an empty one.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to fail
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    app()


def _version(asked: bool) -> None:
    if asked:
        from .utils.version import __version__

        _print(f"hf-autosparse {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def report(
    model: Model,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the layers as CSV.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the layers into this .png, .pdf or .svg as well.", show_default=False)
    ] = None,
) -> None:
    """Show how sparse each layer of a saved model is.

    Works on any model in safetensors, pruned by any tool, plain or packed; the model is not loaded.

    \b
    Examples:
    hf-autosparse report runs/readme/final
    hf-autosparse report runs/readme/final --json
    hf-autosparse report user/model --csv > layers.csv
    hf-autosparse report runs/readme/final --plot layers.png
    """
    if as_json and as_csv:
        raise typer.BadParameter("give --json or --csv, not both")
    with _errors():
        from .reports.checkpoint import checkpoint_report

        draw = _plotter() if plot is not None else None
        result = checkpoint_report(model, progress=True)
        if draw is not None and plot is not None:
            draw(result, plot)
        if as_json:
            _print(json.dumps(result.to_dict(), indent=2))
        elif as_csv:
            _print(result.to_csv().rstrip("\n"))
        else:
            _show(result.parts())


@app.command()
def pack(source: Source, output: Output) -> None:
    """Copy a saved model into the packed format.

    The copy is smaller by nearly its share of zeros, and loads with from_pretrained once hf_autosparse is imported.

    \b
    Example:
    hf-autosparse pack runs/readme/final runs/readme/packed
    """
    with _errors():
        from .serialization.locate import locate
        from .serialization.pack import pack

        summary = pack(locate(source, everything=True), output, progress=True)
        _print(_rewritten("packed", summary, output))


@app.command()
def unpack(source: Source, output: Output) -> None:
    """Copy a packed model into a plain one.

    The copy has the zeros written out, and loads without this package.

    \b
    Example:
    hf-autosparse unpack runs/readme/packed runs/readme/plain
    """
    with _errors():
        from .serialization.locate import locate
        from .serialization.pack import unpack

        summary = unpack(locate(source, everything=True), output, progress=True)
        _print(_rewritten("unpacked", summary, output))


@app.command()
def diff(a: Model, b: Model, as_json: AsJson = False) -> None:
    """Compare two saved models tensor by tensor.

    Shows each tensor that differs in shape, dtype or values, and the zeros that it gained, lost and kept. How a model
    is stored (packed, sharded) makes no difference. Exits with 0 if the two are equal, 1 if they differ, 2 in case of
    trouble.

    \b
    Examples:
    hf-autosparse diff runs/readme/final runs/readme/packed
    hf-autosparse diff user/model runs/readme/final --json
    """
    with _errors():
        from .reports.diff import checkpoint_diff

        result = checkpoint_diff(a, b, progress=True)
        if as_json:
            _print(json.dumps(result.to_dict(), indent=2))
        else:
            _show(result.parts())
        raise typer.Exit(1 if result.different else 0)


@app.command()
def methods() -> None:
    """List the methods, their configurations and the papers behind them."""
    import inspect

    from .methods import SparseConfig, available_methods, config_class, method_of
    from .utils.tables import table

    shared = dataclasses.fields(SparseConfig)
    known = {(field.name, field.default) for field in shared}
    rows = []
    for name in available_methods():
        config = config_class(name)
        own = [field for field in dataclasses.fields(config) if (field.name, field.default) not in known]
        what = (inspect.getdoc(config) or "").splitlines()[0]
        rows.append((name, what, f"{config.__name__}({_arguments(own)})", method_of(config).reference))
    every = f"Every configuration also takes {_arguments(shared)}."
    _show([table("methods", ["name", "what it does", "configuration", "reference"], rows, words=4), every])


def _arguments(fields: Iterable[dataclasses.Field[Any]]) -> str:
    """The fields with their defaults as a call shows them, those without a default first."""
    parts = []
    for field in fields:
        if field.default is not dataclasses.MISSING:
            parts.append(f"{field.name}={field.default!r}")
        elif field.default_factory is not dataclasses.MISSING:
            parts.append(f"{field.name}={field.default_factory()!r}")
        else:
            parts.insert(0, field.name)
    return ", ".join(parts)


@app.command()
def prune(
    model: Source,
    output: Annotated[Path, typer.Option(help="Directory to make; it must not exist yet.", show_default=False)],
    sparsity: Annotated[
        float | None, typer.Option(help="Fraction of zeros to make; that of the pattern, or 0.5.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="magnitude, wanda or sparsegpt.")] = "sparsegpt",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Text file, a text a line; magnitude does without.", show_default=False),
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="N:M, such as 2:4.", show_default=False)] = None,
    allocation: Annotated[str, typer.Option(help="uniform, erk or owl.")] = "uniform",
    target_module: Annotated[
        list[str] | None, typer.Option(help="Pattern of layers to prune; may be repeated.", show_default=False)
    ] = None,
    dense_module: Annotated[
        list[str] | None, typer.Option(help="Pattern of layers to leave dense; may be repeated.", show_default=False)
    ] = None,
    first_last: Annotated[str, typer.Option(help="What stays dense: modules, blocks or none.")] = "modules",
    unreached: Annotated[str, typer.Option(help="A layer that no text reaches: dense or magnitude.")] = "dense",
    samples: Annotated[int, typer.Option(help="Texts to use, at most.")] = 128,
    max_length: Annotated[int, typer.Option(help="Tokens of a text, at most.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Texts in a batch, at most.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="Where to compute; a GPU if there is one.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prune a saved model in one shot, without training.

    Shows the error of each layer's output. One block's weights are in memory at a time. A run that was killed goes on
    when it is started again.

    \b
    Examples:
    hf-autosparse prune user/model --sparsity 0.5 --calibration texts.txt --output pruned
    hf-autosparse prune user/model --pattern 2:4 --method wanda --calibration texts.txt --output pruned
    """
    with _errors():
        from .oneshot.prune import prune

        result = prune(
            model,
            sparsity=sparsity,
            method=method,
            calibration=calibration,
            pattern=pattern,
            allocation=allocation,
            target_modules=target_module,
            dense_modules=dense_module or (),
            first_last=first_last,
            unreached=unreached,
            output=output,
            samples=samples,
            max_length=max_length,
            batch_size=batch_size,
            device=device,
        )
        if as_json:
            _print(result.to_json().rstrip("\n"))
        else:
            _show(result.parts())


def _rewritten(verb: str, summary: PackSummary, output: Path) -> str:
    from rich.filesize import decimal

    before, after = summary.source_bytes, summary.output_bytes
    return (
        f"{verb} {len(summary.packed)} of {len(summary.packed) + len(summary.plain)} tensors:"
        f" {decimal(before)} -> {decimal(after)} ({after / before:.1%} of it), in {output}"
    )


def _plotter() -> Callable[[SparsityReport, Path], Path]:
    """Loaded before the work begins, so that a missing library is told at once."""
    try:
        from .plots.figures import plot_layers
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ValueError(str(error)) from error  # names the extra to install
    return plot_layers


@contextmanager
def _errors() -> Iterator[None]:
    """What is wrong with the input or the machine becomes one line on stderr and exit code 2."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        from .utils.tables import printable

        typer.echo(f"error: {printable(' '.join(str(error).split()))}", err=True)
        raise typer.Exit(2) from error


def _show(parts: Iterable[RenderableType]) -> None:
    """Tables and lines: as wide as the terminal, or in full where there is none."""
    from rich.console import Console

    from .utils.tables import UNBOUNDED

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = UNBOUNDED
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    _print(capture.get().rstrip("\n"))


def _print(text: str) -> None:
    """Print, and don't mind a reader that has seen enough (`| head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
