"""What a test that needs a card is marked with."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def on_a_card(*untested: str) -> tuple[pytest.MarkDecorator, pytest.MarkDecorator]:
    """Marks of a test, or of a parameter, that runs on a GPU alone; what is lost without one."""
    reason = f"no GPU: not tested: {', '.join(untested)}"
    return pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)


def devices(*untested: str) -> list[Any]:
    """For ``parametrize``: the CPU, which proves the test itself, and the card."""
    return ["cpu", pytest.param("cuda", marks=on_a_card(*untested))]
