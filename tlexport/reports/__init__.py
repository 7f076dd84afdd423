"""What a stage found, as frozen data."""

from __future__ import annotations

from tlexport.reports._asking import Agreement as Agreement
from tlexport.reports._asking import ClassScore as ClassScore
from tlexport.reports._asking import EvaluateReport as EvaluateReport
from tlexport.reports._asking import Prediction as Prediction
from tlexport.reports._asking import PredictReport as PredictReport
from tlexport.reports._bench import BenchReport as BenchReport
from tlexport.reports._bench import BenchRow as BenchRow
from tlexport.reports._bench import RateTrial as RateTrial
from tlexport.reports._bench import Steadiness as Steadiness
from tlexport.reports._bench import TimeSpent as TimeSpent
from tlexport.reports._bench import Verdict as Verdict
from tlexport.reports._deploying import DeployReport as DeployReport
from tlexport.reports._deploying import Fault as Fault
from tlexport.reports._deploying import GateCheck as GateCheck
from tlexport.reports._deploying import RollbackReport as RollbackReport
from tlexport.reports._interval import Interval as Interval
from tlexport.reports._making import AccuracyCost as AccuracyCost
from tlexport.reports._making import BackbonesReport as BackbonesReport
from tlexport.reports._making import Candidate as Candidate
from tlexport.reports._making import ExportReport as ExportReport
from tlexport.reports._making import ImportReport as ImportReport
from tlexport.reports._making import PrecisionReport as PrecisionReport
from tlexport.reports._making import TrainReport as TrainReport
from tlexport.reports._making import TrialReport as TrialReport
from tlexport.reports._parity import AccuracyChange as AccuracyChange
from tlexport.reports._parity import Cause as Cause
from tlexport.reports._parity import Decided as Decided
from tlexport.reports._parity import GraphStep as GraphStep
from tlexport.reports._parity import LabelFlip as LabelFlip
from tlexport.reports._parity import ParityReport as ParityReport
from tlexport.reports._parity import ShapeParity as ShapeParity
from tlexport.reports._parity import Walk as Walk
from tlexport.reports._run import RunReport as RunReport
from tlexport.reports._serving import LintFinding as LintFinding
from tlexport.reports._serving import LintReport as LintReport
from tlexport.reports._serving import ManifestsReport as ManifestsReport
from tlexport.reports._serving import PackageReport as PackageReport
from tlexport.reports._serving import ServedModel as ServedModel
from tlexport.reports._serving import ServeReport as ServeReport
from tlexport.reports._tuning import LoadPoint as LoadPoint
from tlexport.reports._tuning import TunedSettings as TunedSettings
from tlexport.reports._tuning import TuneReport as TuneReport
from tlexport.reports._tuning import TuneTrial as TuneTrial
