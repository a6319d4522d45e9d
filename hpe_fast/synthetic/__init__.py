"""Labelled pictures of people who do not exist: ``python -m hpe_fast.synthesize``, with the extra ``synthetic``."""
