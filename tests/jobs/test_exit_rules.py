"""The table of retry rules, and lists of indexes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsweep import errors
from batchsweep.cli import main as cli
from batchsweep.errors import UsageError
from batchsweep.jobs.exit_rules import RULES, action_of, max_failed_indexes, retry_delay
from batchsweep.jobs.index import format_indexes, parse_indexes


def test_each_error_has_the_rule_that_the_design_gives_it():
    assert action_of(errors.ConfigError.exit_code) == "fail job"
    assert action_of(errors.IndexFailed.exit_code) == "fail index"
    assert action_of(errors.StoreMismatch.exit_code) == "fail index"
    assert action_of(errors.TryAgain.exit_code) == "retry"
    assert action_of(errors.Terminated.exit_code) == "go on"
    assert action_of(0) == "done"


@pytest.mark.parametrize("code", [1, 137, 139, 255])
def test_what_no_rule_names_is_retried(code):
    assert all(code not in rule.exit_codes for rule in RULES)
    assert action_of(code) == "retry"


def test_the_help_lists_the_same_codes():
    for rule in RULES:
        for code in rule.exit_codes:
            assert f"  {code} " in cli.EXIT_CODES


def test_delays_are_those_of_kubernetes():
    assert [retry_delay(n) for n in range(1, 8)] == [10, 20, 40, 80, 160, 320, 360]


def test_a_quarter_of_the_indexes_may_fail():
    assert [max_failed_indexes(n) for n in (1, 2, 8, 24)] == [1, 1, 2, 6]


@given(st.sets(st.integers(0, 5000), min_size=1))
def test_indexes_survive_their_text(indexes):
    assert parse_indexes(format_indexes(indexes)) == tuple(sorted(indexes))


@pytest.mark.parametrize(
    "text", ["", "a", "3-1", "1,,2", "-1", "1-", "1-2-3", "٣", "0-9999999999", "9" * 5000]
)
def test_what_is_no_list_of_indexes(text):
    with pytest.raises(UsageError, match="like 0,4-6"):
        parse_indexes(text)
