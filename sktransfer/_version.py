"""The version of the package, for modules below the public door as well."""

__version__ = "0.1.0"
