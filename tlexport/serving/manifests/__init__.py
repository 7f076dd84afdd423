"""Manifests of a server, and of the job that trains for it."""

from __future__ import annotations

from pathlib import Path

import jinja2
import msgspec

from tlexport.serving.manifests import dashboard
from tlexport.serving.manifests.training import Training
from tlexport.serving.needs import Needs
from tlexport.serving.storage import Storage

FOLDER = Path(__file__).parent
SUMMARIES_SINCE = "23.01"
"""First release that is sure to know --metrics-config=summary_latencies=true."""

GRACE_S = 30
POLL_S = 30


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers that every manifest is made of."""

    name: str
    namespace: str
    triton: str
    image: str
    storage: Storage
    needs: Needs
    min_replicas: int
    max_replicas: int
    queue_us: int
    control: str
    secret: str
    repository: str
    described: bool
    training: Training | None = None

    @property
    def grace_s(self) -> int:
        """Seconds between the word to stop and the end."""
        return GRACE_S

    @property
    def arguments(self) -> list[str]:
        """Flags of `tritonserver` besides where the models and the ports are."""
        follow = {
            "poll": ["--model-control-mode=poll", f"--repository-poll-secs={POLL_S}"],
            "explicit": ["--model-control-mode=explicit", "--load-model=*"],
        }[self.control]
        return [*follow, *self.kserve_arguments]

    @property
    def kserve_arguments(self) -> list[str]:
        """The same for KServe, which copies the repository once."""
        summaries = ["--metrics-config=summary_latencies=true"]
        return [
            *(["--disable-auto-complete-config"] if self.described else []),
            f"--exit-timeout-secs={GRACE_S - 10}",
            *(summaries if self.triton >= SUMMARIES_SINCE else []),
        ]


def manifests(facts: Facts) -> dict[str, str]:
    """Path below the output folder -> text, of every file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found = {}
    for path in sorted(FOLDER.rglob("*.j2")):
        name = str(path.relative_to(FOLDER))
        text = environment.get_template(name).render(facts=facts, metrics=dashboard.METRICS)
        if text.strip():
            found[name.removesuffix(".j2")] = text
    found["grafana/dashboards/triton.json"] = dashboard.text(facts.name)
    return found
