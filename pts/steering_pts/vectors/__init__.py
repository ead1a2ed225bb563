"""From pivots to steering vectors: recording, methods, groups, and the choice on validation problems."""
