"""What a Triton server's log says about why it refuses."""

from __future__ import annotations

import re

LOAD = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)")
POLL = re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.*)")
FATAL = re.compile(r"^(?:error: |terminate called |\s*what\(\): |.*failed to start )(?P<reason>.*)")
PORT = re.compile(r"already in use|[Aa]ddress already in use|failed to start \w+ service")

FIXES = (
    (
        r"Unsupported model IR version|official support for domain|under development",
        "export it for an older release (`tlexport export BUNDLE --triton YY.MM`), or update "
        "onnxruntime in this environment",
    ),
    (
        r"first dimension must be -1",
        "export the model with a free batch axis, or set max_batch_size: 0 and write the batch "
        "into dims",
    ),
    (
        r"unable to open|failed to open text file|label",
        "put the label file beside config.pbtxt, or take label_filename out of it",
    ),
    (
        r"[Ee]xternal data|GetFileLength|filesystem error: cannot get file size|data file",
        "copy the data file beside the model: <version>/model.onnx/model.onnx and its data in one "
        "folder",
    ),
    (r"no GPUs are available|invalid or unsupported gpu id", "write kind: KIND_CPU"),
    (
        r"Protobuf parsing failed|INVALID_PROTOBUF|ModelProto",
        "the file is not a whole ONNX file: export and package it again",
    ),
    (r"unable to find '", "put the model's file into its version folder"),
    (r"preferred size must be", "keep preferred_batch_size at or below max_batch_size"),
    (
        r"configuration expects|the model expects|unexpected inference|unsupported datatype",
        "write a config.pbtxt that matches the model: `tlexport package` does",
    ),
    (r"warmup|warm-up", "make the warm-up's shapes fit the model's inputs"),
    (r"fell back to|no kernel image|CUDA", "install the GPU libraries that onnxruntime needs"),
    (PORT.pattern, "pass another port, or 0 for a free one"),
)


def refused(text: str) -> dict[str, str]:
    """Model -> the first line of why it was refused, from a server's log."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := LOAD.search(line) or POLL.search(line):
            found.setdefault(match["model"], _first_line(match["reason"]))
    return found


def reason(text: str) -> str:
    """Why the server ended: each refused model's reason, else its last fatal words."""
    models = refused(text)
    if models:
        return "\n       ".join(f"{name}: {why}" for name, why in sorted(models.items()))
    fatal = [match["reason"] for line in text.splitlines() if (match := FATAL.match(line))]
    return _first_line(fatal[-1]) if fatal else last_words(text)


def fix_for(text: str) -> str:
    """What to do about a known refusal."""
    return fix_of(reason(text))


def fix_of(why: str) -> str:
    """What to do about one reason."""
    for pattern, fix in FIXES:
        if re.search(pattern, why):
            return fix
    return "read the log; correct the model or its config.pbtxt and start again"


def port_taken(text: str) -> bool:
    """Whether the server ended because a port was taken."""
    return not refused(text) and bool(PORT.search(text))


def last_words(text: str) -> str:
    """The last line of a log that is not part of a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" +-|")]
    return _first_line(lines[-1]) if lines else "it has said nothing"


def _first_line(text: str) -> str:
    """The message alone: the server writes a traceback after it, line ends escaped."""
    return text.split("\\n")[0].strip().rstrip('"')
