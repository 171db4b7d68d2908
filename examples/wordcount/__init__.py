"""Counts the words of all files in a folder, each file a child of its own: ``python -m examples.wordcount``."""
