"""Purchase requests that wait for people, with reminders and escalation: ``python -m examples.approval``."""
