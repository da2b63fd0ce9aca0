"""Acting: prompts or environments in, experience out."""
