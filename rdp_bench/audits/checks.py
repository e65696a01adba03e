"""The checks of an audit, C1 to C13: each reads the evidence and says how far the attacks can be believed."""

from rdp_bench.audits.checks_of_cells import CHECKS as FROM_CELLS
from rdp_bench.audits.checks_of_probes import CHECKS as FROM_PROBES
from rdp_bench.audits.evidence import Evidence
from rdp_bench.audits.finding import FAIL, NA, PASS, WARN, Finding

__all__ = ["FAIL", "NA", "PASS", "WARN", "Finding", "findings"]


def findings(evidence: Evidence) -> list[Finding]:
    """What every check says, in the order of their numbers."""
    found = [check(evidence) for check in (*FROM_CELLS, *FROM_PROBES)]
    return sorted(found, key=lambda finding: (int(finding.id[1:].split(".")[0]), finding.id))
