"""Judgements, which hold a teacher's feedback on one prompt, and JSONL files of judgements. Needs no torch."""
