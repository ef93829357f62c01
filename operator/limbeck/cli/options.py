"""The options that all verbs on a cluster share. Imports nothing heavy, so that `limbeck --help` is quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.cli.failures import guarded

if TYPE_CHECKING:
    from limbeck.cli.cluster import Cluster


@dataclass(frozen=True)
class Access:
    """Which cluster, and where in it."""

    namespace: str | None = None
    all_namespaces: bool = False
    context: str | None = None
    kubeconfig: str | None = None


JobName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the job.", show_default=False)]
Namespace = Annotated[
    str | None, typer.Option("-n", "--namespace", help="Namespace; default is the context's.", show_default=False)
]
AllNamespaces = Annotated[bool, typer.Option("-A", "--all-namespaces", help="Look in all namespaces.")]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig file.", show_default=False)]
Kubeconfig = Annotated[
    str | None,
    typer.Option(
        "--kubeconfig", help="Kubeconfig file; default is KUBECONFIG, then ~/.kube/config.", show_default=False
    ),
]
Output = Annotated[str, typer.Option("-o", "--output", help="table, wide, json, yaml or name.")]
Server = Annotated[
    str | None,
    typer.Option(
        "--server", envvar="LIMBECK_SERVER", help="Address of limbeck's server, https://HOST:PORT.", show_default=False
    ),
]
ServerCa = Annotated[
    str | None,
    typer.Option("--server-ca", help="PEM file with the server's certificate authority.", show_default=False),
]
Timeout = Annotated[
    str | None, typer.Option("--timeout", help="Give up after so long, e.g. 90, 90s, 15m, 2h.", show_default=False)
]


def on_cluster(access: Access, verb: Callable[[Cluster], int]) -> typer.Exit:
    """What to raise at the end of a command: the verb's exit code, or that of what went wrong."""

    def run() -> int:
        from limbeck.cli.cluster import connect

        return verb(connect(access))

    return typer.Exit(guarded(run))


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """The value of an option that has only so many. Raises typer.BadParameter."""
    if value not in allowed:
        raise typer.BadParameter(f"{option} must be one of {', '.join(allowed)}, got {value}")
    return value


def seconds_of(text: str | None) -> float | None:
    """`90`, `90s`, `15m`, `2h`, `1d` in seconds. Raises typer.BadParameter."""
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    if not number.isascii() or not number.isdigit():
        raise typer.BadParameter(f"--timeout must be a number with s, m, h or d behind it, got {text}")
    return float(int(number) * unit)
