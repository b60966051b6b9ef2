"""What this machine can and cannot do, and what to do about it."""

from streamfeat.doctor.findings import Finding
from streamfeat.doctor.report import Report, doctor

__all__ = ["Finding", "Report", "doctor"]
