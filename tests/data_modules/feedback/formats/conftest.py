"""Fixture that converts records of other programs without files."""

import pytest

from data_modules.feedback.formats import FORMATS
from data_modules.feedback.formats.account import Account, Options
from data_modules.feedback.formats.convert import converted


@pytest.fixture
def convert():
    """Convert records of a format into judgements and the lines of the account. Raises the first error."""

    def run(name, *records, **options):
        account, faults = Account(Options(**options)), []
        source = ((f"record {number}", record) for number, record in enumerate(records, 1))
        judgements = converted(source, FORMATS[name], account, faults, "f.json")
        if faults:
            raise ValueError(faults[0])
        return judgements, account.lines()

    return run
