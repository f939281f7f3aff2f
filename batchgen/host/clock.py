"""Points in time as users write them in a job file or in the environment."""

import re
from datetime import datetime, timedelta


def moment(text: str) -> float:
    """Seconds since the epoch, from an ISO time, "HH:MM" (the next one on the local clock), or epoch seconds.

    Raises ValueError.
    """
    if re.fullmatch(r"\d{9,}", text):
        return float(text)
    if clock := re.fullmatch(r"(\d{1,2}):(\d\d)", text):
        now = datetime.now()
        today = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        return (today if today > now else today + timedelta(days=1)).timestamp()
    return datetime.fromisoformat(text).timestamp()
