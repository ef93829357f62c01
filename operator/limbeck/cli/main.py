"""`limbeck`: check, plan and run compression jobs, here or on a cluster."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from limbeck import names
from limbeck.cli import cluster_commands, prune_record

app = typer.Typer(
    name="limbeck",
    help="Compress large multimodal models: distil, quantize, evaluate, gate and export in one job.",
    epilog="Exit codes: 0 ok, 1 the job failed, 2 usage or refused, 3 no cluster or no answer, 4 time is up.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobFile = Annotated[str, typer.Argument(help="Job file, YAML or JSON; - reads standard input.", show_default=False)]
JobFileOption = Annotated[
    str,
    typer.Option("-f", "--filename", help="Job file, YAML or JSON; - reads standard input.", show_default=False),
]


@app.command()
def validate(filename: JobFileOption) -> None:
    """Check a job file; each error names file, line and field."""
    from limbeck.cli import validate as verb

    raise typer.Exit(verb.validate(filename))


@app.command()
def plan(
    job: Annotated[str | None, typer.Argument(help="Job file.", show_default=False)] = None,
    filename: Annotated[str | None, typer.Option("-f", "--filename", help="Job file.", show_default=False)] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="table or yaml (the resolved job).")] = "table",
) -> None:
    """Show what would be derived and why, without running anything."""
    from limbeck.cli import plan as verb

    source = job or filename
    if source is None or output not in ("table", "yaml"):
        raise typer.BadParameter("give one job file, and -o table or -o yaml")
    raise typer.Exit(verb.plan(source, output))


@app.command()
def crd() -> None:
    """Print the CustomResourceDefinition, for kubectl apply -f -."""
    from limbeck.cli import crd as verb

    raise typer.Exit(verb.crd())


@app.command()
def local(
    job: JobFile,
    log_format: Annotated[
        str, typer.Option("--log-format", help="auto (bars on a terminal, lines elsewhere), lines or json.")
    ] = "auto",
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", help="Serve Prometheus metrics on this port; 0 takes a free one."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the runtime's own log on standard error.")] = False,
) -> None:
    """Run a job on this machine; the same command again resumes what was stopped."""
    if log_format not in ("auto", "lines", "json"):
        raise typer.BadParameter(f"--log-format must be auto, lines or json, got {log_format}")
    from limbeck.cli import local as verb

    raise typer.Exit(verb.local(job, log_format=log_format, metrics_port=metrics_port, verbose=verbose))


# Without a name its commands stand beside ours.
app.add_typer(cluster_commands.app)
app.add_typer(prune_record.app)


def run() -> None:
    """Entry point of the console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(names.EXIT_INTERRUPTED)


if __name__ == "__main__":
    run()
