"""The directory of a run: what training, report, diagnosis and dashboard share; nothing here needs torch."""
