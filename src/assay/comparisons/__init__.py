"""Comparisons across papers: one study each over many methods, with the tables and plots that the docs show."""
