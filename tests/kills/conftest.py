"""The victim is a script, not a module of tests."""

collect_ignore = ["victim.py"]
