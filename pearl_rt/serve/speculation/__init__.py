"""What a client is told of speculation, where it asks: how each token came, and what drafts were worth."""
