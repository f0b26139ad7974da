"""Showing results: from records and saved maps only; no model runs here."""
