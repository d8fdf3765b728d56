"""Scalarizers in training frameworks: import the module of yours. None is imported here."""
