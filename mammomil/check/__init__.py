"""Answer checks for the exercises of the book, one module per chapter: they name the mistake."""
