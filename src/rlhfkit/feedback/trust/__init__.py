"""How far labels can be trusted: agreement, order, pace, and how often one person contradicts the others."""
