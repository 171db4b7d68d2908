"""The part that speaks SQL: statements, operations, migrations."""
