"""Displays of what estimators have found: charts and images."""
