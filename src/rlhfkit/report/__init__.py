"""From the files of a run to a page that a person can read; nothing is run here, and nothing needs torch."""
