"""What comes back: bounces and complaints are read, matched to their send, logged, and stop what they have to stop."""

from service.bounces.feedback import Feedback, take_feedback
from service.bounces.files import messages_in
from service.bounces.record import Recorded, record_reports
from service.bounces.report import LARGEST_MESSAGE, Report, read_report
from service.bounces.status import Severity, severity_of, severity_told
from service.bounces.streams import StreamHealth, check_streams, judge_streams, measure_streams

__all__ = [
    "LARGEST_MESSAGE",
    "Feedback",
    "Recorded",
    "Report",
    "Severity",
    "StreamHealth",
    "check_streams",
    "judge_streams",
    "measure_streams",
    "messages_in",
    "read_report",
    "record_reports",
    "severity_of",
    "severity_told",
    "take_feedback",
]
