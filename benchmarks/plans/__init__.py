"""The plans of all hot statements on tables of many rows; the tests of plans use the same rows and the same calls."""
