"""What differs between two configs, in words."""

from __future__ import annotations

import json
from typing import Any

from batchsweep.errors import shortened


def differences(there: Any, now: Any, name: str) -> list[str]:
    """What differs between two JSON values, by dotted key."""
    if there == now:
        return []
    if isinstance(there, dict) and isinstance(now, dict):
        return [
            line
            for key in dict.fromkeys([*there, *now])
            for line in differences(there.get(key), now.get(key), f"{name}.{key}")
        ]
    if isinstance(there, list) and isinstance(now, list):
        gone, added = (
            [_short(v) for v in a if v not in b] for a, b in ((there, now), (now, there))
        )
        if gone or added:
            parts = [f"without {', '.join(gone)}"] if gone else []
            parts += [f"with {', '.join(added)}"] if added else []
            return [f"{name} is now {' and '.join(parts)}"]
    return [f"{name} was {_short(there)} and is now {_short(now)}"]


def _short(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:
        value = {k: v for k, v in value.items() if v not in (None, False, {})}
        value = value["name"] if len(value) == 1 else value
    return shortened(value if isinstance(value, str) else json.dumps(value), 60)
