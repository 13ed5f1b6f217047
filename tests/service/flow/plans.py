"""An intent and the planner's rules, as the tests of the flow use them."""

from datetime import datetime, timedelta

from service.flow.schedule import Intent, Limits


def limits(**changes) -> Limits:
    plain = {
        "quiet_hours": (22, 7),
        "frequency_cap": 3,
        "rate_per_minute": 1000,
        "explore_share": 0.2,
        "global_holdout": 0.0,
        "default_timezone": "UTC",
        "pepper": "pepper",
        "salt": "salt",
    }
    return Limits(**{**plain, **changes})


def intent(now: datetime, **changes) -> Intent:
    plain = {
        "key": "cmp_1",
        "template_id": "offer",
        "template_version": 1,
        "window_start": now,
        "window_end": now + timedelta(hours=24),
        "campaign_id": "cmp_1",
    }
    return Intent(**{**plain, **changes})
