"""Evidence about refbn itself, run from a checkout: ``python -m validation.NAME``. See ``validation/README.md``."""
