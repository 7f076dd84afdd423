"""The range of every value, by ONNX Runtime's calibrators."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.shape_inference import quant_pre_process

from tlexport.spec import Tensors
from tlexport.targets._file import large, raised
from tlexport.targets._foreign import quiet
from tlexport.targets._graph import named
from tlexport.targets._lowering import Wish
from tlexport.targets._session import Values, save

METHODS: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"percentile": 99.99, "symmetric": False}),
    "entropy": (CalibrationMethod.Entropy, {}),
}
"""What --calibration names. Of the percentiles, 0.01 % of the values on either side are cut off."""


MOST_VALUES, LEAST_SAMPLES = 500_000_000, 16
"""For histograms: about half a minute's worth."""

OLDEST_OPSET = 13
"""The first whose DequantizeLinear knows channels."""


class Once:
    """A sample, as the calibrators ask for it: once, then nothing."""

    def __init__(self, sample: Tensors) -> None:
        self._waiting: Tensors | None = sample

    def get_next(self) -> Tensors | None:
        """The sample, the first time."""
        sample, self._waiting = self._waiting, None
        return sample


def prepared(wish: Wish) -> onnx.ModelProto:
    """The fp32 model with constants folded, norms joined into convolutions, and every type known.

    Names of nodes, values and weights stay, but for those that are joined.
    """
    model = raised(named(onnx.load(wish.source)), OLDEST_OPSET)
    # Shapes that an exporter wrote are wrong at times, and then inference refuses the model.
    del model.graph.value_info[:]
    beside = large(model)
    raw = save(model, wish.work / "raw.onnx")
    place = wish.work / "prepared.onnx"
    with quiet():
        quant_pre_process(
            raw,
            place,
            skip_symbolic_shape=True,
            save_as_external_data=beside,
            all_tensors_to_one_file=beside,
        )
    model = named(onnx.load(place))
    known = {info.name for info in (*model.graph.value_info, *model.graph.output)}
    types = Values(model, wish.work / "types").types
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name, kind in types.items()
        if name not in known and kind == "float32"
    )
    return model


def calibrated(model: Path, ops: Collection[str], method: str, wish: Wish, values: int) -> Any:
    """Ranges of what nodes of the kinds `ops` take and give, over the samples, one at a time.

    One at a time, as the calibrators hold every value of what they are given together. Histograms
    take time by the value, of which a sample has about `values`, so large ones see fewer samples.
    """
    kind, more = METHODS[method]
    samples = wish.samples
    if method != "minmax":
        samples = spread(samples, max(LEAST_SAMPLES, MOST_VALUES // max(1, values)))
    with quiet():
        calibrator = create_calibrator(
            model,
            sorted(ops),
            augmented_model_path=str(wish.work / "calibration.onnx"),
            calibrate_method=kind,
            use_external_data_format=model.with_suffix(".data").exists(),
            extra_options=more,
        )
        for number, sample in enumerate(samples):
            calibrator.collect_data(Once(sample))
            wish.progress(f"calibrate ({method})", number + 1, len(samples))
        return calibrator.compute_data()


def spread(samples: Sequence[Tensors], most: int) -> Sequence[Tensors]:
    """At most so many of them, evenly from first to last: they are sorted by size."""
    count = min(most, len(samples))
    return [samples[number * len(samples) // count] for number in range(count)]
