"""A report for each night, started by a cron line: ``python -m examples.nightly``."""
