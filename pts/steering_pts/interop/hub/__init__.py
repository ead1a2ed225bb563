"""Exports on the Hugging Face Hub: a folder with a card, and its upload."""
