"""Samples run through the leading stages of a backbone, each of them once."""
