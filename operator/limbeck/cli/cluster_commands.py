"""The verbs that need a cluster: their options, and nothing else. Each lives in a file of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.cli.failures import guarded
from limbeck.cli.options import (
    Access,
    AllNamespaces,
    Context,
    JobName,
    Kubeconfig,
    Namespace,
    Output,
    Server,
    ServerCa,
    Timeout,
    on_cluster,
    one_of,
    seconds_of,
)

if TYPE_CHECKING:
    from limbeck.cli.cluster import Cluster

app = typer.Typer()
_PANEL = "On a cluster"
_FORMATS = ("table", "wide", "json", "yaml", "name")


@app.command(rich_help_panel=_PANEL)
def submit(
    filename: Annotated[
        str,
        typer.Option(
            "-f", "--filename", help="File with one or more jobs; - reads standard input.", show_default=False
        ),
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the jobs to end.")] = False,
    timeout: Timeout = None,
    dry_run: Annotated[
        str, typer.Option("--dry-run", help="none, client (check the file) or server (ask it, change nothing).")
    ] = "none",
    output: Output = "table",
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Check a job file and hand its jobs to the cluster."""
    one_of("--dry-run", dry_run, ("none", "client", "server"))
    one_of("-o", output, _FORMATS)
    seconds = seconds_of(timeout)
    from limbeck.cli.jobfile import JobFileError
    from limbeck.cli.validate import read_runnable_documents

    try:
        documents = read_runnable_documents(filename)
    except JobFileError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from error

    def run(cluster: Cluster) -> int:
        from limbeck.cli import submit as verb

        is_dry = dry_run == "server"
        return verb.submit(cluster, documents, dry_run=is_dry, wait=wait, timeout_seconds=seconds, output=output)

    def run_here() -> int:
        from limbeck.cli import submit as verb

        return verb.submit_nowhere(documents, output=output)

    if dry_run == "client":
        raise typer.Exit(guarded(run_here))
    raise on_cluster(Access(namespace, False, context, kubeconfig), run)


@app.command(rich_help_panel=_PANEL)
def get(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One job; without it, all.")] = None,
    selector: Annotated[
        str | None,
        typer.Option("-l", "--selector", help="Labels that jobs must have, e.g. team=a.", show_default=False),
    ] = None,
    output: Output = "table",
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """List jobs: status, step, progress, time left."""
    one_of("-o", output, _FORMATS)
    if name and selector:
        raise typer.BadParameter("give a name or -l, not both")

    def run(cluster: Cluster) -> int:
        from limbeck.cli import get as verb

        return verb.get(cluster, name, output=output, selector=selector)

    raise on_cluster(Access(namespace, all_namespaces, context, kubeconfig), run)


@app.command(rich_help_panel=_PANEL)
def describe(
    name: JobName,
    output: Output = "table",
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show all that is known of a job: spec, conditions, plan, steps, attempts, result, events."""
    one_of("-o", output, _FORMATS)

    def run(cluster: Cluster) -> int:
        from limbeck.cli import describe as verb

        return verb.describe(cluster, name, output=output)

    raise on_cluster(Access(namespace, all_namespaces, context, kubeconfig), run)


@app.command(rich_help_panel=_PANEL)
def watch(
    name: JobName,
    log_format: Annotated[
        str, typer.Option("--log-format", help="auto (bars on a terminal, lines elsewhere), lines or json.")
    ] = "auto",
    server: Server = None,
    server_ca: ServerCa = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Follow a job to its end, as `limbeck local` shows one."""
    one_of("--log-format", log_format, ("auto", "lines", "json"))

    def run(cluster: Cluster) -> int:
        from limbeck.cli import watch as verb

        return verb.watch(cluster, name, log_format=log_format, server_url=server, server_ca=server_ca)

    raise on_cluster(Access(namespace, all_namespaces, context, kubeconfig), run)


@app.command(rich_help_panel=_PANEL)
def logs(
    name: JobName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as the log grows.")] = False,
    pool: Annotated[str, typer.Option("--pool", help="head (the driver), teacher or student.")] = "head",
    attempt: Annotated[
        int | None, typer.Option("--attempt", min=1, help="Attempt; default is the latest.", show_default=False)
    ] = None,
    container: Annotated[
        str | None,
        typer.Option("-c", "--container", help="Container; default is the driver's or Ray's.", show_default=False),
    ] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, help="Only so many last lines.", show_default=False)
    ] = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the logs of a job's pods."""
    one_of("--pool", pool, ("head", "teacher", "student"))

    def run(cluster: Cluster) -> int:
        from limbeck.cli import logs as verb

        return verb.logs(cluster, name, verb.Wish(pool, attempt, container, follow, tail))

    raise on_cluster(Access(namespace, all_namespaces, context, kubeconfig), run)


@app.command(rich_help_panel=_PANEL)
def wait(
    name: JobName,
    goal: Annotated[
        str, typer.Option("--for", help="finished (the exit code says how), Complete, Failed or Suspended.")
    ] = "finished",
    timeout: Timeout = None,
    output: Output = "table",
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Wait for a job; exit code 0 it is there, 1 it failed or cannot get there, 4 time is up."""
    one_of("--for", goal, ("finished", "Complete", "Failed", "Suspended"))
    one_of("-o", output, _FORMATS)
    seconds = seconds_of(timeout)

    def run(cluster: Cluster) -> int:
        from limbeck.cli import wait as verb

        return verb.wait(cluster, name, goal=goal, timeout_seconds=seconds, output=output)

    raise on_cluster(Access(namespace, all_namespaces, context, kubeconfig), run)


@app.command(rich_help_panel=_PANEL)
def suspend(
    name: JobName,
    output: Output = "table",
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Stop a job after a checkpoint and give its pods back."""
    one_of("-o", output, _FORMATS)

    def run(cluster: Cluster) -> int:
        from limbeck.cli import suspend as verb

        return verb.suspend(cluster, name, output=output)

    raise on_cluster(Access(namespace, all_namespaces, context, kubeconfig), run)


@app.command(rich_help_panel=_PANEL)
def resume(
    name: JobName,
    output: Output = "table",
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Let a suspended job go on from its checkpoint."""
    one_of("-o", output, _FORMATS)

    def run(cluster: Cluster) -> int:
        from limbeck.cli import suspend as verb

        return verb.resume(cluster, name, output=output)

    raise on_cluster(Access(namespace, all_namespaces, context, kubeconfig), run)


@app.command(rich_help_panel=_PANEL)
def cancel(
    name: JobName,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    output: Output = "table",
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Delete a job; what it wrote to its output stays."""
    one_of("-o", output, _FORMATS)

    def run(cluster: Cluster) -> int:
        from limbeck.cli import cancel as verb

        return verb.cancel(cluster, name, yes=yes, output=output)

    raise on_cluster(Access(namespace, all_namespaces, context, kubeconfig), run)


@app.command(rich_help_panel=_PANEL)
def report(
    name: JobName,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    file: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Write it here; - is standard output.")
    ] = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show what came out of a job, and fetch its report."""

    def run(cluster: Cluster) -> int:
        from limbeck.cli import report as verb

        return verb.report(cluster, name, open_it=open_it, file=file)

    raise on_cluster(Access(namespace, all_namespaces, context, kubeconfig), run)


@app.command(rich_help_panel=_PANEL)
def doctor(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A job to look at as well.")] = None,
    server: Server = None,
    server_ca: ServerCa = None,
    output: Annotated[str, typer.Option("-o", "--output", help="table, json or yaml.")] = "table",
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Check what jobs need: API server, CRD, operator, KubeRay, rights; exit code 1 where something is wrong."""
    one_of("-o", output, ("table", "json", "yaml"))

    def run(cluster: Cluster) -> int:
        from limbeck.cli import doctor as verb

        return verb.doctor(cluster, name, server_url=server, server_ca=server_ca, output=output)

    raise on_cluster(Access(namespace, all_namespaces, context, kubeconfig), run)
