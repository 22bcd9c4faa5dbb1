"""What can be noticed in a conversation: words, feelings, pauses. A strategy says what follows from it."""
