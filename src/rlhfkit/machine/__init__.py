"""The process and its hardware: device, type of numbers, fast paths, seeds, interrupts, hangs, progress."""
