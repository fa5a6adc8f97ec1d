"""Records of another program, converted without a file."""

import pytest

from data_modules.feedback.formats import FORMATS
from data_modules.feedback.formats.account import Account, Options
from data_modules.feedback.formats.convert import converted


@pytest.fixture
def convert():
    """Converts records of a format: the judgements, and the lines of the account. Raises the first fault."""

    def run(name, *records, **options):
        account, faults = Account(Options(**options)), []
        source = ((f"record {number}", record) for number, record in enumerate(records, 1))
        judgements = converted(source, FORMATS[name], account, faults, "f.json")
        if faults:
            raise ValueError(faults[0])
        return judgements, account.lines()

    return run
