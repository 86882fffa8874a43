"""Explorers of the book, one module each; `mammomil.widgets` names them all."""
