"""Probes: what else a model, or a reward, does beside what it was trained for; bias, safety, leakage.

A probe is rows and a function that measures them (`probe.Probe`). `catalogue.py` has those that ship, `formats.py`
reads the files of public sets and of users, and `compare.py` makes a table of before and after.
"""
