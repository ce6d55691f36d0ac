"""A torch whose import ends as SABOTAGE_RAISES says."""

import os


def patch(torch):
    raise {"NameError": NameError("name '_C' is not defined"), "SystemExit": SystemExit(0)}[
        os.environ["SABOTAGE_RAISES"]
    ]
