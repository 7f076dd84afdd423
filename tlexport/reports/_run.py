"""What was found by the main job."""

from __future__ import annotations

import msgspec

from tlexport.reports._bench import BenchReport
from tlexport.reports._making import ExportReport, TrainReport
from tlexport.reports._parity import ParityReport
from tlexport.reports._serving import PackageReport, ServeReport


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """The main job, stage by stage."""

    train: TrainReport
    export: ExportReport
    verify: ParityReport
    package: PackageReport
    serve: ServeReport
    served: ParityReport
    bench: BenchReport
