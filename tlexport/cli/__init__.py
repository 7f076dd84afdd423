"""The command line: one thin file per command, one catcher."""

from __future__ import annotations

import functools
import importlib
import logging
import signal
import sys
import threading
from typing import NoReturn

import click

from tlexport import plugins
from tlexport.errors import TlexportError

ORDER = [
    *("run", "select", "train", "import", "evaluate", "export", "verify", "package", "lint"),
    *("serve", "deploy", "rollback", "predict", "bench", "tune", "manifests"),
]
"""The order of the work; any other command follows by name."""


LAUNCHED = ("train",)
"""Commands whose work several processes of one launch share."""


class Commands(click.Group):
    """Finds commands in this folder and imports one only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order of the work."""
        return sorted(self._names, key=lambda name: (*_place(name), name))

    @functools.cached_property
    def _names(self) -> list[str]:
        return plugins.names("cli")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in self._names:
            return None
        module = importlib.import_module(plugins.module_of("cli", cmd_name))
        command: click.Command = module.command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a name that is not there is answered with the nearest that is."""
        named = bool(args) and not args[0].startswith("-") and not ctx.resilient_parsing
        if named and self.get_command(ctx, args[0]) is None:
            raise plugins.unknown("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


def _place(name: str) -> tuple[int]:
    return (ORDER.index(name) if name in ORDER else len(ORDER),)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tlexport")
@click.option("--debug", is_flag=True, help="Show tracebacks and debug logs.")
def tlexport(debug: bool) -> None:
    """Take a model from fine-tuned to served, with the proof and the price.

    \b
    Example:
      make demo          the whole job on real scans of digits
      tlexport run photos/ -o photos.bundle
    """
    handler = logging.StreamHandler()  # not the root's: libraries print what they log themselves
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger = logging.getLogger("tlexport")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    from tlexport.environment import hold_alone

    asked = click.get_current_context().invoked_subcommand
    if asked not in LAUNCHED:
        hold_alone(f"`tlexport {asked}`")


def main(args: list[str] | None = None) -> None:
    """Run the command line; every error of ours becomes a message and its exit code."""
    given = sys.argv[1:] if args is None else args
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = tlexport.main(args=given, prog_name="tlexport", standalone_mode=False)
    except TlexportError as error:
        if "--debug" in given:
            raise
        _tell(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except Exception as error:
        if "--debug" in given:
            raise
        _tell(_unforeseen(error))
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(number: int, frame: object) -> NoReturn:
    """Take SIGTERM as Ctrl-C: what is half done is cleared away."""
    raise KeyboardInterrupt


def _tell(error: TlexportError) -> None:
    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(str(error), err=True)


def _unforeseen(error: Exception) -> TlexportError:
    """What nobody translated: a plug-in's own exception, or a fault of this program."""
    first = (str(error).strip().splitlines() or [""])[0]
    return TlexportError(
        "the command to end well or to say what it lacks",
        got=f"{type(error).__name__}: {first}" if first else type(error).__name__,
        fix="run `tlexport --debug ...` for the traceback; unless a plug-in of your own is in it, "
        "please report it",
    )
