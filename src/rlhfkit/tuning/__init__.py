"""The search for settings: trials are ordinary runs, paused at rungs; a score counts within a KL budget alone."""
