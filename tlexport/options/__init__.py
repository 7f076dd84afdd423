"""What a caller may ask for: frozen, self-checking records."""

from __future__ import annotations

from tlexport.options._adapting import AdaptOptions as AdaptOptions
from tlexport.options._asking import FACTOR as FACTOR
from tlexport.options._asking import EvaluateOptions as EvaluateOptions
from tlexport.options._asking import PredictOptions as PredictOptions
from tlexport.options._asking import RuntimeOptions as RuntimeOptions
from tlexport.options._asking import VerifyOptions as VerifyOptions
from tlexport.options._deploying import DeployOptions as DeployOptions
from tlexport.options._deploying import RollbackOptions as RollbackOptions
from tlexport.options._making import DataOptions as DataOptions
from tlexport.options._making import ExportOptions as ExportOptions
from tlexport.options._making import ImportOptions as ImportOptions
from tlexport.options._making import TrainOptions as TrainOptions
from tlexport.options._manifests import ManifestOptions as ManifestOptions
from tlexport.options._manifests import hold_label as hold_label
from tlexport.options._measuring import BenchOptions as BenchOptions
from tlexport.options._measuring import Slo as Slo
from tlexport.options._measuring import read_slo as read_slo
from tlexport.options._selecting import Entry as Entry
from tlexport.options._selecting import SelectOptions as SelectOptions
from tlexport.options._selecting import read_entry as read_entry
from tlexport.options._serving import LintOptions as LintOptions
from tlexport.options._serving import PackageOptions as PackageOptions
from tlexport.options._serving import RunOptions as RunOptions
from tlexport.options._serving import ServeOptions as ServeOptions
from tlexport.options._tuning import TuneOptions as TuneOptions
