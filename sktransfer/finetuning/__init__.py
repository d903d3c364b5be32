"""A head on a backbone, trained with as many of its stages as are not frozen."""
