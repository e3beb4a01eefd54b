"""The one exception for what a user can put right."""


class InputError(ValueError):
    """Bad input: config, raw table, cohort, checkpoint. Shown as one line without a traceback; exit code 2.

    The message names the thing, what was expected, what was found, and the remedy. It never holds patient-level values
    (no rows, identifiers, notes or predictions).
    """
