"""What every command shares: logging to the terminal and to files, and errors as one line with the right exit status."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

INTERRUPTED = 130
INTERRUPTED_TEXT = "interrupted; run the same command again to go on"
CORPORA = ("auto", "emotify", "deam", "soundtracks", "musifeast", "muse", "folder")

log = logging.getLogger("annotate")


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, event and message; track and seconds where there are any.

    Events that scripts may wait for: done and failed (a track), progress, summary (with all counts), fatal; the rest is ``note``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "note"),
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in ("track", "seconds") if getattr(record, name, None) is not None}
        return json.dumps(line | getattr(record, "fields", {}))


class OneLine(logging.Formatter):
    """Text for people: one line a record, control characters escaped, so that a file name cannot forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        text = record.getMessage()
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return prefix + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LogFile(logging.FileHandler):
    """A log that outlives the disk: where it cannot be written, stderr says so once and the run goes on."""

    broken = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that the file cannot be written; the next line tries again, from a newly opened file."""
        stream, self.stream = self.stream, None
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
        if not self.broken:
            self.broken = True
            click.echo(f"warning: --log-file {self.baseFilename} cannot be written: {sys.exc_info()[1]}", err=True)


class TerminalHandler(logging.StreamHandler[Any]):
    """Writes to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            with tqdm.external_write_mode(file=sys.stderr):
                super().emit(record)
        else:
            super().emit(record)


def set_up_logging(verbosity: int, log_file: str | None, log_format: str) -> None:
    """Send text (or JSON lines) to stderr, and to a file as well where one is named."""
    log.setLevel(logging.DEBUG)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = False
    level = {-1: logging.WARNING, 0: logging.INFO}.get(max(verbosity, -1), logging.DEBUG)
    terminal = TerminalHandler(sys.stderr)
    terminal.setLevel(level)
    to_file = log_file is not None
    terminal.setFormatter(JsonLines() if log_format == "json" and not to_file else OneLine())
    log.addHandler(terminal)
    if log_file is not None:
        try:
            file = LogFile(log_file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise click.UsageError(f"--log-file {log_file}: {error.strerror}") from None
        file.setLevel(min(level, logging.INFO))
        file.setFormatter(JsonLines() if log_format == "json" else OneLine())
        log.addHandler(file)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turn the errors that a command is documented to raise into one line and the right exit status."""
    from annotate.errors import FATAL, USAGE

    try:
        yield
    except USAGE as error:
        fail(str(error), 2)
    except FATAL as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail(INTERRUPTED_TEXT, INTERRUPTED)


def fail(message: str, status: int) -> None:
    """Print one line on stderr, in the log's form where that is JSON, and end with `status`."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in message)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, line, (), None, extra={"event": "fatal"})
    as_json = False
    for handler in log.handlers:
        if isinstance(handler, LogFile):
            handler.handle(record)
        elif isinstance(handler.formatter, JsonLines):
            handler.handle(record)
            as_json = True
    if not as_json:
        click.echo(f"annotate: {line}", err=True)
    sys.stderr.flush()
    raise SystemExit(status)
