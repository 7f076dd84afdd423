"""ONNX Runtime's converters, kept quiet and translated."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnxruntime as ort

from tlexport.errors import ExportError, TlexportError
from tlexport.targets._reasons import reason


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what they print and warn of to themselves, and translate what they raise.

    What they wrote is read back, and asked. They warn through the root logger, which would set up
    logging for the whole process.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except (TlexportError, OSError):
        raise
    except Exception as error:  # whatever a graph that they do not know makes them raise
        raise ExportError(
            f"a graph that the converters of onnxruntime {ort.__version__} take",
            got=f"{type(error).__name__}: {reason(error)}",
            fix="export as fp32, or in another precision",
        ) from error
    finally:
        logging.disable(before)
