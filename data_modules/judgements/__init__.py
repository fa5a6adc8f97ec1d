"""What a teacher says of one prompt, and files of it: JSON lines. Text and feedback stand on it; it needs no torch."""
