"""What people prefer: votes, their store, how far they can be trusted, and other tools' formats."""
