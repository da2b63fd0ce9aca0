"""How layers run fast where the machine can; each way has a plain one behind it."""
