"""Evaluation as the paper does it, and the report: scores, tables, figures, HTML."""
