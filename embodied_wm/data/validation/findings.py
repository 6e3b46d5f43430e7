"""What a validation says: findings, how actions and frames line up, and the report that holds both."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

CHECKS = (
    "damaged",
    "not_finite",
    "jump",
    "constant",
    "timestamp",
    "blank_frames",
    "frozen_frames",
    "duplicated_rows",
    "repeated_rows",
    "misaligned",
)
"""Names of the checks, in the order of the report."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Name one fault and where it is.

    Attributes:
        check: One of CHECKS.
        severity: "error" where training stops or learns something false, "warning" where it may be meant.
        feature: Feature of the store; several are joined by ", ".
        message: What was found.
        advice: What to do about it.
        episode: Number of the episode; None where the whole store is meant.
        row: First row concerned, counted in its episode; None where the whole episode is meant.
        num_rows: Rows concerned.
    """

    check: str
    severity: Literal["error", "warning"]
    feature: str
    message: str
    advice: str
    episode: int | None = None
    row: int | None = None
    num_rows: int = 0


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Say at which lag actions explain best how a feature changes from one row to the next.

    Attributes:
        feature: What changes: a camera, or the state where there is no camera.
        action: How actions are read: "value", "step" (change to the row before) or "target" (minus the state).
        best_lag: Rows by which the effect comes after its action; 0 is the convention of a store, below 0 the effect
            comes first. None where the actions explain too little to say.
        explained: Lag to the share of the change's variance that actions at that lag explain in held-out rows.
        is_certain: Whether the best lag beats lag 0 in 99 of 100 resamples of the episodes, or is lag 0.
    """

    feature: str
    action: str
    best_lag: int | None
    explained: Mapping[int, float]
    is_certain: bool


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """Hold everything that a validation found.

    Attributes:
        path: The store.
        fingerprint: Its content's name.
        num_episodes: Episodes read.
        num_rows: Rows read.
        findings: What is wrong, errors first, in the order of CHECKS.
        alignments: One per camera; one of the state where there is no camera.
        seconds: Wall time.
    """

    path: str
    fingerprint: str
    num_episodes: int
    num_rows: int
    findings: Sequence[Finding]
    alignments: Sequence[Alignment]
    seconds: float

    @property
    def num_errors(self) -> int:
        """Return how many findings break training."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def num_warnings(self) -> int:
        """Return how many findings may be meant."""
        return len(self.findings) - self.num_errors

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self) | {"num_errors": self.num_errors, "num_warnings": self.num_warnings}


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings sorted: errors first, then by check, feature and place."""
    return sorted(
        findings,
        key=lambda finding: (
            finding.severity != "error",
            CHECKS.index(finding.check),
            finding.feature,
            -1 if finding.episode is None else finding.episode,
            finding.row or 0,
        ),
    )
