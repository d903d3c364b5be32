"""Charts and pictures of what estimators have found."""
